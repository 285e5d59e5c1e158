"""Memory, open files and threads in a long run: `python -m benchmarks.soak --frames 10000`.

The sample clip is played forwards and backwards at a small size. Every `--interval` frames the tracker is given the
ground-truth mask with new object ids, and the oldest of three such sets of objects is removed. Masks, overlay and boxes
are written. Prints ten lines; the exit status is 1 if a quantity increases after the first fifth of the frames.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.long_clip import looped, reduced
from benchmarks.measuring import arguments, process_status, write_json
from benchmarks.quality import composed, options_of_tracker
from datamodules.sample import Sample
from drift.clip import Clip
from drift.command_line import build, keep_freed_memory
from drift.formats import SegmentedFrame, make_writers
from drift.propagation import Tracker

__all__ = ["main", "process_usage", "soak"]

_SETS = 3  # sets of objects that are tracked at the same time
_TOLERANCE = 1.02  # relative increase of memory that is ignored


def soak(frames: int, *, side: int, interval: int, folder: Path, device: str) -> Iterator[dict[str, float]]:
    """Tracks `frames` frames and yields figures after each tenth of them.

    Args:
        frames: number of frames.
        side: longer side of a frame in pixels.
        interval: number of frames between two given masks.
        folder: output folder.
        device: device of the backbone.

    Yields:
        `frames`, `ms_per_frame`, the figures of `process_usage`, and the numbers of objects and remembered frames.
    """
    (sample,) = Sample().predict_dataloader()
    pictures = [reduced(frame, side) for frame in sample.frames]
    masks = [reduced(sample.truth[index], side, mask=True) for index in range(len(pictures))]
    names = [f"{index:05d}" for index in range(frames)]
    clip = Clip("soak", [pictures[0]] * frames, names, given={0: masks[0]})
    config = composed("refinement=none")
    tracker = Tracker(build(config, "backbone", device=device), **options_of_tracker(config))
    writers = make_writers(["masks", "overlay", "boxes"], clip, folder)
    tracked_sets: deque[list[int]] = deque()
    next_id, start = 1, time.perf_counter()
    for index, place in enumerate(looped(len(pictures), frames)):
        given = None
        if index % interval == 0:
            if len(tracked_sets) == _SETS:
                for object_id in tracked_sets.popleft():
                    tracker.remove(object_id)
            given = np.zeros_like(masks[place])
            tracked_sets.append([])
            for shown in np.unique(masks[place])[1:]:
                given[masks[place] == shown] = next_id
                tracked_sets[-1].append(next_id)
                next_id = next_id % 254 + 1
        labels = tracker.step(pictures[place], given)
        mask = labels.mask().numpy()
        for writer in writers:
            writer.add(
                SegmentedFrame(index, names[index], index / 24, pictures[place], mask, labels.object_ids)
            )
        if (index + 1) % max(frames // 10, 1) == 0:
            usage = process_usage() | {"objects": len(labels.object_ids), "remembered": len(tracker.memory)}
            seconds, start = time.perf_counter() - start, time.perf_counter()
            yield {"frames": index + 1, "ms_per_frame": 1000 * seconds / max(frames // 10, 1)} | usage
    for writer in writers:
        writer.close()


def process_usage() -> dict[str, float]:
    """Resident memory in MB, number of open files and number of threads of this process (Linux)."""
    status = process_status()
    files = len(os.listdir("/proc/self/fd"))
    return {"megabytes": status["VmRSS"] / 1000, "files": files, "threads": status["Threads"]}


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=10_000, help="number of frames")
    parser.add_argument("--side", type=int, default=160, help="longer side in pixels")
    parser.add_argument("--interval", type=int, default=50, help="frames between two masks")
    parser.add_argument("--device", default="cpu", help="device of the backbone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"side": options.side, "interval": options.interval, "device": options.device}
        for row in soak(options.frames, folder=Path(folder), **sizes):
            rows.append(row)
            print(", ".join(f"{name} {value:.0f}" for name, value in row.items()), flush=True)
    early, late = rows[len(rows) // 5 - 1], rows[-1]
    write_json(
        {f"{name}_{when}": row[name] for when, row in (("early", early), ("late", late)) for name in row},
        options.json,
    )
    grown = [name for name in ("files", "threads") if late[name] > early[name]]
    grown += ["megabytes"] * (late["megabytes"] > _TOLERANCE * early["megabytes"])
    print(f"increases: {', '.join(grown)}" if grown else "no increase")
    return int(bool(grown))


if __name__ == "__main__":
    sys.exit(main())
