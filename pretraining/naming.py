"""The naming loss: a contrastive loss that gives cross-attention a meaning from captions alone.

A caption says which objects a picture shows, not where. For every name a picture has a score, the soft
maximum over its places of the cross-attention's logit; the names in its own caption have to score higher
than those in others. No mask is used: that the maximum comes to lie on the object is hoped for, not asked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from pretraining.attentions import Queries
from pretraining.text import token_places

__all__ = ["NamedWord", "named_words", "naming_loss"]

_SHARPNESS = 8.0
"""Scale of the logits; larger values bring the soft maximum closer to the maximum."""


@dataclass(frozen=True)
class NamedWord:
    """A name in a caption, and the mean text embedding of its tokens, `(channels,)`."""

    name: str
    embedding: Tensor


def named_words(
    tokenizer: CLIPTokenizer,
    captions: Sequence[str],
    names: Sequence[Sequence[str]],
    encoded: Tensor,
) -> list[NamedWord]:
    """Embeddings of the names in each caption, from text embeddings `(captions, tokens, channels)`."""
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
    """Cross-entropy of the names in a view's caption against all names that are not in it.

    Args:
        queries: of the cross-attentions that count, in equal parts.
        words: of the views' own captions and of others.
        own: for each view the names in its caption.
        weights: of the views.

    Returns:
        The mean over own names; 0 where no view shows any.
    """
    keys = torch.stack([word.embedding for word in words])
    shows = torch.tensor([[word.name in names for word in words] for names in own], device=keys.device)
    losses = []
    for attention, projected in queries:
        # The sum over heads of their inner products is that of the undivided vectors.
        products = projected.flatten(0, 1).float() @ attention.to_k(keys).float().mT
        logits = products / math.sqrt(projected.shape[-1] / attention.heads) / attention.heads
        scores = (_SHARPNESS * logits).unflatten(0, projected.shape[:2]).logsumexp(1)
        others = scores.masked_fill(shows, -torch.inf).logsumexp(1, keepdim=True)
        losses.append(F.softplus(others - scores))
    share = shows * weights[:, None]
    return (torch.stack(losses).mean(0) * share).sum() / share.sum().clamp(min=1e-6)
