"""`train.py`, and `evaluate.py` with the adapters that it wrote, on small clips and a small random model."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import moving_square, write_checkpoint, write_davis
from safetensors import safe_open
from safetensors.torch import load_file

import evaluate
import train
from drift.adaptation import HeadWeighting, TextualInversion
from drift.command_line import run
from drift.image_files import read_mask

LAYERS = ["up_blocks.2.attentions.0", "up_blocks.2.attentions.1"]
FEW_STEPS = [
    "adaptation.textual_inversion.steps=4",
    "adaptation.textual_inversion.tokens=4",
    "adaptation.head_weighting.steps=4",
    "adaptation.head_weighting.views=2",
    "adaptation.head_weighting.tolerance=0",
    "adaptation.textual_inversion.tolerance=0",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folder of the clips; read-only."""
    clips = {name: moving_square(frames, name=name) for name, frames in (("ant", 4), ("bee", 3))}
    return write_davis(tmp_path_factory.mktemp("clips") / "data", clips)


def words(checkpoint: Path, root: Path, out: Path) -> list[str]:
    """Overrides for both entry points."""
    return [
        "data=davis",
        f"data.root={root}",
        f"backbone.checkpoint={checkpoint}",
        f"backbone.layers=[{','.join(LAYERS)}]",
        "adaptation=drift",
        "adaptation.textual_inversion.slot_weight=0.1",
        "logger=none",
        "refinement=none",
        f"output.dir={out}",
        *FEW_STEPS,
    ]


@pytest.fixture(scope="module")
def trained(checkpoint, root, tmp_path_factory):
    """Exit status, standard output, errors and output folder of `train.py`; the folder is read-only."""
    folder = tmp_path_factory.mktemp("trained") / "adapters"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["x.py", *words(checkpoint, root, folder)])
        with redirect_stdout(io.StringIO()) as printed, redirect_stderr(io.StringIO()) as errors:
            status = run(train.train, config_dir=evaluate.CONFIGS, config_name="train")
    return status, printed.getvalue(), errors.getvalue(), folder


@pytest.fixture
def adapters(trained, tmp_path):
    """A copy of the output folder of `train.py`."""
    return shutil.copytree(trained[-1], tmp_path / "adapters")


@pytest.fixture
def command(checkpoint, root, tmp_path, monkeypatch, capsys):
    """Runs an entry point; gives the exit status and what was printed."""

    def call(entry, out: str, *overrides: str, flags: Sequence[str] = ()) -> tuple[int, str, str]:
        monkeypatch.setattr(
            sys, "argv", ["x.py", *flags, *words(checkpoint, root, tmp_path / out), *overrides]
        )
        task, name = (train.train, "train") if entry == "train" else (evaluate.evaluate, "evaluate")
        status = run(task, config_dir=evaluate.CONFIGS, config_name=name)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


def scores(folder: Path) -> dict[str, tuple[float, float]]:
    results = json.loads((folder / "results.json").read_text())
    return {name: (one["J"], one["F"]) for name, one in results["sequences"].items()}


def test_adapters_learned_before_or_while_tracking_give_the_same_numbers(
    command, trained, adapters, root, tmp_path
):
    status, printed, errors, _ = trained
    assert (status, errors) == (0, "")
    assert "prompt0 frame0: 4 steps" in printed
    assert {path.name for path in adapters.iterdir()} == {
        "ant.safetensors",
        "bee.safetensors",
        "config.yaml",
    }
    assert all(path.stat().st_size < 1e6 for path in adapters.iterdir())
    assert command("evaluate", "with", f"adaptation.checkpoints={adapters}")[0] == 0
    assert command("evaluate", "alone")[0] == 0
    given = read_mask(root / "Annotations" / "480p" / "ant" / "00000.png")
    assert np.array_equal(read_mask(tmp_path / "alone" / "masks" / "ant" / "00000.png"), given)
    assert scores(tmp_path / "with") == scores(tmp_path / "alone")
    results = json.loads((tmp_path / "alone" / "results.json").read_text())
    learned = results["sequences"]["ant"]["adaptation"]
    assert learned["seconds"] > 0
    assert learned["head_weights_steps"] == 4
    assert 0 <= learned["prompt0_frame0_slot_iou"] <= 1
    again = tmp_path / "alone" / "adapters"
    assert command("evaluate", "from", f"adaptation.checkpoints={again.parent}")[0] == 0, (
        "evaluate's own folder"
    )
    assert scores(tmp_path / "from") == scores(tmp_path / "alone")


def test_a_second_run_learns_what_is_missing(command, adapters):
    kept, gone = (adapters / f"{name}.safetensors" for name in ("ant", "bee"))
    stamp, before = kept.stat().st_mtime_ns, load_file(gone)
    gone.unlink()
    status, printed, _ = command("train", "adapters")
    assert status == 0
    assert "ant  already there" in printed
    assert kept.stat().st_mtime_ns == stamp
    after = load_file(gone)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_leaves_whole_adapters_only(checkpoint, root, tmp_path, how):
    out = tmp_path / "adapters"
    script = Path(train.__file__)
    call = [
        sys.executable,
        script,
        *words(checkpoint, root, out),
        "adaptation.textual_inversion.steps=100",
        "adaptation.textual_inversion.patience=100",
    ]
    process = subprocess.Popen(
        call, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    end = time.monotonic() + 200
    while not (out / "ant.safetensors").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    os.killpg(process.pid, how)
    assert process.wait(timeout=60) == (130 if how == signal.SIGTERM else -how)
    assert [path.name for path in out.glob("*.safetensors")] == ["ant.safetensors"], process.stderr.read()[
        -500:
    ]


def refuse(result, *parts):
    status, _, errors = result
    assert status == 2
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1, errors
    for part in parts:
        assert part in errors


def test_adapters_of_something_else_are_refused_with_what_differs(command, adapters):
    use = f"adaptation.checkpoints={adapters}"
    refuse(
        command("evaluate", "a", use, "backbone.timestep=99"), "ant.safetensors", "timestep is 99, it was 20"
    )
    refuse(
        command("evaluate", "b", use, "adaptation.head_weighting.views=1"),
        "adaptation.head_weighting.views is 1, it was 2",
    )
    refuse(command("evaluate", "c", use, "propagation.radius=3"), "propagation.radius is 3, it was 12")
    refuse(
        command("train", "adapters", "adaptation.textual_inversion.steps=5"),
        "adaptation.textual_inversion.steps is 5, it was 4",
    )
    refuse(
        command("evaluate", "d", "adaptation.checkpoints=/no/such"),
        "adaptation.checkpoints=/no/such",
        "train.py",
    )


def test_an_adapter_of_another_backbone_is_refused(command, adapters, tmp_path_factory, capsys):
    other = write_checkpoint(tmp_path_factory.mktemp("other"), seed=1)
    capsys.readouterr()  # a progress bar of the writing
    use = f"adaptation.checkpoints={adapters}"
    refuse(
        command("evaluate", "a", use, f"backbone.checkpoint={other}"), "ant.safetensors", "backbone.weights"
    )


def test_a_truncated_or_missing_adapter_is_named(command, adapters, tmp_path):
    use = f"adaptation.checkpoints={adapters}"
    path = adapters / "bee.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    refuse(command("evaluate", "a", use), "bee.safetensors", "truncated")
    path.unlink()
    refuse(command("evaluate", "b", use), "bee.safetensors", "no such adapter")
    results = json.loads((tmp_path / "b" / "results.json").read_text())
    assert list(results["sequences"]) == ["ant"], "what was done before is kept"


def test_where_a_loss_diverges_the_clip_is_tracked_unadapted(command, tmp_path, monkeypatch, caplog):
    exact, calls = TextualInversion.loss, []

    def broken(self, *args):
        calls.append(1)
        return exact(self, *args) * (float("nan") if len(calls) == 2 else 1)

    monkeypatch.setattr(TextualInversion, "loss", broken)
    status, printed, _ = command("evaluate", "out")
    assert status == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "TextualInversion diverged at step 2" in results["sequences"]["ant"]["warning"]
    assert "warning" not in results["sequences"]["bee"]
    assert "ant: not adapted" in caplog.text
    assert "ant: not adapted" in printed


def test_where_head_weights_diverge_in_training_the_adapter_says_so(command, tmp_path, monkeypatch, caplog):
    exact = HeadWeighting.logged
    monkeypatch.setattr(HeadWeighting, "logged", lambda self, loss: exact(self, loss * float("inf")))
    status, printed, _ = command("train", "adapters")
    assert status == 0
    assert "ant: not adapted: the loss of HeadWeighting diverged at step 1" in caplog.text
    assert "bee  not adapted" in printed
    monkeypatch.undo()
    with safe_open(tmp_path / "adapters" / "ant.safetensors", framework="pt") as file:
        assert list(file.keys()) == []
        assert "HeadWeighting" in file.metadata()["warning"]


def test_train_does_not_track():
    assert "predict" not in Path(train.__file__).read_text()


def refused(checkpoint, root, tmp_path, monkeypatch, capsys, entry, *overrides):
    """Runs an entry point whose groups of adaptation are chosen by `overrides`."""
    few = [word for word in words(checkpoint, root, tmp_path / "out") if "adaptation." not in word]
    monkeypatch.setattr(sys, "argv", ["x.py", *few, *overrides])
    task = train.train if entry == "train" else evaluate.evaluate
    status = run(task, config_dir=evaluate.CONFIGS, config_name=entry)
    return status, *capsys.readouterr()


HEADS, PROMPT = "adaptation.head_weighting", "adaptation.textual_inversion"


def test_with_nothing_to_learn_train_says_so(checkpoint, root, tmp_path, monkeypatch, capsys):
    nothing = ["adaptation/textual_inversion=none", "adaptation/head_weighting=uniform"]
    result = refused(checkpoint, root, tmp_path, monkeypatch, capsys, "train", *nothing)
    refuse(result, "adaptation=none", "adaptation=drift")


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ["adaptation/head_weighting=best"],
            ["adaptation/head_weighting=best", "allowed is fixed, learned, single, tiny, uniform"],
        ),
        (
            ["adaptation/head_weighting=single", f"{HEADS}.layer=nowhere"],
            [f"{HEADS}.layer=nowhere", LAYERS[0]],
        ),
        (["adaptation/head_weighting=single", f"{HEADS}.head=9"], [f"{HEADS}.head=9", "0 to 3"]),
        (["adaptation/head_weighting=fixed"], [f"{HEADS}.layer_weights=null"]),
        (["adaptation/head_weighting=tiny"], [f"{HEADS}.layer_weights=", LAYERS[1]]),
        ([f"{HEADS}.steps=0"], [f"{HEADS}.steps=0", "1 or more"]),
        ([f"{HEADS}.step=9"], [f"{HEADS}.step: no such key", f"did you mean {HEADS}.steps?"]),
        (
            ["adaptation/head_weighting=single", f"{HEADS}.laier=x"],
            [f"{HEADS}.laier: no such key", f"did you mean {HEADS}.layer?"],
        ),
        ([f"{PROMPT}.cross_layers=[nowhere]"], [f"{PROMPT}.cross_layers=nowhere", LAYERS[1]]),
        ([f"{PROMPT}.self_layer=nowhere"], [f"{PROMPT}.self_layer=nowhere", LAYERS[1]]),
        ([f"{PROMPT}.learning_rate=-1"], [f"{PROMPT}.learning_rate=-1"]),
        ([f"{PROMPT}.diffusion_weight=1", "noise=none"], [f"{PROMPT}.diffusion_weight=1", "noise=none"]),
        (["adaptation.seed=-1"], ["adaptation.seed=-1"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_a_wrong_option_is_named_with_what_is_allowed(
    checkpoint, root, tmp_path, monkeypatch, capsys, overrides, parts
):
    refuse(refused(checkpoint, root, tmp_path, monkeypatch, capsys, "evaluate", *overrides), *parts)


def test_train_names_a_wrong_option_before_anything_is_learned(
    checkpoint, root, tmp_path, monkeypatch, capsys
):
    wrong = ["adaptation/head_weighting=fixed"]
    refuse(
        refused(checkpoint, root, tmp_path, monkeypatch, capsys, "train", *wrong), f"{HEADS}.layer_weights"
    )
    assert not list(tmp_path.glob("out/*.safetensors"))


def test_an_ablation_ends_with_a_table_of_its_configurations(checkpoint, root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "x.py",
            "-m",
            "experiment=glob(ablation/*)",
            "data=davis",
            f"data.root={root}",
            "data.sequences=[bee]",
            f"backbone.checkpoint={checkpoint}",
            "logger=none",
            "output.report=false",
            "output.attention=false",
            f"output.dir={tmp_path / 'sweep'}",
        ],
    )
    assert run(evaluate.evaluate, config_dir=evaluate.CONFIGS, config_name="evaluate") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = (tmp_path / "sweep" / "summary.csv").read_text().splitlines()
    assert lines[0] == "configuration,folder,J,F,J&F,seconds_per_frame,adaptation_seconds"
    ablations = sorted(path.stem for path in (evaluate.CONFIGS / "experiment" / "ablation").glob("*.yaml"))
    rows = [line.split(",") for line in lines[1:]]
    assert [row[0] for row in rows] == [f"experiment=ablation/{name}" for name in ablations]
    assert len(rows) == 9
    for row in rows:
        assert 0 <= float(row[4]) <= 1
        learns = any(part in row[0] for part in ("heads", "text", "all"))
        assert (float(row[6]) > 0) == learns
    assert "summary.csv" in printed.out
