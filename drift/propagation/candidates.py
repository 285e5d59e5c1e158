"""Joint attention of heads restricted to candidate keys, for learning the weights of the heads.

With `heads="joint"` and `"fused"` logits are weighted means of those of the heads. While weights are learned, it is
enough to compute each head's logits once, for the keys that may be among the top-k.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from drift.backbones.interface import Features
from drift.propagation.heads import (
    Comparison,
    PropagationOptions,
    compare,
    neighbourhoods,
    on_grid,
)
from drift.propagation.kernel import nearest_keys
from drift.propagation.labels import finest
from drift.propagation.tiles import never

__all__ = ["CandidateKeys", "candidate_keys"]

_GATHERED = 2**27  # bytes of keys that are gathered at once


@dataclass(frozen=True)
class CandidateKeys:
    """Keys that may be among the top-k of a frame's queries, for one of its comparisons (see `compare`).

    Attributes:
        layers: layers whose heads attend together: one, or with `heads="fused"` all of them.
        logits: logits of each head, before its weight applies.
        tokens: indices of the candidates among the memory's tokens, -1 for none; see `nearest_keys`.
        grid: rows and columns of the queries.
    """

    layers: tuple[str, ...]
    logits: Float[Tensor, "heads queries candidates"]
    tokens: Int[Tensor, "queries candidates"]
    grid: tuple[int, int]

    def propagate(
        self,
        weights: Mapping[str, Float[Tensor, " heads"]],
        labels: Sequence[Float[Tensor, "rows columns channels"]],
        options: PropagationOptions,
    ) -> Float[Tensor, "one rows columns channels"]:
        """Propagates labels by the joint attention of all heads; differentiable with respect to `weights`.

        Equal to the entry of `propagate_by_head` as long as the `top_k` keys under `weights` are among the candidates.
        With `follow`, the neighbourhoods are those under the weights for which the candidates were chosen.

        Args:
            weights: weight of each head, by layer; see `compare`.
            labels: labels of the memory frames on the grid.
            options: how labels are propagated.

        Returns:
            The labels, with one head; with none if the weights are all 0.
        """
        by_head = torch.cat([weights[layer] for layer in self.layers])
        if options.affinity == "cosine":  # the heads of a layer are compared as one
            by_head = torch.stack([weights[layer].sum() for layer in self.layers])
        if not by_head.any():
            return by_head.new_zeros(0, *self.grid, labels[0].shape[-1])
        if options.heads == "joint":
            by_head = by_head / by_head.sum()
        logits = torch.einsum("h,hqk->qk", by_head, self.logits) / options.temperature
        logits = logits.masked_fill(self.tokens < 0, never(logits.dtype))
        top_k = logits.shape[1] if options.top_k is None else min(options.top_k, logits.shape[1])
        largest, chosen = logits.topk(top_k, sorted=False)
        found = torch.cat([frame.flatten(0, 1) for frame in labels])[
            self.tokens.gather(1, chosen).clamp(min=0)
        ]
        mixed = torch.einsum("qk,qkc->qc", largest.softmax(-1), found.to(largest.dtype))
        return mixed.unflatten(0, self.grid)[None]


@torch.no_grad()
def candidate_keys(
    features: Sequence[Features],
    memory: Sequence[Sequence[Features]],
    labels: Sequence[Sequence[Float[Tensor, "rows columns channels"]]],
    options: PropagationOptions,
    weights: Mapping[str, Float[Tensor, " heads"]],
    *,
    count: int,
    exclude_self: bool = False,
) -> list[CandidateKeys]:
    """Finds the `count` keys with the largest logits under `weights`, and computes their logits for each head.

    Args:
        features: features of the frame.
        memory: features of the memory frames.
        labels: for each comparison, the labels of the memory frames on its grid.
        options: how labels are propagated, with `heads="joint"` or `"fused"`.
        weights: weight of each head, by layer.
        count: largest number of keys for each query.
        exclude_self: see `propagate`.

    Returns:
        The candidates of each comparison, in the order of `compare`.
    """
    compared = compare(features, options, weights)
    finest_rows = finest(one.grid for one in compared)[0]
    keys = [[one.keys for one in compare(frame, options)] for frame in memory]
    of_heads, *memory_heads = (_by_comparison(frame, options) for frame in (features, *memory))
    found = []
    for number, one in enumerate(compared):
        memory_keys = [frame[number] for frame in keys]
        where = neighbourhoods(
            one.queries,
            memory_keys,
            labels[number],
            options,
            finest_rows=finest_rows,
            exclude_self=exclude_self,
        )
        side = max(one.grid) if where["radius"] is None else 2 * where["radius"] + 1
        existing = len(memory) * min(side, one.grid[0]) * min(side, one.grid[1])
        tokens = nearest_keys(one.queries, memory_keys, min(count, existing), **where)[0].flatten(0, 1)
        logits = [
            _logits(layer.queries[head], [frame[number][place].keys[head] for frame in memory_heads], tokens)
            for place, layer in enumerate(of_heads[number])
            for head in range(len(layer.queries))
        ]
        names = tuple(layer.layer for layer in of_heads[number])
        found.append(CandidateKeys(names, torch.stack(logits), tokens, one.grid))
    return found


def _by_comparison(features: Sequence[Features], options: PropagationOptions) -> list[list[Comparison]]:
    """The layers that each comparison combines, on its grid, with separate heads."""
    layers = compare(features, replace(options, heads="separate"))
    if options.heads != "fused":
        return [[layer] for layer in layers]
    grid = finest(layer.grid for layer in layers)
    return [
        [
            replace(layer, queries=on_grid(layer.queries, grid), keys=on_grid(layer.keys, grid))
            for layer in layers
        ]
    ]


def _logits(
    queries: Float[Tensor, "rows columns dim"],
    keys: Sequence[Float[Tensor, "rows columns dim"]],
    tokens: Int[Tensor, "queries candidates"],
) -> Float[Tensor, "queries candidates"]:
    flat = torch.cat([frame.flatten(0, 1) for frame in keys])
    size = max(1, _GATHERED // (4 * flat.shape[1] * tokens.shape[1]))
    batches = zip(queries.flatten(0, 1).split(size), tokens.clamp(min=0).split(size), strict=True)
    return torch.cat([torch.einsum("qd,qkd->qk", some, flat[of_some]) for some, of_some in batches])
