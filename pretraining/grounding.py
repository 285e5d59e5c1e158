"""Grounding of names: the cross-attention map of a name is trained to be the mask of the objects it names.

The scenes are composed, so that their masks are known. Names that a caption mentions and the scene does not show have
to be attended to nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers.models.attention_processor import Attention
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTokenizer

from pretraining.text import token_places
from pretraining.unet import Queries

__all__ = ["grounding_loss", "kinds_of_tokens"]

_ELSEWHERE = -1  # the kind of tokens that name nothing in the scene


def kinds_of_tokens(
    tokenizer: CLIPTokenizer,
    captions: Sequence[str],
    shown: Sequence[Sequence[str]],
    others: Sequence[Sequence[str]],
) -> Int[Tensor, "captions tokens"]:
    """The kind of object that each token names.

    Args:
        tokenizer: its maximum length is the number of tokens.
        captions: one for each scene.
        shown: names of the kinds of objects in each scene; the first has number 1.
        others: further names in each caption, whose tokens have number -1. Tokens of no name have number 0.
    """
    kinds = torch.zeros(len(captions), tokenizer.model_max_length, dtype=torch.long)
    for row, text in enumerate(captions):
        for name in others[row]:
            kinds[row, _places(tokenizer, text, name)] = _ELSEWHERE
        for number, name in enumerate(shown[row], start=1):
            kinds[row, _places(tokenizer, text, name)] = number
    return kinds


def _places(tokenizer: CLIPTokenizer, caption: str, name: str) -> list[int]:
    """Token positions of a name, or of its plural."""
    return token_places(tokenizer, caption, name) or token_places(tokenizer, caption, f"{name}s")


def grounding_loss(
    queries: Queries,
    condition: Float[Tensor, "views tokens dim"],
    kinds: Int[Tensor, "views tokens"],
    covers: Float[Tensor, "views kinds rows columns"],
    weights: Float[Tensor, " views"],
) -> Tensor:
    """Cross-entropy of the cross-attention summed over the tokens of each kind, each kind weighted equally.

    Args:
        queries: of the cross-attention layers, which have equal weights.
        condition: text embeddings.
        kinds: see `kinds_of_tokens`.
        covers: fraction of each location that each kind of object covers; the background has the rest.
        weights: of the views; those whose caption names nothing have none.

    Returns:
        The weighted mean over views; 0 where all weights are 0.
    """
    classes = F.one_hot(kinds + 1, covers.shape[1] + 2)[..., 1:].float()
    present = torch.cat([(1 - covers.sum(1, keepdim=True)).clamp(min=0), covers], dim=1)
    losses = []
    for attention, projected in queries:
        factor = math.isqrt(present[0, 0].numel() // projected.shape[1])
        target = F.avg_pool2d(present, factor).flatten(2).mT
        found = (_attention_maps(attention, projected, condition) @ classes).clamp(min=1e-6)
        total = target.sum(1)
        counted = (total > 1) & (classes.sum(1) > 0)
        entropy = -(target * found.log()).sum(1) / total.clamp(min=1)
        losses.append((entropy * counted).sum(1) / counted.sum(1).clamp(min=1))
    named = weights * (kinds > 0).any(1)
    return (torch.stack(losses).mean(0) * named).sum() / named.sum().clamp(min=1e-6)


def _attention_maps(
    attention: Attention,
    queries: Float[Tensor, "views places dim"],
    condition: Float[Tensor, "views tokens dim"],
) -> Float[Tensor, "views places tokens"]:
    """Mean over heads of the attention of places to tokens."""
    by_head = (attention.heads, -1)
    keys = attention.to_k(condition).unflatten(-1, by_head).transpose(1, 2).float()
    logits = queries.unflatten(-1, by_head).transpose(1, 2).float() @ keys.mT * attention.scale
    return logits.softmax(-1).mean(1)
