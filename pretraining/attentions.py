"""Access to a UNet's attention modules and to the queries that they compute in a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

__all__ = ["Queries", "cross_attention_queries", "self_attentions"]

Queries = list[tuple[Attention, Tensor]]
"""Cross-attention modules with their queries `(views, tokens, channels)`."""


def self_attentions(unet: UNet2DConditionModel) -> list[Attention]:
    """Self-attention modules of `unet`, in order."""
    return [block.attn1 for block in _blocks(unet)]


@contextmanager
def cross_attention_queries(unet: UNet2DConditionModel) -> Iterator[Queries]:
    """Records the queries of every cross-attention during forward passes of `unet` inside the context."""
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
