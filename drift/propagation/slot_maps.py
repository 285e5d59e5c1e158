"""What a learned prompt says of a frame: the probability of each of its slots at each place (design 2.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from drift.propagation.labels import unpooled

__all__ = ["SlotKeys", "slot_maps", "slot_probabilities", "with_evidence"]

_LEAST = 0.02  # of a likelihood: looks alone never rule an object out


@dataclass(frozen=True)
class SlotKeys:
    """The slots of a clip's prompts as cross-attention layers see them.

    Attributes:
        keys: by layer, for each head the slots' tokens.
        object_ids: of each slot; 0 for a background's, of which every prompt has one.
    """

    keys: Mapping[str, Float[Tensor, "heads slot_tokens dim"]]
    object_ids: tuple[int, ...]


def slot_maps(
    logits: Sequence[Float[Tensor, "batch heads rows columns slot_tokens"]],
    slots: int,
    grid: tuple[int, int],
) -> Float[Tensor, "batch slots grid_rows grid_columns"]:
    """The probability of each slot at each place: softmax over the slots' tokens alone.

    The mean over heads and layers, on `grid`; over slots it sums to 1.

    Args:
        logits: Q Kᵀ / √dim of each layer, on its own grid.
        slots: how many there are, of equally many tokens.
        grid: rows and columns of the finest layer, or more.
    """
    maps = []
    for layer in logits:
        of_slots = layer.softmax(-1).unflatten(-1, (slots, -1)).sum(-1).mean(1).permute(0, 3, 1, 2)
        maps.append(unpooled(of_slots, grid))
    return torch.stack(maps).mean(0)


def slot_probabilities(
    queries: Mapping[str, Float[Tensor, "heads rows columns dim"]],
    slots: SlotKeys,
    object_ids: Sequence[int],
    grid: tuple[int, int],
) -> Float[Tensor, "channels grid_rows grid_columns"]:
    """How likely each object is at each place by its looks alone; each counts the same, however small.

    Args:
        queries: of the layers' cross-attention on this frame, at least of those that `slots` has.
        slots: the prompt's.
        object_ids: of the channels behind the background's; one that has no slot gets what is likely on average.
        grid: rows and columns.
    """
    logits = [
        torch.einsum("hyxd,htd->hyxt", queries[name].float(), keys.float())[None] / keys.shape[-1] ** 0.5
        for name, keys in slots.keys.items()
    ]
    maps = slot_maps(logits, len(slots.object_ids), grid)[0]
    likely = maps.new_full((1 + len(object_ids), *grid), 1 / len(slots.object_ids))
    for channel, one in enumerate((0, *object_ids)):
        mine = [place for place, other in enumerate(slots.object_ids) if other == one]
        if mine:
            likely[channel] = maps[mine].sum(0)
    return likely


def with_evidence(
    labels: Float[Tensor, "channels rows columns"],
    likely: Float[Tensor, "channels rows columns"],
    weight: float,
) -> Float[Tensor, "channels rows columns"]:
    """Labels carried from earlier frames, times what this frame's looks say to the power of `weight`.

    As a Bayes filter takes a measurement in; the power accounts for looks that are alike from frame to frame.
    """
    product = labels * likely.clamp(min=_LEAST) ** weight
    return product / product.sum(0, keepdim=True).clamp(min=1e-12)
