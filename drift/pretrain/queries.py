"""The queries that a UNet's attentions project in a forward pass, for losses on what they compare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

__all__ = ["Queries", "cross_attentions", "projected_queries", "self_attentions"]

Queries = list[tuple[Attention, Tensor]]
"""Attentions and their queries `(views, tokens, channels)`."""


def self_attentions(unet: UNet2DConditionModel) -> list[Attention]:
    """In the model's own order, which is not that of its forward pass: blocks of the way up come last."""
    return [module.attn1 for module in unet.modules() if isinstance(module, BasicTransformerBlock)]


def cross_attentions(unet: UNet2DConditionModel) -> list[Attention]:
    """In the order of `self_attentions`."""
    return [module.attn2 for module in unet.modules() if isinstance(module, BasicTransformerBlock)]


@contextmanager
def projected_queries(attentions: list[Attention]) -> Iterator[Queries]:
    """Within it, a forward pass fills the yielded list, attention by attention as they are reached."""
    queries: Queries = []
    handles = []
    for attention in attentions:

        def keep(
            module: nn.Module, arguments: tuple, projected: Tensor, attention: Attention = attention
        ) -> None:
            queries.append((attention, projected))

        handles.append(attention.to_q.register_forward_hook(keep))
    try:
        yield queries
    finally:
        for handle in handles:
            handle.remove()
