"""Several processes that share a run's clips."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from examples import moving_square, write_davis
from hypothesis import given
from hypothesis import strategies as st
from wandb_files import offline_runs

import evaluate
from drift import command_line
from drift.processes import longest_first

CLIPS = {name: moving_square(frames, name=name) for name, frames in (("ant", 5), ("bee", 4))}
DDP = ["trainer=ddp", "trainer.accelerator=cpu"]


@pytest.fixture
def words(checkpoint, tmp_path):
    root = write_davis(tmp_path / "data", CLIPS)
    return [
        "data=davis",
        f"data.root={root}",
        f"backbone.checkpoint={checkpoint}",
        "backbone.layers=[up_blocks.2.attentions.0]",
        "logger=none",
        "refinement=grabcut",
        "output.attention=false",
    ]


def run(script: Path | str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, script, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(evaluate.__file__).parent)},
        capture_output=True,
        text=True,
        timeout=280,
    )


@given(lengths=st.lists(st.integers(1, 500), max_size=40), shares=st.integers(1, 6))
def test_every_clip_is_dealt_once_and_evenly(lengths, shares):
    dealt = longest_first(lengths, shares)
    assert sorted(place for one in dealt for place in one) == list(range(len(lengths)))
    frames = [sum(lengths[place] for place in one) for one in dealt]
    assert max(frames) - min(frames) <= max(lengths, default=0)
    for one in dealt:
        own = [lengths[place] for place in one]
        assert own == sorted(own, reverse=True)


def test_processes_merge_their_results_also_where_there_are_more_than_clips(words, tmp_path, monkeypatch):
    alone, out = tmp_path / "alone", tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *words, f"output.dir={alone}"])
    assert command_line.run(evaluate.evaluate, config_dir=evaluate.CONFIGS, config_name="evaluate") == 0
    logged = ["trainer.devices=3", "logger=wandb", "logger.mode=offline"]
    done = run(evaluate.__file__, *words, *DDP, *logged, f"output.dir={out}")
    assert done.returncode == 0, done.stderr
    scores = []
    for folder in (alone, out):
        with (folder / "results.csv").open() as file:
            scores.append([(row["sequence"], row["J"], row["F"]) for row in csv.DictReader(file)])
    assert scores[0] == scores[1]
    (dashboard,) = offline_runs(out)  # of all processes' clips
    for name in CLIPS:
        assert len(dashboard.values(f"{name}/J&F")) == 1
        assert len(dashboard.values(f"{name}/overlay")) == 1
    report = (out / "report.html").read_text("utf-8")
    assert all(f'data-clip="{name}"' in report for name in CLIPS)


def test_a_process_that_is_killed_ends_the_run_with_one_line(words, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(
        "import os, signal, sys\n"
        "import evaluate\n"
        "from drift.command_line import run\n"
        "from drift.module import TrackingModule\n"
        "step = TrackingModule.predict_step\n"
        "def predict_step(self, clip, batch_idx=0):\n"
        "    if os.environ.get('LOCAL_RANK') == '1':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, clip, batch_idx)\n"
        "TrackingModule.predict_step = predict_step\n"
        "sys.exit(run(evaluate.evaluate, config_dir=evaluate.CONFIGS, config_name='evaluate'))\n"
    )
    done = run(script, *words, *DDP, "trainer.devices=2", f"output.dir={tmp_path / 'out'}")
    assert done.returncode == 2
    assert "error: process 1 of 2 was killed by signal 9" in done.stderr


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_NTASKS"])
def test_processes_that_something_else_starts_need_one_folder(words, tmp_path, monkeypatch, capsys, variable):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "2")
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *words, *DDP])
    assert command_line.run(evaluate.evaluate, config_dir=evaluate.CONFIGS, config_name="evaluate") == 2
    errors = capsys.readouterr().err
    assert re.match(r"error: output\.dir=\S+outputs/\S+: allowed is a given folder", errors)
    assert errors.count("\n") == 1
