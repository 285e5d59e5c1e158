"""Tunes one row of the quality table: `python -m benchmarks.tuning ROOT --row attention --frames 30`.

Features are read once a clip and kept. Then one option at a time is varied about the best found so far,
round after round, until nothing gains: each line is one setting, J&F as the mean over the clips' first
frames, and the seconds a frame that propagation takes.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measuring import arguments
from benchmarks.wrapping import WrappedBackbone
from benchmarks.yardsticks import ColourPatches, ImageNetFeatures
from datamodules.davis import Davis2016
from drift.backbone import Backbone, LayerReading, load_latent_diffusion
from drift.command_line import keep_freed_memory
from drift.metrics.davis import DavisScore
from drift.propagation import Tracker

__all__ = ["GRID", "main", "read_clips", "search", "try_options"]

GRID: dict[str, Sequence[Any]] = {
    "temperature": (0.5, 0.71, 1.41, 2.0),  # factors of the best so far
    "top_k": (2, 3, 5, 8, 12),
    "radius": (4, 5, 6, 7, 9, 12),
    "memory_frames": (4, 7, 14, 20),
}


@dataclass(frozen=True)
class ReadClip:
    """A clip's first frames, their truth, and what every layer read of them, in half precision."""

    name: str
    frames: list[np.ndarray]
    truth: list[np.ndarray]
    readings: list[list[LayerReading]]


class _Replayed(Backbone):
    """A backbone that repeats what was read, layer by layer as chosen."""

    device = torch.device("cpu")
    stride = 8

    def __init__(self, clip: ReadClip, layers: Sequence[str]) -> None:
        self._readings = iter(clip.readings)
        self._layers = layers

    def encode(self, frames: Tensor) -> Tensor:
        return frames

    def read(self, latents: Tensor, generator: torch.Generator, **prompt: Any) -> list[LayerReading]:
        readings = {reading.name: reading for reading in next(self._readings)}
        return [readings[name] for name in self._layers or readings]


def read_clips(backbone: Backbone, data: Davis2016, *, frames: int, seed: int = 0) -> list[ReadClip]:
    """The first `frames` frames of every clip, read as the tracker would."""
    read = []
    for clip in data.predict_dataloader():
        count = min(frames, len(clip))
        images = [clip.frames[index] for index in range(count)]
        kept: list[list[LayerReading]] = []
        tracker = Tracker(_Keeping(backbone, kept), memory_frames=0, seed=seed, radius=0, top_k=1)
        for index, image in enumerate(images):
            tracker.step(image, clip.given.get(index))
        read.append(ReadClip(clip.name, images, [clip.truth[index] for index in range(count)], kept))
    return read


class _Keeping(WrappedBackbone):
    """A backbone that keeps what is read, in half precision."""

    def __init__(self, backbone: Backbone, kept: list[list[LayerReading]]) -> None:
        super().__init__(backbone)
        self._kept = kept

    def read(self, latents: Tensor, generator: torch.Generator, **prompt: Any) -> list[LayerReading]:
        readings = super().read(latents, generator, **prompt)
        self._kept.append(
            [LayerReading(r.name, r.queries.half(), r.keys.half(), r.inputs.half()) for r in readings]
        )
        return readings


def try_options(
    clips: Sequence[ReadClip], layers: Sequence[str], options: dict[str, Any]
) -> tuple[float, float]:
    """J&F as the mean over clips, and seconds a frame for propagation."""
    score, start, frames = DavisScore([clip.name for clip in clips]), 0.0, 0
    for clip in clips:
        tracker = Tracker(_Replayed(clip, layers), **options)
        for index, frame in enumerate(clip.frames):
            began = time.perf_counter()
            mask = tracker.step(frame, clip.truth[0] if index == 0 else None).mask()
            start += time.perf_counter() - began
            truth = torch.from_numpy(clip.truth[index])
            score.update(
                mask, truth, sequence=clip.name, frame=index, frames=len(clip.frames) + 1, objects=(1,)
            )
        frames += len(clip.frames)
    return score.compute().j_and_f, start / frames


def search(
    clips: Sequence[ReadClip], layers: Sequence[str], start: dict[str, Any], *, rounds: int = 2
) -> Iterator[tuple[dict[str, Any], float, float]]:
    """Varies one option at a time about the best setting; yields every setting tried, J&F and seconds."""
    best = dict(start)
    top, seconds = try_options(clips, layers, best)
    yield dict(best), top, seconds
    tried = {json.dumps(best, sort_keys=True)}
    for _, (name, values) in itertools.product(range(rounds), GRID.items()):
        centre = dict(best)
        for value in values:
            options = centre | {name: round(centre[name] * value, 4) if name == "temperature" else value}
            if (key := json.dumps(options, sort_keys=True)) in tried:
                continue
            tried.add(key)
            result, seconds = try_options(clips, layers, options)
            yield dict(options), result, seconds
            if result > top:
                top, best = result, options


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder in DAVIS-2016's layout")
    parser.add_argument("--row", choices=("colour", "imagenet", "cosine", "attention"), default="attention")
    parser.add_argument("--checkpoint", default="embedded:tiny", help="of the model's rows")
    parser.add_argument(
        "--layers", default="up_blocks.1.attentions.0", help="a+b,c: first a and b together, then c"
    )
    parser.add_argument("--timestep", type=int, default=20)
    parser.add_argument("--noise", default="gaussian")
    parser.add_argument("--blocks", default="4", help="of EfficientNet-lite0, as --layers")
    parser.add_argument("--frames", type=int, default=30, help="of each clip, from its first")
    parser.add_argument("--sequences", type=lambda text: text.split(","), help="a,b: only these")
    parser.add_argument("--start", type=json.loads, default={}, help='options to start from, {"top_k": 3}')
    parser.add_argument("--rounds", type=int, default=2, help="0: only the setting to start from")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    data = Davis2016(options.root, sequences=options.sequences)
    start = {"affinity": "cosine", "heads": "joint", "temperature": 0.04} | {
        "top_k": 5,
        "radius": 7,
        "memory_frames": 7,
    }
    if options.row in ("colour", "attention"):
        start |= {"affinity": "attention", "temperature": 0.4 if options.row == "attention" else 0.02}
    results = []
    for label, layers, clips in _features(options, data):
        for tried, result, seconds in search(clips, layers, start | options.start, rounds=options.rounds):
            results.append({"features": label, **tried, "J&F": result, "seconds": seconds})
            print(f"{result:.4f}  {seconds:.2f} s  {label}  {tried}", flush=True)
    best = max(results, key=lambda one: one["J&F"])
    print(f"best: {best}")
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _features(options: Any, data: Davis2016) -> Iterator[tuple[str, list[str], list[ReadClip]]]:
    """Label, layers and clips of every choice of features that is to be searched."""
    if options.row == "colour":
        yield "patches", [], read_clips(ColourPatches(), data, frames=options.frames)
        return
    if options.row == "imagenet":
        for choice in options.blocks.split(","):
            blocks = [int(number) for number in choice.split("+")]
            yield f"blocks {choice}", [], read_clips(ImageNetFeatures(blocks), data, frames=options.frames)
        return
    choices = [choice.split("+") for choice in options.layers.split(",")]
    every = list(dict.fromkeys(layer for choice in choices for layer in choice))
    backbone = load_latent_diffusion(
        options.checkpoint, layers=every, timestep=options.timestep, noise=options.noise
    )
    clips = read_clips(backbone, data, frames=options.frames)
    for layers in choices:
        yield "+".join(layers), layers, clips


if __name__ == "__main__":
    main()
