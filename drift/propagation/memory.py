"""The tracker's memory: frames whose mask was given stay for ever, of the others the last n (design 2.6)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

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

    @property
    def known(self) -> tuple[int, int]:
        """The number of label channels and of points that were known at this frame."""
        return self.labels[0].shape[-1], self.points[0].shape[-1]

    def labels_of(self, layer: int, known: tuple[int, int]) -> Tensor:
        """A layer's labels, then its points, of those `known` at an earlier frame.

        Objects that appeared later count as background.
        """
        channels, points = known
        labels, places = self.labels[layer], self.points[layer]
        background = labels[..., :1] + labels[..., channels:].sum(-1, keepdim=True)
        return torch.cat([background, labels[..., 1:channels], places[..., :points]], dim=-1)


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

    def epochs(self) -> list[tuple[tuple[int, int], list[RememberedFrame]]]:
        """Subsets of the memory by what its frames know, from the fewest objects to all of them.

        A frame that was remembered before an object appeared holds that object's pixels as background, so it abstains
        for that object. Each entry is a number of channels and points, and the frames that know all of them.
        """
        frames = self.frames()
        known = sorted({frame.known for frame in frames})
        return [(least, [frame for frame in frames if frame.known >= least]) for least in known]

    def add(self, frame: RememberedFrame) -> None:
        """Keeps a frame: for ever where its mask was given, else until `recent` newer ones have come."""
        (self._given if frame.given else self._recent).append(frame)
