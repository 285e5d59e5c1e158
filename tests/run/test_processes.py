"""Several processes that share a run's clips."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from examples import moving_square, replaced, write_davis
from hypothesis import given
from hypothesis import strategies as st
from wandb_files import offline_runs

import evaluate
from drift import command_line
from drift.processes import fitting_devices, longest_first

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
        "adaptation.textual_inversion.steps=2",
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


def test_processes_merge_their_results_and_are_no_more_than_clips(words, tmp_path, monkeypatch):
    alone, out = tmp_path / "alone", tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *words, f"output.dir={alone}"])
    assert command_line.run(evaluate.evaluate, config_dir=evaluate.CONFIGS, config_name="evaluate") == 0
    logged = ["trainer.devices=3", "logger=wandb", "logger.mode=offline"]
    done = run(evaluate.__file__, *replaced(words, [*DDP, *logged, f"output.dir={out}"]))
    assert done.returncode == 0, done.stderr
    assert "warning: trainer.devices=3: 2 used, as there are 2 clips" in done.stderr
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


@pytest.mark.parametrize(
    ("devices", "clips", "expected"),
    [(99, 1, 1), (99, 200, 3), (2, 200, 2), (1, 0, 1), ("auto", 1, "auto"), (-1, 1, -1), ([0, 1], 1, [0, 1])],
)
def test_there_are_no_more_processes_than_clips_and_cores(devices, clips, expected, monkeypatch, capsys):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert fitting_devices(devices, clips=clips) == expected
    assert ("trainer.devices=99" in capsys.readouterr().err) == (devices == 99)


def test_processes_of_torchrun_are_as_many_as_it_started(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert fitting_devices(99, clips=1) == 99


CHILD = """
import os, subprocess, sys, time
from drift.processes import end_with_parent
end_with_parent()
if "LOCAL_RANK" not in os.environ:
    environment = {**os.environ, "LOCAL_RANK": "1"}
    child = subprocess.Popen([sys.executable, sys.argv[0]], env=environment)
    print(child.pid, flush=True)
time.sleep(60)
"""


def test_processes_end_with_the_one_that_started_them(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(CHILD)
    environment = {**os.environ, "PYTHONPATH": str(Path(evaluate.__file__).parent)}
    environment.pop("LOCAL_RANK", None)
    parent = subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    time.sleep(1)
    os.kill(child, 0)  # alive
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline and is_running(child):
        time.sleep(0.1)
    assert not is_running(child)


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie that nobody waits for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
