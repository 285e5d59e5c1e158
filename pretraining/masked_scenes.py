"""Generated scenes with exact masks and prompts derived from corrupted masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from drift.refinement.decoding import MASK_STRIDE, PromptTensors, stacked
from drift.refinement.sam_prompts import Prompts, PromptSettings, prompts_of
from pretraining.corruption import corrupted
from pretraining.pictures import Cutout
from pretraining.scenes import EndlessScenes, imagine, render

__all__ = ["MaskedBatch", "MaskedSceneDataset"]

OBJECTS = 4  # prompts a scene
_ASPECTS = ((9, 16), (9, 16), (3, 4), (1, 1), (16, 9))  # heights and widths, one for each batch
_TOKENS = (50, 130)  # a tracker's, across the longer side
_TEXTURED = 0.25  # of the cut-outs show a piece of a wallpaper instead: shape and colours tell nothing
_SMALLEST, _LARGEST = 0.0015, 0.8  # of the picture: objects that are asked for
_STREAK = 9  # pixels of motion blur at most


class MaskedBatch(NamedTuple):
    """A batch of scenes with `OBJECTS` prompts each.

    Attributes:
        images: RGB in [0, 255], `(scenes, 3, height, width)`.
        prompts: of each scene's objects.
        truth: how much of each pixel on the masks' grid the object covers, `(scenes, objects, rows, columns)`.
        guess: the corrupted mask, likewise.
    """

    images: Tensor
    prompts: list[PromptTensors]
    truth: Tensor
    guess: Tensor


class MaskedSceneDataset(EndlessScenes[MaskedBatch]):
    """Scenes with prompts; `side` is the longer one of their pictures."""

    def batch(self, number: int) -> MaskedBatch:
        """Batch of the given number; all scenes have the same aspect ratio."""
        random = np.random.default_rng((self.seed, number))
        height, width = _ASPECTS[random.integers(len(_ASPECTS))]
        size = (self.side * height // max(height, width), self.side * width // max(height, width))
        scenes = [self._scene(size, random) for _ in range(self.batch_size)]
        images, prompts, truth, guess = zip(*scenes, strict=True)
        return MaskedBatch(torch.stack(images), list(prompts), torch.stack(truth), torch.stack(guess))

    def _scene(
        self, size: tuple[int, int], random: np.random.Generator
    ) -> tuple[Tensor, PromptTensors, Tensor, Tensor]:
        picture, covers = self._picture(size, random)
        grid = (size[1] // MASK_STRIDE, size[0] // MASK_STRIDE)
        covers = [cv2.resize(cover, grid, interpolation=cv2.INTER_AREA) for cover in covers]
        shown = [n for n, cover in enumerate(covers) if _SMALLEST < (cover > 0.5).mean() < _LARGEST]
        if not shown:
            return self._scene(size, random)
        guesses, truth, prompts = [], [], []
        for place in range(OBJECTS):
            own = covers[shown[place % len(shown)]]
            others = _highest(covers, shown[place % len(shown)])
            guess = corrupted(own, others, int(random.integers(*_TOKENS)), random)
            prompts.append(_prompts(guess, others, random))
            guesses.append(torch.from_numpy(guess))
            truth.append(torch.from_numpy(own))
        image = torch.from_numpy(picture).permute(2, 0, 1)
        return image, stacked(prompts, self.side), torch.stack(truth), torch.stack(guesses)

    def _picture(
        self, size: tuple[int, int], random: np.random.Generator
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """A scene as a camera sees it, `(height, width, 3)` float32 in [0, 255], and its objects' covers."""
        scene = imagine(self.cutouts, self.grounds, random, kinds=int(random.integers(1, 6)))
        objects = tuple(
            replace(placed, cutout=self._textured(placed.cutout, random))
            if random.random() < _TEXTURED
            else placed
            for placed in scene.objects
        )
        picture, covers = render(replace(scene, objects=objects), self.side, random)
        top, left = ((self.side - n) // 2 for n in size)
        crop = (slice(top, top + size[0]), slice(left, left + size[1]))
        return _filmed(picture[crop], random), [cover[crop] for cover in covers]

    def _textured(self, cutout: Cutout, random: np.random.Generator) -> Cutout:
        height, width = cutout.rgba.shape[:2]
        ground = self.grounds[int(random.integers(len(self.grounds)))]
        scale = random.uniform(1, 2) * max(height / ground.shape[0], width / ground.shape[1])
        if scale > 1:
            ground = cv2.resize(ground, None, fx=scale, fy=scale)
        top, left = (
            int(random.integers(a - b + 1)) for a, b in zip(ground.shape, (height, width), strict=False)
        )
        colours = ground[top : top + height, left : left + width]
        return replace(cutout, rgba=np.dstack([colours, cutout.rgba[..., 3]]))


def _highest(covers: Sequence[np.ndarray], but: int) -> np.ndarray:
    rest = [cover for number, cover in enumerate(covers) if number != but]
    return np.max(rest, axis=0) if rest else np.zeros_like(covers[but])


def _prompts(guess: np.ndarray, others: np.ndarray, random: np.random.Generator) -> Prompts:
    """Of any numbers of points, on as many places."""
    usual = PromptSettings(seed=int(random.integers(2**31)), margin=random.uniform(0, 0.12))
    prompts = prompts_of(guess, others, usual)
    if random.random() < 0.3:
        dropped = random.random(len(prompts.labels)) < 0.5
        prompts = replace(prompts, labels=np.where(dropped, -1, prompts.labels))
    return prompts


def _filmed(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Randomly adds motion blur or compression artefacts."""
    if random.random() < 0.25:
        length = int(random.integers(3, _STREAK + 1))
        turn = cv2.getRotationMatrix2D(((length - 1) / 2,) * 2, random.uniform(0, 180), 1)
        line = np.zeros((length, length), np.float32)
        line[length // 2] = 1
        kernel = cv2.warpAffine(line, turn, (length, length))
        picture = cv2.filter2D(picture, -1, kernel / kernel.sum())
    coded = np.clip(picture * 255, 0, 255).astype(np.uint8)
    if random.random() < 0.4:
        _, file = cv2.imencode(".jpg", coded, [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(30, 90))])
        coded = cv2.imdecode(file, cv2.IMREAD_COLOR)
    return coded.astype(np.float32)
