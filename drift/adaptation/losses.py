"""Losses of test-time optimisation, as pure functions of maps and labels."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from drift.propagation.kernel import attention_logits

__all__ = ["area_weighted_cross_entropy", "mean_attention", "propagated_map_error"]

_FLOOR = 1e-6  # of a probability: log 0 has no gradient


def area_weighted_cross_entropy(
    maps: Float[Tensor, "batch slots rows columns"], labels: Float[Tensor, "batch slots rows columns"]
) -> Float[Tensor, ""]:
    """Mean over slots of the cross-entropy inside each slot's own mask, so that small objects count as large ones.

    Slots whose mask is empty in the whole batch are ignored.

    Args:
        maps: probability of each slot; sums to 1 over slots.
        labels: fraction of each slot in a token, in [0, 1].
    """
    cross_entropy = -(labels * maps.clamp(min=_FLOOR).log()).sum((0, 2, 3))
    area = labels.sum((0, 2, 3))
    present = area > 0
    return (cross_entropy[present] / area[present]).mean()


def mean_attention(
    queries: Float[Tensor, "batch heads rows columns dim"],
    keys: Float[Tensor, "batch heads rows columns dim"],
) -> Float[Tensor, "batch tokens tokens"]:
    """Self-attention of a layer, softmax(Q Kᵀ / √dim), averaged over heads; float32."""
    return attention_logits(queries.flatten(2, 3), keys.flatten(2, 3)).softmax(-1).mean(1)


def propagated_map_error(
    maps: Float[Tensor, "batch slots rows columns"],
    attention: Float[Tensor, "batch tokens tokens"],
    labels: Float[Tensor, "batch slots rows columns"],
) -> Float[Tensor, ""]:
    """Mean squared error between labels and maps propagated by self-attention.

    Args:
        maps: probability of each slot, on the grid of the layer.
        attention: self-attention of the layer, see `mean_attention`.
        labels: fraction of each slot in a token, on the same grid.
    """
    propagated = attention @ maps.flatten(2).mT
    return (propagated - labels.flatten(2).mT).square().mean()
