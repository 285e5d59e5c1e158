"""Scenes with features of the frozen encoder stages, computed once and stored on disk."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from drift.refinement.tiny_decoder import STRIDE
from drift.refinement.tiny_encoder import TinyImageEncoder
from drift.refinement.tiny_sam import TinySam
from pretraining.corruption import corrupted
from pretraining.masked_scenes import draw_scene, drawn_size
from pretraining.pictures import load_pictures

__all__ = ["OBJECTS", "SCENES", "EncodedScenes", "MaskedBatch", "encode_scenes"]

SCENES = 4  # per batch
OBJECTS = 4  # prompted per scene
_TOKENS = (70, 130)  # across the longer side, of corrupted masks
_STRENGTHS = (0.15, 1.0)  # of the corruption
_SHARP = 192  # pixels of the longer side, from which a cut-out is drawn twice as often


class MaskedBatch(NamedTuple):
    """A batch of scenes with `OBJECTS` objects each.

    Attributes:
        strides: the encoder's features, see `TinyImageEncoder.strides`.
        truth: fraction of each 2 x 2 pixels that an object covers, `(scenes, objects, rows, columns)` in [0, 1].
        guess: corrupted masks at half that resolution, in [0, 1].
    """

    strides: list[Tensor]
    truth: Tensor
    guess: Tensor


@torch.inference_mode()
def encode_scenes(
    encoder: TinyImageEncoder, pictures: Path, folder: Path, *, count: int, side: int, seed: int
) -> None:
    """Draws and encodes `count` batches of `SCENES` scenes; existing files in `folder` are kept.

    Args:
        encoder: encoder with pretrained stages.
        pictures: see `load_pictures`.
        folder: folder of the batches.
        count: number of batches.
        side: longer side of the scenes in pixels.
        seed: seed of the scenes.

    Raises:
        InputError: there are too few pictures.
    """
    missing = [number for number in range(count) if not _path(folder, number).exists()]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    cutouts, grounds = load_pictures(pictures, max_side=2 * _SHARP + 64)
    cutouts += [cutout for cutout in cutouts if max(cutout.rgba.shape) >= _SHARP]
    for number in track(missing, description="scenes", transient=True):
        random = np.random.default_rng((seed, number))
        size = drawn_size(side, random)
        scenes = [draw_scene(cutouts, grounds, size, random) for _ in range(SCENES)]
        images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
        strides = encoder.strides(TinySam.preprocess(images.float()))
        covers = [torch.from_numpy(np.round(scene.covers * 255).astype(np.uint8)) for scene in scenes]
        unfinished = _path(folder, number).with_suffix(".part")
        torch.save({"strides": [features.half() for features in strides], "covers": covers}, unfinished)
        unfinished.rename(_path(folder, number))


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.pt"


class EncodedScenes(Dataset[MaskedBatch]):
    """Batches written by `encode_scenes`, in random order, randomly flipped, with corrupted masks.

    Args:
        folder: folder of the batches.
        count: number of batches.
        length, seed, first: batches `first` to `first + length - 1` of a seed.
    """

    def __init__(
        self, folder: Path, count: int, *, length: int, seed: int = 0, first: int = 0, **_: int
    ) -> None:
        self.folder, self.count = folder, count
        self.length, self.seed, self.first = length, seed, first

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> MaskedBatch:
        if not 0 <= index < self.length:
            raise IndexError(index)
        number = self.first + index
        order = np.random.default_rng((self.seed, number // self.count)).permutation(self.count)
        random = np.random.default_rng((self.seed, self.count, number))
        stored = torch.load(_path(self.folder, order[number % self.count]), weights_only=True)
        flip = (lambda tensor: tensor.flip(-1)) if random.random() < 0.5 else (lambda tensor: tensor)
        truth, guess = zip(
            *(_masks(flip(covers).numpy(), random) for covers in stored["covers"]), strict=True
        )
        return MaskedBatch(
            [flip(features).contiguous(memory_format=torch.channels_last) for features in stored["strides"]],
            torch.from_numpy(np.stack(truth)),
            torch.from_numpy(np.stack(guess)),
        )


def _masks(covers: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """True and corrupted masks of `OBJECTS` random objects."""
    exact = covers.astype(np.float32) / 255
    chosen = np.resize(random.permutation(len(exact)), OBJECTS)
    grid = tuple(2 * length // STRIDE for length in exact.shape[:0:-1])
    small = [cv2.resize(cover, grid, interpolation=cv2.INTER_AREA) for cover in exact]
    nothing = np.zeros_like(small[0])
    guesses = []
    for n in chosen:
        others = np.max(
            [*(cover * (cover + small[n] < 1.2) for m, cover in enumerate(small) if m != n), nothing], 0
        )
        strength = random.uniform(*_STRENGTHS)
        guesses.append(corrupted(small[n], others, int(random.integers(*_TOKENS)), random, strength=strength))
    return exact[chosen], np.stack(guesses)
