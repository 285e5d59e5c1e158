"""Functions of all benchmarks: time and peak memory of a call, table and JSON of the figures."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from drift.stopwatch import Stopwatch

__all__ = [
    "InlineExecutor",
    "MemoryWatch",
    "arguments",
    "paired_seconds",
    "peak_process_bytes",
    "process_status",
    "report",
    "write_json",
]


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options of all benchmarks."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--runs", type=int, default=3, help="number of timed runs, of which the median is reported"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    return parser


def paired_seconds(calls: Mapping[str, Callable[[], object]], *, runs: int) -> dict[str, float]:
    """Median seconds of each call. Calls are timed in turn (A B A B), after a warm-up of each."""
    for call in calls.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def process_status() -> dict[str, int]:
    """Numbers in /proc/self/status on Linux: `VmRSS` and `VmHWM` (resident memory and its peak, kB), `Threads`."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    fields = (line.replace(":", "").split() for line in lines)
    return {field[0]: int(field[1]) for field in fields if len(field) > 1 and field[1].isdigit()}


def peak_process_bytes(module: str, *words: str) -> int:
    """Peak resident memory of `python -m module words` on Linux.

    Read from /proc, since `getrusage` includes the peak of the parent process.
    """
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]; "
        "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=False); "
        "from benchmarks.measuring import process_status; "
        "print('peak', process_status()['VmHWM'] * 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, module, *words], capture_output=True, text=True, check=True
    )
    return int(done.stdout.rsplit("peak ", 1)[1])


class InlineExecutor(ThreadPoolExecutor):
    """Runs what is submitted at once, in the calling thread."""

    def submit(self, function, /, *arguments, **options):  # type: ignore[no-untyped-def]
        """A future that is done."""
        future: Future = Future()
        future.set_result(function(*arguments, **options))
        return future


class MemoryWatch(Stopwatch):
    """A stopwatch that measures memory instead: the peak of what each stage allocates beside what it finds.

    On a GPU from PyTorch's allocator; on a CPU from its profiler, which sees one thread: use `InlineExecutor`.

    Attributes:
        bytes: largest peak of each stage so far.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.bytes: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Keeps the peak of the block for `name`."""
        if self.device is not None and self.device.type == "cuda":
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            yield
            peak = torch.cuda.max_memory_allocated(self.device) - before
        else:
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
                yield
            peak = _peak_of(profiled)
        self.bytes[name] = max(peak, self.bytes.get(name, 0))


def _peak_of(profiled: profile) -> int:
    assert profiled.profiler is not None
    results = profiled.profiler.kineto_results
    assert results is not None
    events = [event for event in results.events() if event.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        allocated += event.nbytes()  # type: ignore[attr-defined]
        peak = max(peak, allocated)
    return peak


def report(title: str, figures: Mapping[str, float | int | str], path: Path | None) -> None:
    """Prints the figures as a table and writes them as one flat JSON object."""
    table = Table(title=title, show_header=False)
    for name, value in figures.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)
    write_json(figures, path)


def write_json(figures: Mapping[str, float | int | str], path: Path | None) -> None:
    """Writes the figures as one flat JSON object, unless `path` is None."""
    if path is not None:
        path.write_text(json.dumps(dict(figures), indent=2) + "\n", encoding="utf-8")
