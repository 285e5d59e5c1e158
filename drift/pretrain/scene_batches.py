"""Scenes as a training takes them: batches of two views each, numbered.

Scene `i` of a seed is always the same, so that a resumed training goes on where it stood.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from drift.pretrain.correspondence import seen_again
from drift.pretrain.pictures import Cutout
from drift.pretrain.scenes import Scene, imagine, moved, render

__all__ = ["SceneBatch", "SceneDataset"]

_CELL = 8
"""Pixels along a side of one latent."""


class SceneBatch(NamedTuple):
    """Several scenes.

    Attributes:
        views: two of each, `(scenes, 2, 3, side, side)` RGB in [-1, 1].
        captions: of each scene.
        names: of each scene's objects.
        seen_again: for each 8 x 8 cell of the first view where the second shows it, `(scenes, rows,
            columns, 2)` in x and y, in parts of the side; NaN where it does not.
    """

    views: Tensor
    captions: list[str]
    names: list[list[str]]
    seen_again: Tensor


class SceneDataset(Dataset[SceneBatch]):
    """Batches `first` to `first + length - 1` of a seed, of `batch_size` scenes each."""

    def __init__(
        self,
        cutouts: Sequence[Cutout],
        grounds: Sequence[np.ndarray],
        *,
        side: int,
        length: int,
        batch_size: int = 1,
        seed: int = 0,
        first: int = 0,
    ) -> None:
        self.cutouts, self.grounds = cutouts, grounds
        self.side, self.length, self.batch_size = side, length, batch_size
        self.seed, self.first = seed, first

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> SceneBatch:
        if not 0 <= index < self.length:
            raise IndexError(index)  # what ends a `for` loop over the batches
        numbers = range((self.first + index) * self.batch_size, (self.first + index + 1) * self.batch_size)
        views, positions, scenes = zip(*map(self._scene, numbers), strict=True)
        names = [sorted({placed.cutout.name for placed in scene.objects}) for scene in scenes]
        captions = [scene.caption for scene in scenes]
        return SceneBatch(torch.stack(views), captions, names, torch.stack(positions))

    def _scene(self, number: int) -> tuple[Tensor, Tensor, Scene]:
        random = np.random.default_rng((self.seed, number))
        first = imagine(self.cutouts, self.grounds, random)
        second = moved(first, random)
        image, covers = render(first, self.side, random)
        later, later_covers = render(second, self.side, random)
        positions = seen_again(first, second, covers, later_covers, grid=self.side // _CELL)
        views = torch.from_numpy(np.stack([image, later])).permute(0, 3, 1, 2) * 2 - 1
        return views, torch.from_numpy(positions), first
