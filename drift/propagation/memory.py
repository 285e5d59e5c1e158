"""Memory of the tracker: frames with a given mask, older frames at an interval, and the newest frames.

See `docs/method.md`, "Memory".
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from drift.options import whole_number

__all__ = ["MEMORY_LABELS", "Memory", "RememberedFrame"]

MEMORY_LABELS = ("soft", "hard")
"""What the memory keeps of a frame's labels. `soft`: probabilities, as DINO and DIFT do. `hard`: each token's most
probable object or the background, one-hot, those of given masks included."""


@dataclass(frozen=True)
class RememberedFrame:
    """Keys and labels of a frame.

    Attributes:
        index: index of the frame in the clip, from 0.
        given: whether its mask or points were given.
        keys: keys of each layer, `(heads, height, width, dim)`.
        labels: labels on the grid of each layer, `(height, width, channels)`, background first.
        points: heat of the points on the grid of each layer, `(height, width, points)`.
    """

    index: int
    given: bool
    keys: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    points: tuple[Tensor, ...]

    @property
    def known(self) -> tuple[int, int]:
        """Numbers of label channels and of points known at this frame."""
        return self.labels[0].shape[-1], self.points[0].shape[-1]

    def labels_of(self, layer: int, known: tuple[int, int]) -> Tensor:
        """Labels, then points, of a layer, restricted to those `known` at an earlier frame.

        Objects that appeared later count as background.
        """
        channels, points = known
        labels, places = self.labels[layer], self.points[layer]
        background = labels[..., :1] + labels[..., channels:].sum(-1, keepdim=True)
        return torch.cat([background, labels[..., 1:channels], places[..., :points]], dim=-1)


class Memory:
    """Keys and labels of earlier frames. The number of frames is bounded.

    Args:
        recent: maximum number of the newest predicted frames, 0 or more; the oldest is dropped first.
        given: maximum number of frames with a given mask, 1 or more; the oldest is dropped first. The first given frame
            of each tracked object and point is never dropped, even if this exceeds the maximum.
        long_term: maximum number of predicted frames older than the recent ones, 0 or more; the oldest is dropped
            first.
        interval: frames between two long-term frames, 1 or more: those whose index is a multiple of it.

    Raises:
        OptionError: an argument is out of range.
    """

    def __init__(self, recent: int, given: int, long_term: int = 0, interval: int = 1) -> None:
        whole_number("memory_frames", recent, minimum=0)
        whole_number("given_frames", given, minimum=1)
        whole_number("long_term_frames", long_term, minimum=0)
        whole_number("long_term_interval", interval, minimum=1)
        self._limit, self._interval = given, interval
        self._given: list[RememberedFrame] = []
        self._long_term: deque[RememberedFrame] = deque(maxlen=long_term)
        self._recent: deque[RememberedFrame] = deque(maxlen=recent)

    def __len__(self) -> int:
        return len(self._given) + len(self._long_term) + len(self._recent)

    def frames(self) -> list[RememberedFrame]:
        """Frames with a given mask, long-term frames, then recent frames; each from oldest to newest."""
        return [*self._given, *self._long_term, *self._recent]

    def epochs(self) -> list[tuple[tuple[int, int], list[RememberedFrame]]]:
        """Subsets of the memory by what its frames know, from the fewest objects to all of them.

        A frame that was remembered before an object appeared holds that object's pixels as background, so it abstains
        for that object. Each entry is a number of channels and points, and the frames that know all of them.
        """
        frames = self.frames()
        known = sorted({frame.known for frame in frames})
        return [(least, [frame for frame in frames if frame.known >= least]) for least in known]

    def add(self, frame: RememberedFrame) -> None:
        """Adds a frame. Drops an older one if the maximum is exceeded."""
        if frame.given:
            self._given.append(frame)
            self._drop_given()
            return
        # A frame that leaves the recent ones; with none of them, the new frame itself.
        full = len(self._recent) == self._recent.maxlen
        old = next(iter(self._recent), frame) if full else None
        if old is not None and old.index % self._interval == 0:
            self._long_term.append(old)
        self._recent.append(frame)

    def forget(self, channel: int) -> None:
        """Removes the channel of an object from all frames; its probability goes to the background."""
        self._given = [_without(frame, channel) for frame in self._given]
        self._long_term = deque((_without(f, channel) for f in self._long_term), self._long_term.maxlen)
        self._recent = deque((_without(f, channel) for f in self._recent), self._recent.maxlen)
        self._drop_given()

    def _drop_given(self) -> None:
        """Drops the oldest given frames that added no object or point, until the maximum is met."""
        known = [(1, 0), *(frame.known for frame in self._given)]
        droppable = [i for i in range(len(self._given) - 1) if known[i + 1] == known[i]]
        dropped = droppable[: max(len(self._given) - self._limit, 0)]
        self._given = [frame for i, frame in enumerate(self._given) if i not in dropped]


def _without(frame: RememberedFrame, channel: int) -> RememberedFrame:
    if channel >= frame.known[0]:
        return frame  # remembered before the object appeared
    kept = [torch.cat([one[..., :channel], one[..., channel + 1 :]], -1) for one in frame.labels]
    for labels, one in zip(kept, frame.labels, strict=True):
        labels[..., 0] += one[..., channel]
    return replace(frame, labels=tuple(kept))
