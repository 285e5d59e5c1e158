"""Slots of a learned prompt: groups of tokens, one for each object and one for the background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from drift.propagation.kernel import attention_logits
from drift.propagation.labels import reweighted, unpooled

__all__ = ["SlotKeys", "slot_maps", "slot_probabilities", "weighted_by_slots"]

_FLOOR = 0.02  # of a probability: appearance alone never rules an object out


@dataclass(frozen=True)
class SlotKeys:
    """Keys of the slots in cross-attention layers.

    Attributes:
        keys: keys of all slots' tokens, by layer.
        object_ids: object of each slot, 0 for the background; every prompt has a slot for the background.
    """

    keys: Mapping[str, Float[Tensor, "heads slot_tokens dim"]]
    object_ids: tuple[int, ...]


def slot_maps(
    queries: Mapping[str, Float[Tensor, "batch heads rows columns dim"]],
    keys: Mapping[str, Float[Tensor, "heads slot_tokens dim"]],
    slots: int,
    grid: tuple[int, int],
) -> Float[Tensor, "batch slots grid_rows grid_columns"]:
    """Cross-attention maps of slots: the softmax over all slots' tokens, summed within each slot.

    The mean over heads and layers, interpolated to `grid`; sums to 1 over slots.

    Args:
        queries: queries of the cross-attention layers, each on its own grid, not yet scaled by 1/√dim.
        keys: keys of the slots' tokens in the same layers.
        slots: number of slots, which have the same number of tokens each.
        grid: rows and columns of the finest layer, or more.
    """
    maps = []
    for layer, layer_keys in keys.items():
        logits = attention_logits(queries[layer].flatten(2, 3), layer_keys)
        per_slot = logits.softmax(-1).unflatten(-1, (slots, -1)).sum(-1).mean(1)
        per_slot = per_slot.unflatten(1, queries[layer].shape[2:4]).permute(0, 3, 1, 2)
        maps.append(unpooled(per_slot, grid))
    return torch.stack(maps).mean(0)


def slot_probabilities(
    queries: Mapping[str, Float[Tensor, "batch heads rows columns dim"]],
    slots: SlotKeys,
    object_ids: Sequence[int],
    grid: tuple[int, int],
) -> Float[Tensor, "channels grid_rows grid_columns"]:
    """Probability of the background and of each object by appearance alone, for the first frame of the batch.

    Args:
        queries: queries of the cross-attention layers of `slots`.
        slots: the slots of the clip's prompts.
        object_ids: objects of the channels after the background; an object without a slot gets the mean probability.
        grid: rows and columns.
    """
    maps = slot_maps(queries, slots.keys, len(slots.object_ids), grid)[0]
    probabilities = maps.new_full((1 + len(object_ids), *grid), 1 / len(slots.object_ids))
    for channel, object_id in enumerate((0, *object_ids)):
        own = [slot for slot, other in enumerate(slots.object_ids) if other == object_id]
        if own:
            probabilities[channel] = maps[own].sum(0)
    return probabilities


def weighted_by_slots(
    labels: Float[Tensor, "channels rows columns"],
    probabilities: Float[Tensor, "channels rows columns"],
    weight: float,
) -> Float[Tensor, "channels rows columns"]:
    """Propagated labels times the slots' probabilities to the power of `weight`, normalised over channels.

    A Bayes update with the slots as likelihood; the exponent accounts for appearance that is correlated over frames.
    """
    return reweighted(labels, probabilities.clamp(min=_FLOOR) ** weight)
