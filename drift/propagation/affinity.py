"""From what a layer computes with to what the kernel compares (design 2.3)."""

from __future__ import annotations

import math

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from drift.backbone.interface import LayerReading

__all__ = ["AFFINITIES", "HEADS", "comparable_tokens"]

AFFINITIES = ("attention", "cosine")
"""`attention`: Q Kᵀ / √dim, the method's. `cosine`: of the layer's inputs, as DIFT compares features."""

HEADS = ("separate", "joint")
"""`separate`: one attention map per head. `joint`: one map per layer, from the sum of the heads' logits."""


def comparable_tokens(
    reading: LayerReading, *, affinity: str, heads: str
) -> tuple[Float[Tensor, "batch heads height width dim"], Float[Tensor, "batch heads height width dim"]]:
    """Queries and keys whose inner product is the kernel's logit, in float32.

    `cosine` has one head, whatever `heads` says; its logits lie in [-1, 1].
    """
    if affinity == "cosine":
        tokens = F.normalize(reading.inputs.float(), dim=-1).unsqueeze(1)
        return tokens, tokens
    queries = reading.queries.float() / math.sqrt(reading.queries.shape[-1])
    keys = reading.keys.float()
    if heads == "joint":
        return _joined(queries), _joined(keys)
    return queries, keys


def _joined(tokens: Tensor) -> Tensor:
    """Heads side by side in one vector: its inner products are the sums over heads."""
    return tokens.permute(0, 2, 3, 1, 4).flatten(3).unsqueeze(1).contiguous()
