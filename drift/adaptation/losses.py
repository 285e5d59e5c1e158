"""What the prompt is optimised for (design 2.5), as pure functions of maps and labels."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor

__all__ = ["area_weighted_cross_entropy", "mean_attention", "propagated_map_error"]

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


def mean_attention(
    queries: Float[Tensor, "batch heads rows columns dim"],
    keys: Float[Tensor, "batch heads rows columns dim"],
) -> Float[Tensor, "batch places places"]:
    """A layer's own self-attention, softmax(Q Kᵀ / √dim), as the mean over its heads."""
    flat_queries, flat_keys = queries.flatten(2, 3).float(), keys.flatten(2, 3).float()
    return (flat_queries @ flat_keys.mT / math.sqrt(queries.shape[-1])).softmax(-1).mean(1)


def propagated_map_error(
    maps: Float[Tensor, "batch slots rows columns"],
    attention: Float[Tensor, "batch places places"],
    labels: Float[Tensor, "batch slots rows columns"],
) -> Float[Tensor, ""]:
    """The mean squared difference of labels and maps that a layer's self-attention has spread.

    Args:
        maps: the probability of each slot, on the layer's grid.
        attention: of each place to all.
        labels: the share of each slot, likewise.
    """
    spread = attention @ maps.flatten(2).mT
    return (spread - labels.flatten(2).mT).square().mean()
