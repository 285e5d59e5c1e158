"""train.py, and evaluate.py with what it learned, on small clips and a small random model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import moving_square, write_checkpoint, write_davis
from safetensors.torch import load_file

import evaluate
import train
from drift.adaptation import textual_inversion
from drift.adaptation.head_weighting import HeadLearning
from drift.command_line import run
from drift.image_files import read_mask

LAYERS = ["up_blocks.2.attentions.0", "up_blocks.2.attentions.1"]
BRIEF = [
    "adaptation.textual_inversion=true",
    "adaptation.steps=4",
    "adaptation.head_steps=4",
    "adaptation.views=2",
]


@pytest.fixture
def root(tmp_path):
    clips = {name: moving_square(frames, name=name) for name, frames in (("ant", 4), ("bee", 3))}
    return write_davis(tmp_path / "data", clips)


def words(checkpoint: Path, root: Path, out: Path) -> list[str]:
    return [
        "data=davis",
        f"data.root={root}",
        f"backbone.checkpoint={checkpoint}",
        f"backbone.layers=[{','.join(LAYERS)}]",
        "adaptation=drift",
        "adaptation.weights=null",
        "logger=none",
        "refinement=none",
        f"output.dir={out}",
        *BRIEF,
    ]


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


def test_adapters_learned_before_or_while_tracking_give_the_same_numbers(command, tmp_path):
    status, printed, errors = command("train", "adapters")
    assert (status, errors) == (0, "")
    assert "prompt0 frame0: 4 steps" in printed
    assert {path.name for path in (tmp_path / "adapters").iterdir()} == {
        "ant.safetensors",
        "bee.safetensors",
        "config.yaml",
    }
    assert all(path.stat().st_size < 1e6 for path in (tmp_path / "adapters").iterdir())
    assert command("evaluate", "with", f"adaptation.checkpoints={tmp_path / 'adapters'}")[0] == 0
    assert command("evaluate", "alone")[0] == 0
    assert scores(tmp_path / "with") == scores(tmp_path / "alone")
    results = json.loads((tmp_path / "alone" / "results.json").read_text())
    learned = results["sequences"]["ant"]["adaptation"]
    assert learned["seconds"] > 0
    assert learned["head_logits_steps"] == 4
    assert 0 <= learned["prompt0_frame0_slot_iou"] <= 1
    again = tmp_path / "alone" / "adapters"
    assert command("evaluate", "from", f"adaptation.checkpoints={again.parent}")[0] == 0, (
        "evaluate's own folder"
    )
    assert scores(tmp_path / "from") == scores(tmp_path / "alone")


def test_a_second_run_learns_what_is_missing(command, tmp_path):
    command("train", "adapters")
    kept, gone = (tmp_path / "adapters" / f"{name}.safetensors" for name in ("ant", "bee"))
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
        "adaptation.steps=800",
        "adaptation.patience=800",
    ]
    process = subprocess.Popen(
        call, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    end = time.monotonic() + 200
    while not (out / "ant.safetensors").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
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


def test_adapters_of_something_else_are_refused_with_what_differs(command, tmp_path):
    command("train", "adapters")
    use = f"adaptation.checkpoints={tmp_path / 'adapters'}"
    refuse(
        command("evaluate", "a", use, "backbone.timestep=99"), "ant.safetensors", "timestep is 99, it was 20"
    )
    refuse(command("evaluate", "b", use, "adaptation.views=1"), "adaptation.views is 1, it was 2")
    refuse(command("evaluate", "c", use, "propagation.radius=3"), "propagation.radius is 3, it was 5")
    refuse(command("train", "adapters", "adaptation.steps=5"), "adaptation.steps is 5, it was 4")
    refuse(
        command("evaluate", "d", "adaptation.checkpoints=/no/such"),
        "adaptation.checkpoints=/no/such",
        "train.py",
    )


def test_an_adapter_of_another_backbone_is_refused(command, tmp_path, tmp_path_factory, capsys):
    command("train", "adapters")
    other = write_checkpoint(tmp_path_factory.mktemp("other"), seed=1)
    capsys.readouterr()  # a progress bar of the writing
    use = f"adaptation.checkpoints={tmp_path / 'adapters'}"
    refuse(
        command("evaluate", "a", use, f"backbone.checkpoint={other}"), "ant.safetensors", "backbone.weights"
    )


def test_a_truncated_or_missing_adapter_is_named(command, tmp_path):
    command("train", "adapters")
    use = f"adaptation.checkpoints={tmp_path / 'adapters'}"
    path = tmp_path / "adapters" / "bee.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    refuse(command("evaluate", "a", use), "bee.safetensors", "truncated")
    path.unlink()
    refuse(command("evaluate", "b", use), "bee.safetensors", "no such adapter")
    results = json.loads((tmp_path / "b" / "results.json").read_text())
    assert list(results["sequences"]) == ["ant"], "what was done before is kept"


def test_where_the_loss_is_no_number_the_clip_is_tracked_unadapted(command, tmp_path, monkeypatch, caplog):
    exact = textual_inversion.PromptInversion.loss
    calls = []

    def broken(self, learned):
        calls.append(1)
        return exact(self, learned) * (float("nan") if len(calls) == 2 else 1)

    monkeypatch.setattr(textual_inversion.PromptInversion, "loss", broken)
    status, printed, _ = command("evaluate", "out")
    assert status == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "nan at step 1" in results["sequences"]["ant"]["warning"]
    assert "warning" not in results["sequences"]["bee"]
    assert "ant: not adapted" in caplog.text
    assert "ant: not adapted" in printed


def test_so_it_is_for_head_weights(command, tmp_path, monkeypatch):
    monkeypatch.setattr(HeadLearning, "loss", lambda self, theta: theta.sum() * float("inf"))
    assert command("evaluate", "out")[0] == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert all("head_logits" in one["warning"] for one in results["sequences"].values())


def test_with_nothing_to_learn_train_says_so(command):
    refuse(
        command("train", "a", "adaptation.textual_inversion=false", "adaptation.head_weighting=uniform"),
        "adaptation.head_weighting=uniform",
        "nothing to learn",
    )


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        (
            "adaptation.head_weighting=best",
            ["adaptation.head_weighting=best", "uniform, single, learned, fixed"],
        ),
        ("adaptation.head_weighting=single", ["adaptation.layer=None", LAYERS[0]]),
        ("adaptation.head_weighting=fixed", ["adaptation.weights=None"]),
        ("adaptation.weights={nowhere:1}", ["adaptation.weights=", LAYERS[1]]),
        ("adaptation.cross_layers=[nowhere]", ["adaptation.cross_layers=nowhere", LAYERS[1]]),
        ("adaptation.steps=0", ["adaptation.steps=0", "1 or more"]),
        ("adaptation.learning_rate=-1", ["adaptation.learning_rate=-1"]),
    ],
)
def test_a_wrong_option_is_named_with_what_is_allowed(command, override, parts):
    refuse(command("evaluate", "out", override), *parts)


def test_an_ablation_ends_with_a_table_of_its_configurations(command, tmp_path):
    status, printed, errors = command(
        "evaluate",
        "sweep",
        "experiment=glob(ablation/*)",
        "data.sequences=[bee]",
        "backbone.inversion_steps=2",
        flags=["-m"],
    )
    assert (status, errors) == (0, "")
    lines = (tmp_path / "sweep" / "summary.csv").read_text().splitlines()
    assert lines[0] == "configuration,folder,J,F,J&F,seconds_per_frame,adaptation_seconds"
    names = [line.split(",")[0] for line in lines[1:]]
    ablations = sorted(path.stem for path in (evaluate.CONFIGS / "experiment" / "ablation").glob("*.yaml"))
    assert names == [f"experiment=ablation/{name}" for name in ablations]
    assert len(names) == 9
    for line in lines[1:]:
        assert 0 <= float(line.split(",")[4]) <= 1
    assert "summary.csv" in printed


def test_masks_of_all_configurations_are_those_of_the_given_frame(command, root, tmp_path):
    command("evaluate", "out")
    first = read_mask(tmp_path / "out" / "masks" / "ant" / "00000.png")
    assert np.array_equal(first, read_mask(root / "Annotations" / "480p" / "ant" / "00000.png"))
