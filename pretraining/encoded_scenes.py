"""Scenes whose pretrained features are computed once and kept on disk: a step of training then costs the rest only."""

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

SCENES = 4  # a batch
OBJECTS = 4  # prompted in each of them
_TOKENS = (70, 130)  # a tracker's, across the longer side
_STRENGTHS = (0.15, 1.0)  # of the corruption: most masks of a tracker are nearly right
_SHARP = 192  # pixels of a cut-out's longer side


class MaskedBatch(NamedTuple):
    """A batch of scenes with `OBJECTS` objects each.

    Attributes:
        strides: the encoder's features, see `TinyImageEncoder.strides`.
        truth: how much of each 2 x 2 pixels each object covers, `(scenes, objects, rows, columns)` in [0, 1].
        guess: corrupted masks on a grid of half that size, likewise.
    """

    strides: list[Tensor]
    truth: Tensor
    guess: Tensor


@torch.inference_mode()
def encode_scenes(
    encoder: TinyImageEncoder, pictures: Path, folder: Path, *, count: int, side: int, seed: int
) -> None:
    """Draws `count` batches of `SCENES` scenes, encodes them, and writes those that `folder` does not hold yet.

    Args:
        encoder: with pretrained stages.
        pictures: see `load_pictures`.
        side: of the scenes' longer side, in pixels.

    Raises:
        InputError: there are too few pictures.
    """
    missing = [number for number in range(count) if not _path(folder, number).exists()]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    cutouts, grounds = load_pictures(pictures, max_side=2 * _SHARP + 64)
    cutouts += [each for each in cutouts if max(each.rgba.shape) >= _SHARP]  # twice as often
    for number in track(missing, description="scenes", transient=True):
        random = np.random.default_rng((seed, number))
        size = drawn_size(side, random)
        scenes = [draw_scene(cutouts, grounds, size, random) for _ in range(SCENES)]
        images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
        strides = encoder.strides(TinySam.preprocess(images.float()))
        covers = [torch.from_numpy(np.round(scene.covers * 255).astype(np.uint8)) for scene in scenes]
        unfinished = _path(folder, number).with_suffix(".part")
        torch.save({"strides": [each.half() for each in strides], "covers": covers}, unfinished)
        unfinished.rename(_path(folder, number))


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:05}.pt"


class EncodedScenes(Dataset[MaskedBatch]):
    """Batches of a folder that `encode_scenes` wrote, in random order, flipped at random, with corrupted masks.

    Args:
        folder: of the batches.
        count: how many there are.
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
            raise IndexError(index)  # what ends a `for` loop over the batches
        number = self.first + index
        order = np.random.default_rng((self.seed, number // self.count)).permutation(self.count)
        random = np.random.default_rng((self.seed, self.count, number))
        stored = torch.load(_path(self.folder, order[number % self.count]), weights_only=True)
        flip = (lambda each: each.flip(-1)) if random.random() < 0.5 else (lambda each: each)
        truth, guess = zip(
            *(_masks(flip(covers).numpy(), random) for covers in stored["covers"]), strict=True
        )
        return MaskedBatch(
            [flip(each).contiguous(memory_format=torch.channels_last) for each in stored["strides"]],
            torch.from_numpy(np.stack(truth)),
            torch.from_numpy(np.stack(guess)),
        )


def _masks(covers: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`OBJECTS` true masks and as many corrupted ones."""
    exact = covers.astype(np.float32) / 255
    chosen = np.resize(random.permutation(len(exact)), OBJECTS)
    grid = tuple(2 * length // STRIDE for length in exact.shape[:0:-1])
    small = [cv2.resize(cover, grid, interpolation=cv2.INTER_AREA) for cover in exact]
    nothing = np.zeros_like(small[0])
    guesses = []
    for n in chosen:
        others = np.max(
            [*(each * (each + small[n] < 1.2) for m, each in enumerate(small) if m != n), nothing], 0
        )
        strength = random.uniform(*_STRENGTHS)
        guesses.append(corrupted(small[n], others, int(random.integers(*_TOKENS)), random, strength=strength))
    return exact[chosen], np.stack(guesses)
