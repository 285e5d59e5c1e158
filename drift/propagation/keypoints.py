"""Points as labels: small discs that the kernel propagates, and positions computed from their heat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["TrackedPoint", "discs", "positions"]

_RADIUS = 3  # tokens; smaller discs are propagated less exactly (docs/own-video.md)
_WINDOW = 4  # tokens around the maximum whose centre of mass is the position


class TrackedPoint(NamedTuple):
    """Position of a point in a frame.

    Attributes:
        name: the point's name.
        x, y: pixel coordinates; integers are centres of pixels.
        confidence: in [0, 1].
    """

    name: str
    x: float
    y: float
    confidence: float


def discs(
    places: Sequence[tuple[float, float]], grid: tuple[int, int], stride: int
) -> Float[Tensor, "points rows columns"]:
    """A small disc for each point (x, y) in pixels: 1 at its centre, decreasing linearly to 0."""
    rows, columns = (torch.arange(n) * stride + (stride - 1) / 2 for n in grid)
    down = torch.tensor([y for _, y in places])[:, None] - rows
    right = torch.tensor([x for x, _ in places])[:, None] - columns
    # The centre of mass of a linear ramp is exact between tokens, too.
    tents = [(1 - distance.abs() / (stride * _RADIUS)).clamp(min=0) for distance in (down, right)]
    return tents[0][:, :, None] * tents[1][:, None, :]


def positions(heat: Float[Tensor, "points rows columns"], stride: int) -> list[tuple[float, float, float]]:
    """x, y and confidence of each point: centre of mass around the maximum, and the maximum itself.

    At the border of the frame the window is cut symmetrically, as the disc is.
    """
    rows, columns = heat.shape[1:]
    if not len(heat):
        return []
    best = heat.flatten(1).argmax(1)
    row, column = best // columns, best % columns
    size = 2 * _WINDOW + 1
    around = F.pad(heat, (_WINDOW,) * 4).unfold(1, size, 1).unfold(2, size, 1)
    window = around[torch.arange(len(heat), device=heat.device), row, column]
    steps = torch.arange(-_WINDOW, _WINDOW + 1, device=heat.device)
    down, right = torch.minimum(row, rows - 1 - row), torch.minimum(column, columns - 1 - column)
    window = window * (steps.abs() <= down[:, None])[:, :, None] * (steps.abs() <= right[:, None])[:, None]
    window = window / window.sum((1, 2), keepdim=True).clamp(min=1e-12)
    y = row + (window.sum(2) * steps).sum(1)
    x = column + (window.sum(1) * steps).sum(1)
    centre = (stride - 1) / 2
    peak = heat.flatten(1).amax(1).clamp(0, 1)
    return [
        (float(a) * stride + centre, float(b) * stride + centre, float(c))
        for a, b, c in zip(x, y, peak, strict=True)
    ]
