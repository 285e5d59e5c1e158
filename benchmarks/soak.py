"""A long run whose objects come and go: `python -m benchmarks.soak --frames 10000`.

The sample clip is played forwards and backwards, small. Every `--interval` frames the objects of the frame's true mask
are given as new ones, and those given three times before are removed. Masks, overlay and boxes are written. A line
after each tenth of the frames tells what the process holds; the exit status is 1 if it grows after the first fifth.
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

from benchmarks.long_clip import reduced
from benchmarks.measuring import arguments, write_json
from benchmarks.quality import composed, options_of_tracker
from datamodules.sample import Sample
from drift.clip import Clip
from drift.command_line import build, keep_freed_memory
from drift.formats import SegmentedFrame, make_writers
from drift.propagation import Tracker

__all__ = ["held_by_process", "main", "soak"]

_ALIVE = 3  # times that objects are given before the first of them are removed
_GROWTH = 1.02  # of memory, that is no growth: the allocator's granularity


def soak(frames: int, *, side: int, interval: int, folder: Path, device: str) -> Iterator[dict[str, float]]:
    """Runs, and yields what the process holds after each tenth of the frames."""
    (sample,) = Sample().predict_dataloader()
    pictures = [reduced(frame, side) for frame in sample.frames]
    masks = [reduced(sample.truth[index], side, mask=True) for index in range(len(pictures))]
    there_and_back = [*range(len(pictures)), *range(len(pictures) - 2, 0, -1)]
    names = [f"{index:05d}" for index in range(frames)]
    clip = Clip("soak", [pictures[0]] * frames, names, given={0: masks[0]})
    config = composed("refinement=none")
    tracker = Tracker(build(config, "backbone", device=device), **options_of_tracker(config))
    writers = make_writers(["masks", "overlay", "boxes"], clip, folder)
    alive: deque[list[int]] = deque()
    next_id, start = 1, time.perf_counter()
    for index in range(frames):
        place = there_and_back[index % len(there_and_back)]
        given = None
        if index % interval == 0:
            if len(alive) == _ALIVE:
                for object_id in alive.popleft():
                    tracker.remove(object_id)
            given = np.zeros_like(masks[place])
            alive.append([])
            for shown in np.unique(masks[place])[1:]:
                given[masks[place] == shown] = next_id
                alive[-1].append(next_id)
                next_id = next_id % 254 + 1
        labels = tracker.step(pictures[place], given)
        mask = labels.mask().numpy()
        for writer in writers:
            writer.add(
                SegmentedFrame(index, names[index], index / 24, pictures[place], mask, labels.object_ids)
            )
        if (index + 1) % max(frames // 10, 1) == 0:
            held = held_by_process() | {"objects": len(labels.object_ids), "remembered": len(tracker.memory)}
            seconds, start = time.perf_counter() - start, time.perf_counter()
            yield {"frames": index + 1, "ms_per_frame": 1000 * seconds / max(frames // 10, 1)} | held
    for writer in writers:
        writer.close()


def held_by_process() -> dict[str, float]:
    """Resident memory in MB, open files and threads of this process (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    resident = int(status.split("VmRSS:")[1].split()[0]) / 1000
    threads = int(status.split("Threads:")[1].split()[0])
    return {"megabytes": resident, "files": len(os.listdir("/proc/self/fd")), "threads": threads}


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
    grown += ["megabytes"] * (late["megabytes"] > _GROWTH * early["megabytes"])
    print(f"grows: {', '.join(grown)}" if grown else "nothing grows")
    return int(bool(grown))


if __name__ == "__main__":
    sys.exit(main())
