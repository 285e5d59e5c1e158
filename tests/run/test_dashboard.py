"""What a run hands to W&B, read back from the files of an offline run; and runs whose dashboard fails."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
from examples import few_steps, moving_square, write_davis
from PIL import Image
from wandb_files import offline_runs

import evaluate
from drift.command_line import run
from drift.image_files import read_mask
from drift.reporting.head_figure import draw_head_weights

CLIPS = {name: moving_square(frames, name=name) for name, frames in (("ant", 3), ("bee", 4))}


@pytest.fixture
def command(checkpoint, tmp_path, monkeypatch, capsys):
    """Runs `evaluate.py` with a dashboard; gives the exit status and what was printed."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "nobody"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    root = write_davis(tmp_path / "data", CLIPS)

    def call(*overrides: str, out: str = "out") -> tuple[int, str, str]:
        words = [
            *("data=davis", f"data.root={root}", f"backbone.checkpoint={checkpoint}"),
            *("backbone.layers=[up_blocks.2.attentions.0,up_blocks.1.attentions.0]", "refinement=none"),
            *("output.sampled_frames=3", f"output.dir={tmp_path / out}", *overrides),
        ]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *few_steps(words)])
        status = run(evaluate.evaluate, config_dir=evaluate.CONFIGS, config_name="evaluate")
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


ONE_CLIP = ("data.sequences=[ant]",)
ADAPTING = ("adaptation=drift", "adaptation.textual_inversion.steps=3", "adaptation.head_weighting.steps=4")


def test_all_that_there_is_to_see_is_in_the_offline_run(command, tmp_path):
    status, _, errors = command(*ADAPTING, "logger.mode=offline", "seed=5")
    assert (status, errors) == (0, "")
    (logged,) = offline_runs(tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert logged.exit_code == 0
    assert logged.config["seed"] == 5
    assert logged.config["propagation"]["top_k"] == results["config"]["propagation"]["top_k"]
    assert logged.config["versions"] == results["versions"]
    for name, told in results["sequences"].items():
        for score in ("J", "F", "J&F", "seconds_per_frame"):
            assert logged.values(f"{name}/{score}") == [pytest.approx(told[score])]
        assert logged.values(f"{name}/peak_memory_mb")[0] > 10
        steps = told["adaptation"]["head_weights_steps"]
        assert logged.values(f"{name}/adaptation/head_weights_steps") == [steps]
        for kind in ("attention", "head_weights"):
            (picture,) = logged.values(f"{name}/{kind}")
            assert Image.open(logged.files / picture["filenames"][0]).width > 100
        for kind in ("frames", "errors"):
            (pictures,) = logged.values(f"{name}/{kind}")
            assert len(pictures["filenames"]) == 3
            assert pictures["captions"][0] == "frame 0"
            assert all((logged.files / one).is_file() for one in pictures["filenames"])
        (video,) = logged.values(f"{name}/overlay")
        assert (logged.files / video["videos"][0]["path"]).read_bytes()[4:8] == b"ftyp"
        chart = next(key for row in logged.history for key in row if key.startswith(f"{name}/losses"))
        losses = json.loads((logged.files / logged.values(chart)[0]["path"]).read_text())
        assert {row[1] for row in losses["data"]} >= {"head_weights"}
    (table,) = logged.values("results")
    table = json.loads((logged.files / table["path"]).read_text())
    rows = {row[0]: dict(zip(table["columns"], row, strict=True)) for row in table["data"]}
    assert rows["bee"]["J&F"] == pytest.approx(results["sequences"]["bee"]["J&F"])
    for score in ("J", "F", "J&F", "seconds_per_frame", "adaptation_seconds"):
        assert logged.summary[score] == pytest.approx(results[score])


def test_how_many_pictures_are_logged_is_bounded(command, tmp_path):
    assert command("logger.mode=offline", "output.pictured_clips=1", "output.sampled_frames=2")[0] == 0
    (logged,) = offline_runs(tmp_path / "out")
    media = {key for row in logged.history for key, value in row.items() if isinstance(value, dict)}
    assert {key.split("/")[0] for key in media} == {"ant", "results"}
    assert len(logged.values("ant/frames")[0]["filenames"]) == 2


def masks(folder: Path) -> list[list]:
    return [read_mask(path).tolist() for path in sorted((folder / "masks").rglob("*.png"))]


def scores(folder: Path) -> list[tuple[str, ...]]:
    with (folder / "results.csv").open() as file:
        return [(row["sequence"], row["object"], row["J"], row["F"]) for row in csv.DictReader(file)]


def test_logging_changes_no_result(command, tmp_path):
    command("logger.mode=offline", out="logged")
    quiet = ("logger=none", "output.attention=false", "output.pictured_clips=0", "output.report=false")
    command(*quiet, out="quiet")
    assert masks(tmp_path / "logged") == masks(tmp_path / "quiet")
    assert scores(tmp_path / "logged") == scores(tmp_path / "quiet")
    assert not (tmp_path / "quiet" / "report.html").exists()
    assert not (tmp_path / "quiet" / "samples").exists()


def test_nobody_logged_in_means_offline(command, tmp_path):
    status, _, errors = command(*ONE_CLIP)
    assert (status, errors) == (0, "")
    assert len(offline_runs(tmp_path / "out")) == 1


def test_a_wrong_key_is_said_and_the_run_is_kept_offline(command, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "not a key")
    status, printed, errors = command("logger.mode=online", *ONE_CLIP)
    assert status == 0
    assert "J&F" in printed
    assert errors.startswith("warning: W&B did not start online")
    assert errors.count("\n") == 1
    (logged,) = offline_runs(tmp_path / "out")
    assert logged.exit_code == 0


def test_a_folder_that_cannot_be_written_is_said_and_nothing_else_happens(command, tmp_path):
    (tmp_path / "file").write_text("no folder")
    save = f"logger.save_dir={tmp_path / 'file' / 'w'}"
    status, printed, errors = command("logger.mode=offline", save, *ONE_CLIP)
    assert status == 0
    assert "J&F" in printed
    assert errors.startswith("warning: W&B cannot be used")
    assert len(errors.splitlines()) <= 2


@pytest.mark.parametrize("method", ["log_image", "log_hyperparams"])
def test_a_dashboard_that_fails_in_the_middle_is_said_once(command, tmp_path, monkeypatch, method):
    def fail(*arguments, **options):
        raise ConnectionError("network is unreachable")

    monkeypatch.setattr(f"lightning.pytorch.loggers.WandbLogger.{method}", fail)
    status, _, errors = command("logger.mode=offline")
    assert status == 0
    assert errors.count("network is unreachable") == 1
    assert (tmp_path / "out" / "report.html").is_file()
    assert len(scores(tmp_path / "out")) == 2


def test_a_dashboard_that_cannot_end_is_said(command, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise TimeoutError("upload took too long")

    monkeypatch.setattr("wandb.sdk.wandb_run.Run.finish", fail)
    status, _, errors = command("logger.mode=offline", *ONE_CLIP)
    monkeypatch.undo()
    assert status == 0
    assert "upload took too long" in errors
    assert errors.count("\n") == 1, errors
    assert command("logger.mode=offline", *ONE_CLIP, out="next")[::2] == (0, "")
    assert offline_runs(tmp_path / "next")


def test_a_report_that_cannot_be_written_stops_nothing(command, tmp_path, monkeypatch):
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    status, _, errors = command("logger=none", *ONE_CLIP)
    assert status == 0
    assert errors.startswith("warning: no report.html (")
    assert errors.count("\n") == 1


def test_head_weights_of_layers_with_different_numbers_of_heads():
    picture = draw_head_weights({"a": [0.1, 0.2], "b": [0.3, 0.2, 0.1, 0.1]}, title="weights")
    assert picture.mode == "RGB"
    assert picture.width > 300
