"""The tracker's memory: frames whose mask was given stay for ever, of the others the last n (design 2.6)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from drift.options import whole_number

__all__ = ["Memory", "RememberedFrame"]


@dataclass(frozen=True)
class RememberedFrame:
    """Keys and labels of one frame.

    Attributes:
        index: the frame's place in the clip, from 0.
        given: whether its mask or its points were given: it is kept for ever.
        keys: per layer, `(heads, height, width, dim)`.
        labels: per layer on the layer's grid, `(height, width, channels)`, background first.
        points: likewise, one channel for each point that is followed.
        noise: the state of the noise's generator before the frame was read, from which it can be read again.
    """

    index: int
    given: bool
    keys: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    points: tuple[Tensor, ...]
    noise: Tensor

    def labels_of(self, layer: int, channels: int, points: int) -> Tensor:
        """A layer's labels, then its points; those that came after this frame are nowhere in it."""
        labels, places = self.labels[layer], self.points[layer]
        return torch.cat(
            [F.pad(labels, (0, channels - labels.shape[-1])), F.pad(places, (0, points - places.shape[-1]))],
            dim=-1,
        )


class Memory:
    """The frames that a target attends to. Its size does not grow with the clip."""

    def __init__(self, recent: int) -> None:
        """`recent`: how many predicted frames are kept beside those whose mask was given; 0 or more."""
        whole_number("memory_frames", recent, minimum=0)
        self._given: list[RememberedFrame] = []
        self._recent: deque[RememberedFrame] = deque(maxlen=recent)

    def __len__(self) -> int:
        return len(self._given) + len(self._recent)

    def frames(self) -> list[RememberedFrame]:
        """Those whose mask was given, then the recent ones, oldest first."""
        return [*self._given, *self._recent]

    def add(self, frame: RememberedFrame) -> None:
        """Keeps a frame: for ever where its mask was given, else until `recent` newer ones have come."""
        (self._given if frame.given else self._recent).append(frame)
