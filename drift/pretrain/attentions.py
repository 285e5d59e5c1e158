"""The attentions of a UNet in training, and the queries that they project in a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

__all__ = ["Queries", "cross_attention_queries", "self_attentions"]

Queries = list[tuple[Attention, Tensor]]
"""Attentions and their queries `(views, tokens, channels)`."""


def self_attentions(unet: UNet2DConditionModel) -> list[Attention]:
    """All of them."""
    return [block.attn1 for block in _blocks(unet)]


@contextmanager
def cross_attention_queries(unet: UNet2DConditionModel) -> Iterator[Queries]:
    """Within it, a forward pass of `unet` fills the yielded list, attention by attention."""
    queries: Queries = []
    handles = []
    for block in _blocks(unet):

        def keep(
            module: nn.Module, arguments: tuple, projected: Tensor, attention: Attention = block.attn2
        ) -> None:
            queries.append((attention, projected))

        handles.append(block.attn2.to_q.register_forward_hook(keep))
    try:
        yield queries
    finally:
        for handle in handles:
            handle.remove()


def _blocks(unet: UNet2DConditionModel) -> Iterator[BasicTransformerBlock]:
    return (module for module in unet.modules() if isinstance(module, BasicTransformerBlock))
