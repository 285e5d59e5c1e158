"""Interrupts runs at random times and resumes them: `python tests/faults.py --kills 20 --seed 0`.

The commands in `COMMANDS` are run in turn and interrupted by SIGKILL, SIGTERM or SIGINT. All processes of the run must
end within 10 seconds. After the same command is run to completion, its output must equal that of an uninterrupted run,
except for wall times. The exit status is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from examples import moving_square, write_davis  # noqa: E402

__all__ = ["COMMANDS", "Faults", "main", "outcome"]

_STEPS = ("adaptation=drift", "adaptation.textual_inversion.steps=6", "adaptation.head_weighting.steps=6")
_PLAIN = ("logger=none", "adaptation=none", "refinement=none", "output.report=false")
COMMANDS: dict[str, tuple[str, ...]] = {
    "evaluate": ("evaluate", "logger.mode=offline", "adaptation.textual_inversion.steps=40"),
    "processes": ("evaluate", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", *_PLAIN),
    "sweep": ("evaluate", "-m", "propagation.top_k=3,5", "hydra/launcher=basic", *_PLAIN),
    "train": ("train", *_STEPS, "logger=none"),
}
_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_SECONDS_TO_END = 10.0
_RUN = (
    "import sys\n"
    "from drift.interrupts import interruptible\n"
    "def main():\n"
    "    from drift.reporting import clip_output\n"
    "    clip_output._SAVED_EVERY = 0.3  # seconds, as the clips are short\n"
    "    from drift.commands import {0}\n"
    "    return {0}.main()\n"
    "sys.exit(interruptible(main))\n"
)


class Faults:
    """Runs the commands in `COMMANDS` on two small clips, with output folders in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        clips = {
            name: moving_square(frames, (48, 160), name=name) for name, frames in (("ant", 40), ("bee", 30))
        }
        self._data = write_davis(folder / "data", clips)
        self._uninterrupted: dict[str, tuple[dict[str, object], float]] = {}

    def start(self, name: str, out: Path) -> subprocess.Popen[str]:
        """Starts a command in a new process group."""
        entry, *words = COMMANDS[name]
        words += ["data=davis", f"data.root={self._data}", f"output.dir={out}"]
        if entry == "evaluate":
            words += ["output.resume=true", "output.formats=[masks,coco]", "output.attention=false"]
        script = self._folder / f"{entry}.py"  # Lightning starts the other processes from it
        script.write_text(_RUN.format(entry))
        with (self._folder / f"{out.name}.log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, str(script), *words],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                cwd=self._folder,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def uninterrupted(self, name: str) -> tuple[dict[str, object], float]:
        """Output and wall time in seconds of an uninterrupted run; see `outcome`."""
        if name not in self._uninterrupted:
            out, start = self._folder / name, time.monotonic()
            self._finish(name, out)
            self._uninterrupted[name] = outcome(out), time.monotonic() - start
        return self._uninterrupted[name]

    def kill(self, name: str, number: int, sent: signal.Signals, fraction: float) -> list[str]:
        """Interrupts a run and resumes it.

        Args:
            name: key in `COMMANDS`.
            number: number of the attempt, part of the name of the output folder.
            sent: signal sent to the main process.
            fraction: time of the signal, as a fraction of the wall time of an uninterrupted run.

        Returns:
            Error messages; empty if the output is that of an uninterrupted run.
        """
        expected, seconds = self.uninterrupted(name)
        out = self._folder / f"{name}-{number}"
        process = self.start(name, out)
        time.sleep(fraction * seconds)
        process.send_signal(sent)
        if not has_ended(process):
            return [f"processes still run after {_SECONDS_TO_END:g} s"]
        try:
            self._finish(name, out)
        except RuntimeError as error:
            return [str(error)]
        found = outcome(out)
        paths = sorted(expected.keys() | found.keys())
        return [f"{path} differs" for path in paths if expected.get(path) != found.get(path)]

    def _finish(self, name: str, out: Path) -> None:
        if status := self.start(name, out).wait():
            log = (self._folder / f"{out.name}.log").read_text()
            raise RuntimeError(f"exit status {status}: {log[-800:]}")


def has_ended(process: subprocess.Popen[str]) -> bool:
    """Whether all processes of the group end within 10 seconds; the others are killed."""
    deadline = time.monotonic() + _SECONDS_TO_END
    while time.monotonic() < deadline:
        process.poll()  # a zombie counts as one of the group
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return False


def outcome(folder: Path) -> dict[str, object]:
    """Contents of masks, annotations, adapters and `results.json` by path, without wall times.

    Raises:
        RuntimeError: the folder has none of these files.
    """
    patterns = ("**/masks/**/*.png", "**/coco/*.json", "**/*.safetensors")
    found: dict[str, object] = {
        str(path.relative_to(folder)): _content(path)
        for pattern in patterns
        for path in folder.glob(pattern)
        if "progress" not in path.parts
    }
    for path in folder.glob("**/results.json"):
        found[str(path.relative_to(folder))] = _without_times(json.loads(path.read_text()))
    if not found:
        raise RuntimeError(f"{folder}: no results")
    return found


def _content(path: Path) -> object:
    """Bytes of a file; tensors of an adapter, whose metadata contains wall times."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118


def _without_times(node: Any) -> Any:
    if isinstance(node, Mapping):
        ignored = ("seconds", "peak_memory", "output", "logger")
        return {k: _without_times(v) for k, v in node.items() if not any(word in k for word in ignored)}
    return node


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="number of kills; default %(default)s")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the times and signals; default %(default)s"
    )
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    options = parser.parse_args(words)
    draw, failed = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        faults = Faults(Path(folder))
        for number in range(options.kills):
            name = options.commands[number % len(options.commands)]
            sent, fraction = draw.choice(_SIGNALS), draw.random()
            wrong = faults.kill(name, number, sent, fraction)
            failed += bool(wrong)
            result = "; ".join(wrong[:3]) or "same files"
            print(f"{name}, {sent.name} at {fraction:.0%} of its time: {result}", flush=True)
    print(f"{options.kills - failed} of {options.kills} interrupted runs were resumed to the same files")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
