"""Similarity of frames within and between clips: `python -m benchmarks.scene_cuts ROOT`.

ROOT is a folder in DAVIS-2016's layout. Reports the ratio that `is_scene_cut` compares with 0.8: the smallest one
within a clip, played forwards and backwards with every first, third and sixth frame, and the median and the largest one
of cuts from one clip to another.
"""

from __future__ import annotations

from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from benchmarks.measuring import arguments, report
from benchmarks.quality import composed, options_of_tracker
from datamodules.davis import Davis2016
from drift.command_line import build, keep_freed_memory
from drift.propagation import Tracker
from drift.propagation.motion import frame_similarity

__all__ = ["main", "ratios"]

_STEPS = (1, 3, 6)
_CUT_FROM, _CUT_TO = (10, 20, 30), 5  # frame indices


def ratios(keys: list[torch.Tensor]) -> list[float]:
    """Ratio of the similarities of consecutive pairs of frames, from keys `(heads, height, width, dim)` per frame."""
    similarities = [float(frame_similarity(later, earlier)) for earlier, later in pairwise(keys)]
    return [later / earlier for earlier, later in pairwise(similarities)]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder in DAVIS-2016's layout")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    config = composed()
    tracker = Tracker(build(config, "backbone"), **options_of_tracker(config))
    keys: dict[str, list[torch.Tensor]] = {}
    for clip in track(
        list(Davis2016(options.root).predict_dataloader()), description="clips", transient=True
    ):
        frames = (tracker.features([frame], [index])[0] for index, frame in enumerate(clip.frames))
        keys[clip.name] = [features.layers[0].keys[0] for features in frames]
    figures: dict[str, float | int | str] = {}
    for step in _STEPS:
        within = [ratios(of_clip[::sign]) for of_clip in keys.values() for sign in (step, -step)]
        figures[f"smallest ratio within a clip, step {step}"] = min(map(min, within))
    cuts = [
        ratios([first[index - 1], first[index], second[_CUT_TO]])[0]
        for first, second in permutations(keys.values(), 2)
        for index in _CUT_FROM
        if index < len(first) and len(second) > _CUT_TO
    ]
    figures |= {
        "cuts": len(cuts),
        "median ratio of cuts": float(np.median(cuts)),
        "largest ratio of cuts": max(cuts),
    }
    report("Similarity of a frame to the previous one, relative to that before", figures, options.json)


if __name__ == "__main__":
    main()
