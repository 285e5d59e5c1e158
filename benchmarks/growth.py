"""Growth of seconds and memory with the input: `python -m benchmarks.growth --figure docs/growth.png`.

One quantity at a time: frames, objects, lines of the frame, memory frames, top-k. What `Tracker` does besides the
backbone is measured, with the default propagation options and random tokens (stride 8, 4 heads of width 32), each point
in a process of its own. Memory is the peak beyond that of a process that only imports.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from benchmarks.measuring import arguments, process_status, report
from benchmarks.quality import composed, options_of_tracker
from drift.backbones.interface import Features
from drift.command_line import keep_freed_memory
from drift.noising.interface import Generators
from drift.propagation import Tracker

__all__ = ["AXES", "main", "measure"]

AXES: Mapping[str, tuple[float, ...]] = {
    "frames": (100, 1000, 10000),
    "objects": (1, 5, 20, 50),
    "lines": (240, 480, 720, 1080, 2160),
    "memory_frames": (1, 7, 14, 28),
    "top_k": (1, 5, 15, 50),
}
"""Values of each quantity. Frames are of 96 lines where their number grows, otherwise of 480."""

_POINT = {"frames": 16, "objects": 1, "lines": 480, "memory_frames": 7, "top_k": 5}


class RandomTokens:
    """A backbone whose tokens are random, and the same for all frames but for a little noise."""

    device, stride, batch, layers = torch.device("cpu"), 8, 1, {"random": 4}
    description: Mapping[str, object] = {}

    def __init__(self) -> None:
        self._tokens: torch.Tensor | None = None
        self._generator = torch.Generator().manual_seed(0)

    def features(
        self,
        frames: torch.Tensor,
        generator: Generators,
        *,
        prompt: torch.Tensor | None = None,
        cross: Collection[str] = (),
    ) -> list[Features]:
        """See `Backbone`."""
        rows, columns = frames.shape[2] // self.stride, frames.shape[3] // self.stride
        if self._tokens is None:
            self._tokens = torch.randn(1, 4, rows, columns, 32, generator=self._generator) * 3
        keys = self._tokens + 0.3 * torch.randn(1, 1, rows, columns, 32, generator=self._generator)
        return [Features("random", keys, keys, keys.permute(0, 2, 3, 1, 4).flatten(3))]


def measure(point: Mapping[str, Any]) -> dict[str, float]:
    """Median seconds per frame, once the memory is full, and the increase of the process's peak memory in MB."""
    keep_freed_memory()
    options = options_of_tracker(composed("data=sample"))
    options |= {name: point[name] for name in ("memory_frames", "top_k")} | {"long_term_frames": 0}
    tracker = Tracker(RandomTokens(), **options)
    lines = point["lines"]
    frame = np.zeros((lines, lines * 16 // 9, 3), np.uint8)
    mask = np.zeros(frame.shape[:2], np.uint8)
    for number, columns in enumerate(np.array_split(np.arange(frame.shape[1]), point["objects"]), start=1):
        mask[lines // 4 : lines // 2, columns[: max(len(columns) // 2, 1)]] = number
    before, seconds = process_status()["VmHWM"] / 1000, []
    for index in range(max(point["frames"], 2 * point["memory_frames"])):
        start = time.perf_counter()
        tracker.step(frame, mask if index == 0 else None).mask()
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(seconds[len(seconds) // 2 :]),
        "megabytes": process_status()["VmHWM"] / 1000 - before,
    }


def draw(figures: Mapping[str, Mapping[float, Mapping[str, float]]], path: Path) -> None:
    """One column per quantity: seconds per frame above, memory below."""
    figure, axes = plt.subplots(2, len(figures), figsize=(13, 5), layout="constrained", sharex="col")
    for column, (name, points) in enumerate(figures.items()):
        for row, (kind, label) in enumerate(
            (("seconds", "seconds per frame"), ("megabytes", "peak memory, MB"))
        ):
            axis = axes[row, column]
            axis.plot(list(points), [values[kind] for values in points.values()], "o-", color="#2a6f97")
            axis.set_ylim(0, 1.1 * max(values[kind] for values in points.values()))
            axis.set_xscale("log")
            axis.set_xticks(list(points), [f"{value:g}" for value in points])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            if column == 0:
                axis.set_ylabel(label)
        axes[1, column].set_xlabel(
            {"lines": "lines of a 16:9 frame", "top_k": "top-k"}.get(name, name.replace("_", " "))
        )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--figure", type=Path, help="write a picture to this file")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument(
        "--point", type=json.loads, help="measure this point only, as JSON, and print it as JSON"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.point:
        print(json.dumps(measure(_POINT | options.point)))
        return
    figures: dict[str, dict[float, dict[str, float]]] = {}
    for name in options.axes:
        for value in AXES[name]:
            point = json.dumps({name: value} | ({"lines": 96} if name == "frames" else {}))
            command = [
                sys.executable,
                "-m",
                "benchmarks.growth",
                "--threads",
                str(options.threads),
                "--point",
                point,
            ]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            figures.setdefault(name, {})[value] = json.loads(printed.splitlines()[-1])
            print(name, value, figures[name][value], flush=True)
    report(
        "Growth",
        {
            f"{name}={value:g}, {kind}": x
            for name, p in figures.items()
            for value, v in p.items()
            for kind, x in v.items()
        },
        options.json,
    )
    if options.figure:
        draw(figures, options.figure)


if __name__ == "__main__":
    main()
