"""From what layers compute with to what the kernel compares (design 2.3 and 2.4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from drift.backbone.interface import LayerReading
from drift.errors import OptionError
from drift.propagation.labels import finest, unpooled

__all__ = ["AFFINITIES", "HEADS", "Comparison", "comparisons", "on_finest_grid"]

AFFINITIES = ("attention", "cosine")
"""`attention`: Q Kᵀ / √dim, the method's. `cosine`: of the layer's inputs, as DIFT compares features."""

HEADS = ("separate", "joint", "fused")
"""`separate`: one attention map per head. `joint`: one per layer, from the sum of its heads' logits. `fused`:
one in all, from the logits of all layers' heads on the finest layer's grid."""


@dataclass(frozen=True)
class Comparison:
    """Tokens of one frame that the kernel compares with those of other frames.

    Attributes:
        queries, keys: their inner products are the kernel's logits; float32.
        shares: of the labels carried, what each head contributes; over all comparisons they sum to 1.
        layer: whose tokens they are; several layers' names are joined by " + ".
    """

    queries: Float[Tensor, "heads height width dim"]
    keys: Float[Tensor, "heads height width dim"]
    shares: Float[Tensor, " heads"]
    layer: str = ""


def comparisons(
    readings: Sequence[LayerReading],
    *,
    affinity: str,
    heads: str,
    weights: Mapping[str, Float[Tensor, " heads"]] | None = None,
) -> list[Comparison]:
    """What the kernel compares, of readings of one frame each.

    With `separate` heads a weight is the head's share of the labels (section 2.4). Where logits are summed it
    multiplies the head's logits, so that heads of equal weight count as they do unweighted, and a layer's share
    is the sum of its heads' weights.

    Args:
        readings: one per layer.
        affinity: of `AFFINITIES`; `cosine` has one head a layer, whatever `heads` says, with logits in [-1, 1].
        heads: of `HEADS`.
        weights: by layer, one for each head; over all layers they sum to 1. None for equal ones: every
            layer counts the same.

    Raises:
        OptionError: a layer's weights are missing, or not as many as its heads.
    """
    each = [
        _comparison(r, affinity, heads, _weights_of(r, weights, len(readings), affinity)) for r in readings
    ]
    return [_fused(each)] if heads == "fused" else each


def _weights_of(
    reading: LayerReading, weights: Mapping[str, Tensor] | None, layers: int, affinity: str
) -> Tensor:
    count = reading.queries.shape[1]
    if not weights:
        return torch.full((count,), 1 / (count * layers), device=reading.queries.device)
    if reading.name not in weights or len(weights[reading.name]) != count:
        raise OptionError(
            "head_weights",
            sorted(weights),
            f"{count} weights for {reading.name}; the adapter is one of other layers",
        )
    return weights[reading.name].to(reading.queries.device, torch.float32)


def _comparison(reading: LayerReading, affinity: str, heads: str, weights: Tensor) -> Comparison:
    """One layer's tokens; of frame 0 of the batch."""
    share = weights.sum(0, keepdim=True)
    if affinity == "cosine":
        tokens = F.normalize(reading.inputs[0].float(), dim=-1).unsqueeze(0)
        return Comparison(tokens, tokens, share, reading.name)
    queries = reading.queries[0].float() / math.sqrt(reading.queries.shape[-1])
    keys = reading.keys[0].float()
    if heads == "separate":
        return Comparison(queries, keys, weights, reading.name)
    within = len(weights) * weights / share.clamp(min=torch.finfo(weights.dtype).tiny)
    return Comparison(_joined(queries * within[:, None, None, None]), _joined(keys), share, reading.name)


def _joined(tokens: Tensor) -> Tensor:
    """Heads side by side in one vector: its inner products are the sums over heads."""
    return tokens.permute(1, 2, 0, 3).flatten(2).unsqueeze(0).contiguous()


def _fused(layers: Sequence[Comparison]) -> Comparison:
    """All layers' tokens side by side on the finest grid: the inner products are the sums over layers."""
    grid = finest(layer.keys.shape[1:3] for layer in layers)
    queries = [on_finest_grid(layer.queries * layer.shares.sum(), grid) for layer in layers]
    keys = [on_finest_grid(layer.keys, grid) for layer in layers]
    names = " + ".join(layer.layer for layer in layers)
    return Comparison(
        torch.cat(queries, -1), torch.cat(keys, -1), torch.ones_like(layers[0].shares[:1]), names
    )


def on_finest_grid(
    tokens: Float[Tensor, "heads height width dim"], grid: tuple[int, int]
) -> Float[Tensor, "heads fine_height fine_width dim"]:
    """Tokens of a coarser layer between those they lie among; see `unpooled`."""
    return unpooled(tokens.permute(0, 3, 1, 2), grid).permute(0, 2, 3, 1)
