"""The naming loss: what makes the cross-attention of a briefly trained model mean something.

A caption says which objects a picture shows, not where. For every name a picture has a score, the soft
maximum over its places of the cross-attention's logit; the names in its own caption have to score higher
than those in others. No mask is used: that the maximum comes to lie on the object is what the name and
the object have in common over many pictures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTokenizer

from drift.pretrain.text import token_places

__all__ = [
    "NamedWord",
    "Queries",
    "cross_attending",
    "cross_attention_queries",
    "named_words",
    "naming_loss",
]

_SHARPNESS = 8.0
"""Factor of the logits: with it a few places decide a picture's score, as with a maximum."""

Queries = list[tuple[BasicTransformerBlock, Tensor]]
"""Blocks and their cross-attention's queries `(views, tokens, channels)`."""


def cross_attending(unet: UNet2DConditionModel) -> list[BasicTransformerBlock]:
    """The blocks with a cross-attention, in the model's own order."""
    return [module for module in unet.modules() if isinstance(module, BasicTransformerBlock)]


@dataclass(frozen=True)
class NamedWord:
    """A name and its embedding `(channels,)`, the mean over its tokens, in the context of a caption."""

    name: str
    embedding: Tensor


@contextmanager
def cross_attention_queries(unet: UNet2DConditionModel) -> Iterator[Queries]:
    """Within it, a forward pass of `unet` fills the yielded list, block by block."""
    queries: Queries = []
    handles = []
    for block in cross_attending(unet):

        def keep(
            module: nn.Module, arguments: tuple, projected: Tensor, block: BasicTransformerBlock = block
        ) -> None:
            queries.append((block, projected))

        handles.append(block.attn2.to_q.register_forward_hook(keep))
    try:
        yield queries
    finally:
        for handle in handles:
            handle.remove()


def named_words(
    tokenizer: CLIPTokenizer,
    captions: Sequence[str],
    names: Sequence[Sequence[str]],
    encoded: Tensor,
) -> list[NamedWord]:
    """The words of each caption's names, from the captions' encodings `(captions, tokens, channels)`."""
    words = []
    for text, own, tokens in zip(captions, names, encoded, strict=True):
        for name in own:
            places = token_places(tokenizer, text, name)
            if places:
                words.append(NamedWord(name, tokens[places].mean(0)))
    return words


def naming_loss(
    queries: Queries, words: Sequence[NamedWord], own: Sequence[set[str]], weights: Tensor
) -> Tensor:
    """Cross-entropy of each view's own names against all names that it does not show.

    Args:
        queries: of all blocks that count, in equal parts.
        words: of the views' own captions and of others.
        own: for each view the names in its caption.
        weights: of the views.

    Returns:
        The mean over own names; 0 where no view shows any.
    """
    keys = torch.stack([word.embedding for word in words])
    shows = torch.tensor([[word.name in names for word in words] for names in own], device=keys.device)
    losses = []
    for block, projected in queries:
        attention = block.attn2
        # The sum over heads of their inner products is that of the undivided vectors.
        products = projected.flatten(0, 1).float() @ attention.to_k(keys).float().mT
        logits = products / math.sqrt(projected.shape[-1] / attention.heads) / attention.heads
        scores = (_SHARPNESS * logits).unflatten(0, projected.shape[:2]).logsumexp(1)
        others = scores.masked_fill(shows, -torch.inf).logsumexp(1, keepdim=True)
        losses.append(F.softplus(others - scores))
    share = shows * weights[:, None]
    return (torch.stack(losses).mean(0) * share).sum() / share.sum().clamp(min=1e-6)
