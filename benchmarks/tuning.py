"""Tunes the propagation options of a row of the quality table: `python -m benchmarks.tuning ROOT --row attention`.

Features are computed once per clip and kept in half precision. Then coordinate search: one option at a time is varied
around the best value so far. Each line is a setting with its J&F, the mean over the first frames of all clips, and the
seconds per frame without features.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measuring import arguments
from benchmarks.quality import composed
from benchmarks.yardsticks import ColourPatches, ImageNetFeatures
from datamodules.davis import Davis2016
from drift.backbones import Backbone, Features
from drift.command_line import build, keep_freed_memory
from drift.metrics.davis import DavisScore
from drift.noising.interface import Generators
from drift.propagation import Tracker
from drift.propagation.labels import pad_to_stride

__all__ = ["GRID", "START", "compute_features", "main", "score_options", "search"]

GRID: dict[str, Sequence[Any]] = {
    "temperature": (0.5, 0.71, 1.41, 2.0),  # factors of the best value so far
    "top_k": (2, 3, 5, 8, 12),
    "radius": (4, 5, 6, 7, 9, 12),
    "memory_frames": (4, 7, 14, 20),
}
_COMMON = {"heads": "joint", "top_k": 5, "radius": 7, "memory_frames": 7}
START: dict[str, dict[str, Any]] = {
    "colour": {**_COMMON, "affinity": "attention", "temperature": 0.02},
    "imagenet": {**_COMMON, "affinity": "cosine", "temperature": 0.04},
    "cosine": {**_COMMON, "affinity": "cosine", "temperature": 0.04},
    "attention": {**_COMMON, "affinity": "attention", "temperature": 0.1},
}
"""Options where the search of each row starts."""


@dataclass(frozen=True)
class ClipFeatures:
    """The first frames of a clip, their true masks and their features in half precision."""

    name: str
    frames: list[np.ndarray]
    truth: list[np.ndarray]
    features: list[list[Features]]
    stride: int


class _ComputedFeatures:
    """A backbone that returns computed features, frame by frame."""

    device, batch = torch.device("cpu"), 1
    description: Mapping[str, object] = {}

    def __init__(self, clip: ClipFeatures, layers: Sequence[str]) -> None:
        self.stride = clip.stride
        self.layers = {f.layer: f.queries.shape[1] for f in clip.features[0] if f.layer in layers}
        self._remaining = iter(clip.features)

    def features(
        self,
        frames: Tensor,
        generator: Generators,
        *,
        prompt: Tensor | None = None,
        cross: Collection[str] = (),
    ) -> list[Features]:
        return [layer for layer in next(self._remaining) if layer.layer in self.layers]


@torch.inference_mode()
def compute_features(
    backbone: Backbone, data: Davis2016, *, frames: int, seed: int = 0
) -> list[ClipFeatures]:
    """Features of the first `frames` frames of every clip."""
    computed = []
    for clip in data.predict_dataloader():
        count, generator = min(frames, len(clip)), torch.Generator().manual_seed(seed)
        images = [clip.frames[index] for index in range(count)]
        features = []
        for image in images:
            tensor = torch.from_numpy(image).permute(2, 0, 1)[None].to(backbone.device).float() / 255
            layers = backbone.features(pad_to_stride(tensor, backbone.stride), generator)
            features.append([_halved(layer) for layer in layers])
        truth = [clip.truth[index] for index in range(count)]
        computed.append(ClipFeatures(clip.name, images, truth, features, backbone.stride))
    return computed


def _halved(layer: Features) -> Features:
    return Features(layer.layer, *(x.half().cpu() for x in (layer.queries, layer.keys, layer.tokens)))


def score_options(
    clips: Sequence[ClipFeatures], layers: Sequence[str], options: Mapping[str, Any]
) -> tuple[float, float]:
    """J&F, the mean over clips, and seconds per frame without features."""
    score, seconds, frames = DavisScore([clip.name for clip in clips]), 0.0, 0
    for clip in clips:
        tracker = Tracker(_ComputedFeatures(clip, layers), **options)
        for index, frame in enumerate(clip.frames):
            start = time.perf_counter()
            mask = tracker.step(frame, clip.truth[0] if index == 0 else None).mask()
            seconds += time.perf_counter() - start
            truth = torch.from_numpy(clip.truth[index])
            score.update(
                mask, truth, sequence=clip.name, frame=index, frames=len(clip.frames) + 1, objects=(1,)
            )
        frames += len(clip.frames)
    return score.compute().j_and_f, seconds / frames


def search(
    clips: Sequence[ClipFeatures], layers: Sequence[str], start: Mapping[str, Any], *, rounds: int = 2
) -> Iterator[tuple[dict[str, Any], float, float]]:
    """Coordinate search over `GRID`; yields each setting with its J&F and seconds per frame."""
    best = dict(start)
    top, seconds = score_options(clips, layers, best)
    yield dict(best), top, seconds
    seen = {json.dumps(best, sort_keys=True)}
    for _, (name, values) in itertools.product(range(rounds), GRID.items()):
        centre = dict(best)
        for value in values:
            options = centre | {name: round(centre[name] * value, 5) if name == "temperature" else value}
            if (key := json.dumps(options, sort_keys=True)) in seen:
                continue
            seen.add(key)
            result, seconds = score_options(clips, layers, options)
            yield dict(options), result, seconds
            if result > top:
                top, best = result, options


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder in DAVIS-2016's layout")
    parser.add_argument("--row", choices=START, default="attention")
    parser.add_argument(
        "--layers", default="up_blocks.1.attentions.0", help="a+b,c: layers a and b together, then c"
    )
    parser.add_argument("--blocks", default="4", help="blocks of EfficientNet-lite0, in the form of --layers")
    parser.add_argument("--frames", type=int, default=30, help="number of frames per clip, from its first")
    parser.add_argument("--sequences", type=lambda text: text.split(","), help="a,b: only these clips")
    parser.add_argument("--start", type=json.loads, default={}, help='initial options, {"top_k": 3}')
    parser.add_argument("--rounds", type=int, default=2, help="rounds of the search; 0: the initial options")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as backbone.timestep=100")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    data = Davis2016(options.root, sequences=options.sequences)
    results = []
    for layers, clips in _choices(options, data):
        start = START[options.row] | options.start
        for setting, result, seconds in search(clips, layers, start, rounds=options.rounds):
            label = "+".join(layers)
            results.append({"features": label, **setting, "J&F": result, "seconds": seconds})
            print(f"{result:.4f}  {seconds:.2f} s  {label}  {setting}", flush=True)
    print(f"best: {max(results, key=lambda result: result['J&F'])}")
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _choices(options: Any, data: Davis2016) -> Iterator[tuple[list[str], list[ClipFeatures]]]:
    """Layers and features of each choice to be searched."""
    if options.row == "colour":
        yield ["patches"], compute_features(ColourPatches(), data, frames=options.frames)
    elif options.row == "imagenet":
        for choice in options.blocks.split(","):
            backbone = ImageNetFeatures([int(number) for number in choice.split("+")])
            yield list(backbone.layers), compute_features(backbone, data, frames=options.frames)
    else:
        choices = [choice.split("+") for choice in options.layers.split(",")]
        union = list(dict.fromkeys(itertools.chain(*choices)))
        config = composed(f"backbone.layers=[{','.join(union)}]", *options.overrides)
        clips = compute_features(build(config, "backbone"), data, frames=options.frames)
        for layers in choices:
            yield layers, clips


if __name__ == "__main__":
    main()
