"""The tracker's memory: frames whose mask was given stay for ever, of the others the last n (design 2.6)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from drift.options import whole_number

__all__ = ["Memory", "RememberedFrame"]


@dataclass(frozen=True)
class RememberedFrame:
    """Keys and labels of one frame.

    Attributes:
        index: the frame's place in the clip, from 0.
        keys: per layer, `(heads, height, width, dim)`.
        labels: per layer on the layer's grid, `(height, width, channels)`, background first.
    """

    index: int
    keys: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]

    def labels_of(self, layer: int, channels: int) -> Tensor:
        """The labels of a layer; objects that appeared after this frame have probability 0 in it."""
        labels = self.labels[layer]
        return F.pad(labels, (0, channels - labels.shape[-1]))


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

    def add(self, frame: RememberedFrame, *, given: bool) -> None:
        """Keeps a frame: for ever where its mask was `given`, else until `recent` newer ones have come."""
        (self._given if given else self._recent).append(frame)
