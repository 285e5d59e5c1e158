"""What the prompt is optimised for (design 2.5), as pure functions of maps and labels."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["area_weighted_cross_entropy", "propagated_map_error"]

_LEAST = 1e-6  # of a probability: the logarithm of 0 has no gradient


def area_weighted_cross_entropy(
    maps: Float[Tensor, "batch slots rows columns"], labels: Float[Tensor, "batch slots rows columns"]
) -> Float[Tensor, ""]:
    """The mean over slots of each one's cross-entropy inside its own mask.

    Each slot counts the same, however small its object; a slot whose mask is empty in all views does not count.

    Args:
        maps: the probability of each slot; over slots they sum to 1.
        labels: the share of each slot.
    """
    surprise = -(labels * maps.clamp(min=_LEAST).log()).sum((0, 2, 3))
    area = labels.sum((0, 2, 3))
    present = area > 0
    return (surprise[present] / area[present]).mean()


def propagated_map_error(
    maps: Float[Tensor, "batch slots rows columns"],
    queries: Float[Tensor, "batch heads rows columns dim"],
    keys: Float[Tensor, "batch heads rows columns dim"],
    labels: Float[Tensor, "batch slots rows columns"],
) -> Float[Tensor, ""]:
    """The mean squared difference of labels and maps that a layer's own self-attention has spread.

    Args:
        maps: the probability of each slot, on the layer's grid.
        queries, keys: of the layer; its attention is the mean over heads.
        labels: the share of each slot, likewise.
    """
    values = maps.flatten(2).mT[:, None].expand(-1, queries.shape[1], -1, -1)
    spread = torch.nn.functional.scaled_dot_product_attention(
        queries.flatten(2, 3).float(), keys.flatten(2, 3).float(), values.float()
    )
    return (spread.mean(1).mT - labels.flatten(2)).square().mean()
