"""Tile size and top-k selection, shared by the implementations of the kernel for CPUs and for accelerators."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

__all__ = ["TILE", "labels_of_largest", "never"]

TILE = 8
"""Side of the tiles of queries that share an offset, in tokens."""


def never(dtype: torch.dtype) -> float:
    """Logit of masked keys, whose softmax weight is 0; finite, since 0 * inf is NaN."""
    return torch.finfo(dtype).min / 8


def labels_of_largest(
    logits: Float[Tensor, "batch frames queries places"],
    labels: Float[Tensor, "*batch tokens channels"],
    too_far: Bool[Tensor, "queries places"] | None,
    top_k: int | None,
    *,
    return_indices: bool,
) -> Float[Tensor, "batch queries channels"]:
    """Mean of the labels of each query's `top_k` keys, weighted by the softmax of their logits.

    Args:
        logits: logits of the keys in a window, `never` where there is no key.
        labels: labels of the keys, `frames * places` tokens; without a batch axis if all entries of the batch share
            them.
        too_far: pairs that are outside the radius, or None.
        top_k: number of keys; None for all.
        return_indices: whether to return the labels of the `top_k` keys themselves, which are indices in one channel;
            `top_k` must be given.

    Returns:
        The mean labels; or with `return_indices` the index of each of the `top_k` keys as a channel, padded with -1
        where there are fewer keys.
    """
    lowest = never(logits.dtype)
    if top_k is None or logits.shape[-1] <= 2 * top_k:
        if too_far is not None:
            logits = logits.masked_fill(too_far, lowest)
        flat = logits.transpose(1, 2).flatten(2)
        if top_k is None or (top_k >= flat.shape[-1] and not return_indices):
            return flat.softmax(-1) @ labels
        values, tokens = flat.topk(min(top_k, flat.shape[-1]), dim=-1, sorted=False)
    else:
        values, tokens = _largest(logits.detach(), too_far, top_k)
        if logits.requires_grad:
            exact = logits.transpose(1, 2).flatten(2).gather(-1, tokens)
            values = torch.where(values > lowest / 2, exact, values)
    batch = () if labels.ndim == 2 else (torch.arange(len(labels), device=labels.device)[:, None, None],)
    found = labels[(*batch, tokens)]
    if return_indices:
        chosen = found[..., 0].masked_fill(values < lowest / 2, -1)
        return F.pad(chosen, (0, (top_k or 0) - chosen.shape[-1]), value=-1)
    return torch.einsum("hqk,hqkc->hqc", values.softmax(-1), found)


def _largest(
    logits: Float[Tensor, "batch frames queries places"],
    too_far: Bool[Tensor, "queries places"] | None,
    top_k: int,
) -> tuple[Float[Tensor, "batch queries k"], Int[Tensor, "batch queries k"]]:
    """The `top_k` largest logits of each query, and their indices `frame * places + place`.

    The k largest logits lie at the k places whose maxima over frames are largest: any other place would leave k values
    that are at least as large. So the search covers `places + k * frames` values instead of `frames * places`.
    """
    _, frames, _, places = logits.shape
    maxima = logits.amax(1)
    if too_far is not None:
        maxima.masked_fill_(too_far, never(maxima.dtype) * 2)
    best, chosen = maxima.topk(top_k, dim=-1, sorted=False)
    candidates = logits.gather(-1, chosen[:, None].expand(-1, frames, -1, -1)).transpose(1, 2)
    # Masked places are chosen only where fewer than k are within the radius; their weight must still be 0.
    masked = (best < never(maxima.dtype) * 1.5)[:, :, None]
    candidates = candidates.masked_fill(masked, never(maxima.dtype))
    values, order = candidates.flatten(2).topk(top_k, dim=-1, sorted=False)
    return values, order // top_k * places + chosen.gather(-1, order % top_k)
