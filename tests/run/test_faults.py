"""Interrupted runs and a dashboard that fails. `tests/faults.py` interrupts more kinds of runs at random times."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from examples import moving_square, write_davis
from faults import Faults

ROOT = Path(__file__).parents[2]


def test_killed_processes_end_at_once_and_are_resumed_to_the_same_files(tmp_path):
    assert Faults(tmp_path).kill("processes", 1, signal.SIGKILL, 0.7) == []


def test_a_run_survives_the_death_of_the_dashboards_service(checkpoint, tmp_path):
    clips = {name: moving_square(3, name=name) for name in ("ant", "bee", "cat")}
    script = tmp_path / "run.py"
    script.write_text(
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from drift.commands import evaluate\n"
        "from drift.module import TrackingModule\n"
        "step = TrackingModule.predict_step\n"
        "def predict_step(self, clip, batch_idx=0):\n"
        "    if batch_idx == 1:\n"
        "        for stat in Path('/proc').glob('[0-9]*/stat'):\n"
        "            pid, name, fields = stat.read_text().replace('(', ')').split(')', 2)\n"
        "            if name == 'wandb-core' and int(fields.split()[1]) == os.getpid():\n"
        "                os.kill(int(pid), signal.SIGKILL)\n"
        "                print('killed')\n"
        "    return step(self, clip, batch_idx)\n"
        "TrackingModule.predict_step = predict_step\n"
        "sys.exit(evaluate.main())\n"
    )
    words = [
        *("data=davis", f"data.root={write_davis(tmp_path / 'data', clips)}", "logger.mode=offline"),
        *(f"backbone.checkpoint={checkpoint}", "backbone.layers=[up_blocks.2.attentions.0]"),
        *("adaptation=none", "refinement=none", f"output.dir={tmp_path / 'out'}"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("WANDB_SERVICE", None)  # set by other tests in this process
    done = subprocess.run(
        [sys.executable, str(script), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert "\nkilled\n" in done.stdout
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("warning: logging to the dashboard failed")
    assert done.stderr.count("\n") == 1, done.stderr
    assert set(json.loads((tmp_path / "out" / "results.json").read_text())["sequences"]) == set(clips)
