"""Points as labels: small discs that the kernel carries, and the positions that are read from what arrives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["TrackedPoint", "discs", "positions"]

_RADIUS = 3  # tokens: smaller discs are carried less exactly (docs/own-video.md)
_WINDOW = 4  # tokens around the highest one that say where a point is


class TrackedPoint(NamedTuple):
    """Where a point is in a frame.

    Attributes:
        name: by which it was given.
        x, y: in pixels, a pixel's centre at whole numbers.
        confidence: from 0, nowhere, to 1.
    """

    name: str
    x: float
    y: float
    confidence: float


def discs(
    places: Sequence[tuple[float, float]], grid: tuple[int, int], stride: int
) -> Float[Tensor, "points rows columns"]:
    """For each point, x and y in pixels, a small disc: 1 at its centre, falling to 0."""
    rows, columns = (torch.arange(n) * stride + (stride - 1) / 2 for n in grid)
    down = torch.tensor([y for _, y in places])[:, None] - rows
    right = torch.tensor([x for x, _ in places])[:, None] - columns
    # A tent along each axis: its centre of gravity is the point's own place, between tokens too.
    tents = [(1 - distance.abs() / (stride * _RADIUS)).clamp(min=0) for distance in (down, right)]
    return tents[0][:, :, None] * tents[1][:, None, :]


def positions(heat: Float[Tensor, "points rows columns"], stride: int) -> list[tuple[float, float, float]]:
    """Of each point x, y and confidence: the centre of gravity around its highest token, and that token's heat.

    What counts around the token ends at the same distance on both sides: at the frame's border a disc is cut off.
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
