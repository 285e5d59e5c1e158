"""The folder of a run: names of any characters, a finished run's folder, and two runs in one folder."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from examples import few_steps, moving_square, replaced, write_video
from omegaconf import OmegaConf

import evaluate
from drift.command_line import claimed_folder, run
from drift.errors import InputError
from drift.image_files import write_mask

CLIP = moving_square(3, size=(32, 48))
NAMES = [
    "clip (1)",
    "vidéo",
    "it's",
    "[1080p]",
    "a=b, c",
    "{x}#1 100%",
    '"quoted"',
    "123",
    "~x",
    "back\\slash",
]


@pytest.fixture
def command(checkpoint, tmp_path, monkeypatch, capsys):
    write_video(tmp_path / "clip.mp4", CLIP.frames)
    write_mask(tmp_path / "mask.png", CLIP.truth[0])

    def call(*overrides: str) -> tuple[int, str, str]:
        words = [
            "data=video",
            f"data.path={tmp_path / 'clip.mp4'}",
            f"data.mask={tmp_path / 'mask.png'}",
            f"backbone.checkpoint={checkpoint}",
            "backbone.layers=[up_blocks.2.attentions.0]",
            *("logger=none", "refinement=none", "output.attention=false", "output.report=false"),
            f"output.dir={tmp_path / 'out'}",
        ]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *few_steps(replaced(words, overrides))])
        status = run(evaluate.evaluate, config_dir=evaluate.CONFIGS, config_name="evaluate")
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


@pytest.mark.parametrize("name", NAMES)
def test_files_and_folders_have_any_name(command, tmp_path, name):
    folder = tmp_path / f"folder {name}"
    folder.mkdir()
    (tmp_path / "clip.mp4").rename(folder / f"{name}.mp4")
    (tmp_path / "mask.png").rename(folder / f"{name}.png")
    out = folder / f"out {name}"
    status, _, errors = command(
        f"data.path={folder / name}.mp4",
        "data.mask=null",
        f"data.masks={{0: {folder / name}.png}}",
        f"output.dir={out}",
    )
    assert (status, errors) == (0, "")
    assert len(list((out / "masks" / name).glob("*.png"))) == 3
    assert OmegaConf.load(out / "config.yaml").data.path == f"{folder / name}.mp4"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_failing_command_leaves_the_folder_of_a_finished_run_as_it_is(command, tmp_path):
    assert command()[0] == 0
    before = contents(tmp_path / "out")
    for wrong in (
        "propagation.min_confidence=7",  # found when options are checked
        "data.path=/no/such.mp4",  # when the data is found
        "backbone.checkpoint=/no/such",  # when the models are loaded
        "backbone.layers=[x]",
        "trainer.accelerator=abacus",
    ):
        assert command(wrong)[0] == 2
        assert contents(tmp_path / "out") == before


def test_a_failing_command_leaves_no_folder(command, tmp_path):
    for wrong in ("propagation.min_confidence=7", "backbone.layers=[x]"):
        assert command(wrong)[0] == 2
        assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()  # but not one that was there
    time.sleep(0.1)
    assert command("propagation.min_confidence=7")[0] == 2
    assert (tmp_path / "out").is_dir()


def test_two_runs_in_one_folder_are_told_apart(command, tmp_path):
    code = (
        "import sys, time\n"
        "from omegaconf import OmegaConf\n"
        "from drift.command_line import claimed_folder\n"
        "with claimed_folder(OmegaConf.create({'output': {'dir': sys.argv[1]}}), is_global_zero=True):\n"
        "    print('has it', flush=True)\n"
        "    time.sleep(600)\n"
    )
    root = Path(evaluate.__file__).parent
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "has it\n"
        before = contents(tmp_path / "out")
        status, _, errors = command()
        assert status == 2
        assert errors.startswith(f"error: output.dir={tmp_path / 'out'}: another run writes into it")
        assert contents(tmp_path / "out") == before
    finally:
        other.kill()
        other.wait()
    assert command()[0] == 0, "a run that was killed holds nothing"


def test_a_folder_is_given_back(tmp_path):
    config = OmegaConf.create({"output": {"dir": str(tmp_path)}, "seed": 3})
    with claimed_folder(config, is_global_zero=True):
        with pytest.raises(InputError, match="another run"), claimed_folder(config, is_global_zero=True):
            pass
        with claimed_folder(config, is_global_zero=False):
            pass  # another process of the same run
    with claimed_folder(config, is_global_zero=True):
        assert OmegaConf.load(tmp_path / "config.yaml") == config
