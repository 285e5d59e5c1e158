"""The matching loss: what makes self-attention find what a view shows again in the other view of a scene.

Both views were composed, so it is known where in the second one each place of the first is seen again.
Attention from the first view's queries to the second one's keys, all heads' logits summed as when labels
are propagated, has to go there. No mask is used: which places belong to one object is not told.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from drift.pretrain.queries import Queries

__all__ = ["matching_loss"]


def matching_loss(queries: Queries, seen_again: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of the attention to the places where things are seen again.

    Args:
        queries: of self-attentions with keys tied to queries, `(2 * scenes, tokens, channels)` each or
            `(scenes, 2 * tokens, channels)`, the two views of a scene side by side.
        seen_again: `(scenes, rows, columns, 2)`, x and y in parts of the side, NaN where hidden.
        weights: `(scenes,)`.

    Returns:
        The mean over attentions and places; 0 where nothing is seen again.
    """
    losses = []
    for attention, projected in queries:
        both = projected.reshape(len(seen_again), 2, -1, projected.shape[-1])
        side = math.isqrt(both.shape[2])
        targets, found = _targets(_pooled(seen_again, side), side)
        with torch.autocast(projected.device.type, enabled=False):  # half precision's steps are too coarse
            first, second = both.float().unbind(1)
            logits = first @ second.mT / math.sqrt(projected.shape[-1] / attention.heads)
        misses = -(targets * logits.log_softmax(-1)).sum(-1)
        share = found * weights[:, None]
        losses.append((misses * share).sum() / share.sum().clamp(min=1e-6))
    return torch.stack(losses).mean()


def _pooled(seen_again: Tensor, side: int) -> Tensor:
    """On a coarser grid: the mean of a cell's parts, NaN where one of them is."""
    factor = seen_again.shape[1] // side
    return F.avg_pool2d(seen_again.permute(0, 3, 1, 2), factor).permute(0, 2, 3, 1)


def _targets(seen_again: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Bilinear shares of the second view's cells `(scenes, places, cells)`, and which places have any."""
    places = seen_again.flatten(1, 2) * side - 0.5
    found = places.isfinite().all(-1)
    places = places.nan_to_num().clamp(0, side - 1)
    cells = torch.arange(side, device=places.device)
    nearness = (1 - (places[..., None, :] - cells[:, None]).abs()).clamp(min=0)  # scenes, places, cells, xy
    columns, rows = nearness.unbind(-1)
    return (rows[..., :, None] * columns[..., None, :]).flatten(-2), found
