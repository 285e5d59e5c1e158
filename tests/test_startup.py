"""What is imported before a configuration is composed and checked, and interrupts while it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate

ROOT = Path(evaluate.__file__).parent
HEAVY = {
    "torch",
    "lightning",
    "torchmetrics",
    "diffusers",
    "transformers",
    "wandb",
    "matplotlib",
    "cv2",
    "numpy",
    "scipy",
    "av",
    "PIL",
    "gradio",
}


def python(code: str, *words: str, check: bool = True, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=check,
        timeout=280,
        **options,
    )


@pytest.mark.parametrize("script", ["evaluate", "train", "demo"])
@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--help"], 0, "Main options"),
        (["--cfg", "job"], 0, "memory_frames: 3"),
        (["propagation.topk=3"], 2, "did you mean propagation.top_k?"),
        (["propagation.top_k=many"], 2, "propagation.top_k=many: allowed is"),
        (["experiment=drift", "backbone.layers=x"], 2, "backbone.layers=x: allowed is"),
        (["-m", "noise.ensemble=0,-1"], 2, "noise.ensemble=0: allowed is"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_configuration_is_composed_and_checked_before_anything_heavy_is_imported(
    script, words, status, said, tmp_path
):
    code = (
        "import json, sys\n"
        f"import {script}\n"
        f"sys.argv[0] = {script!r}\n"
        "def task(config): raise SystemExit(0)\n"
        f"{script}.{script} = task  # only wrong settings are under test\n"
        "try:\n"
        f"    status = {script}.main()\n"
        "except SystemExit as ended:\n"
        "    status = ended.code\n"
        "print(json.dumps([status, sorted(sys.modules)]))\n"
    )
    folder = [] if words[0].startswith("--") else [f"output.dir={tmp_path}"]
    done = python(code, *words, *folder)
    ended, modules = json.loads(done.stdout.splitlines()[-1])
    assert (ended or 0) == status, done.stderr
    assert said in done.stdout + done.stderr
    assert not HEAVY & set(modules)
    assert len(modules) < 700, "today 400; torch alone has 1500"


def test_importing_drift_imports_nothing_else():
    code = "import sys; before = set(sys.modules); import drift; print(*set(sys.modules) - before)"
    assert len(python(code).stdout.split()) < 10


@pytest.mark.parametrize(
    ("word", "said"), [("backbone.nonsense=1", ["2 True"]), ("seed=1", ["False", "2 True"])]
)
def test_garbage_is_not_collected_during_imports_but_after_an_error(word, said, tmp_path):
    code = (
        "import gc, drift.commands.evaluate as evaluate\n"
        "from drift.errors import DriftError\n"
        "def task(config):\n"
        "    print(gc.isenabled())\n"
        "    raise DriftError('nothing')\n"
        "evaluate.evaluate = task\n"
        "print(evaluate.main(), gc.isenabled())\n"
    )
    assert python(code, word, f"output.dir={tmp_path}").stdout.splitlines() == said


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("error", ["KeyboardInterrupt", "ImportError"])
def test_an_interrupt_while_modules_are_imported_is_one_line(sent, error):
    """An interrupted import of a C extension may raise ImportError instead of KeyboardInterrupt."""
    code = (
        "import builtins, os, sys, evaluate\n"
        "from drift.interrupts import interruptible\n"
        "genuine = builtins.__import__\n"
        "def importing(name, *rest):\n"
        "    if name == 'hydra':\n"
        "        try:\n"
        f"            os.kill(os.getpid(), {int(sent)})\n"
        "        except KeyboardInterrupt:\n"
        f"            raise {error}('numpy') from None\n"
        "    return genuine(name, *rest)\n"
        "builtins.__import__ = importing\n"
        "sys.exit(interruptible(evaluate.main))\n"
    )
    done = python(code, check=False)
    assert done.returncode == 130
    assert done.stderr == "interrupted; the files written so far are complete\n"
