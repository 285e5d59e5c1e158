"""Attention heads of several layers: what the kernel compares, and labels propagated by all heads together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from drift.backbones.interface import Features
from drift.errors import OptionError
from drift.options import choice, positive, whole_number
from drift.propagation.kernel import propagate
from drift.propagation.labels import downsampling, finest, unpooled
from drift.propagation.motion import object_offsets

__all__ = [
    "AFFINITIES",
    "HEADS",
    "Comparison",
    "PropagationOptions",
    "compare",
    "mean_over_heads",
    "neighbourhoods",
    "on_grid",
    "propagate_by_head",
]

AFFINITIES = ("attention", "cosine")
"""`attention`: Q Kᵀ / √dim. `cosine`: cosine similarity of the layers' tokens, as DIFT compares features."""

HEADS = ("separate", "joint", "fused")
"""`separate`: one attention map per head. `joint`: one per layer, from the mean of its heads' logits. `fused`: a single
one, from the mean of all layers' logits on the finest layer's grid."""


@dataclass(frozen=True)
class PropagationOptions:
    """How labels are propagated from memory frames to a frame.

    Attributes:
        affinity: what is compared, see `AFFINITIES`.
        heads: how heads are combined, see `HEADS`.
        temperature: divides the logits; above 0.
        top_k: number of keys, over all memory frames together, that a query keeps; None for all.
        radius: largest distance of a key from its query, in tokens of the finest layer; None for the whole frame.
        follow: whether the neighbourhoods follow the objects' motion, see `object_offsets`.

    Raises:
        OptionError: an option is out of range.
    """

    affinity: str = "attention"
    heads: str = "separate"
    temperature: float = 1.0
    top_k: int | None = 15
    radius: int | None = 12
    follow: bool = False

    def __post_init__(self) -> None:
        choice("affinity", self.affinity, AFFINITIES)
        choice("heads", self.heads, HEADS)
        positive("temperature", self.temperature)
        whole_number("top_k", self.top_k, minimum=1, none_allowed=True)
        whole_number("radius", self.radius, minimum=0, none_allowed=True)
        choice("follow", self.follow, (True, False))


@dataclass(frozen=True)
class Comparison:
    """Tokens of a frame that the kernel compares with those of other frames.

    Attributes:
        queries, keys: their inner products are the kernel's logits; float32.
        weights: weight of each head's labels; over all comparisons of a frame they sum to 1.
        layer: the layer's name; the names of several layers are joined by " + ".
    """

    queries: Float[Tensor, "heads height width dim"]
    keys: Float[Tensor, "heads height width dim"]
    weights: Float[Tensor, " heads"]
    layer: str = ""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.keys.shape[1], self.keys.shape[2]


def compare(
    features: Sequence[Features],
    options: PropagationOptions,
    weights: Mapping[str, Float[Tensor, " heads"]] | None = None,
) -> list[Comparison]:
    """What the kernel compares, given the features of one frame (`docs/method.md`, "Adaptive head weighting").

    With `heads="separate"` a weight multiplies the labels that its head propagates. With `joint` and `fused` it
    multiplies the head's logits in their weighted mean, and a layer's labels count by the sum of its heads' weights.
    As the mean does not grow with the number of heads, a temperature means the same for every model. Differentiable
    with respect to `weights`.

    Args:
        features: features of the frame, one entry per layer; the first frame of the batch is used.
        options: how labels are propagated. With `affinity="cosine"` a layer has a single head.
        weights: weight of each head by layer, summing to 1 over all layers; None for layers that count the same.

    Raises:
        OptionError: the weights are not those of these layers and heads.
    """
    layers = [
        _compare_layer(layer, options, _weights_of(layer, weights, len(features))) for layer in features
    ]
    return [_fuse(layers)] if options.heads == "fused" else layers


def propagate_by_head(
    compared: Sequence[Comparison],
    keys: Sequence[Sequence[Float[Tensor, "heads height width dim"]]],
    labels: Sequence[Sequence[Float[Tensor, "height width channels"]]],
    options: PropagationOptions,
    *,
    exclude_self: bool = False,
) -> list[Float[Tensor, "used height width channels"]]:
    """Labels propagated to a frame by each head whose weight is not 0; see `mean_over_heads`.

    With `heads="separate"` the labels do not depend on the weights.

    Args:
        compared: comparisons of the frame, see `compare`.
        keys: for each comparison, the keys of the memory frames.
        labels: for each comparison, the labels of the memory frames on its grid.
        options: how labels are propagated.
        exclude_self: see `propagate`.

    Returns:
        For each comparison, the labels on its grid.
    """
    grid = finest(one.grid for one in compared)
    by_head = []
    for one, layer_keys, layer_labels in zip(compared, keys, labels, strict=True):
        used = _used(one)
        if not len(used):
            by_head.append(layer_labels[0].new_zeros(0, *one.grid, layer_labels[0].shape[-1]))
            continue
        queries, memory = (
            _select_heads(one.queries, used),
            [_select_heads(frame, used) for frame in layer_keys],
        )
        by_head.append(
            propagate(
                queries,
                memory,
                layer_labels,
                temperature=options.temperature,
                top_k=options.top_k,
                **neighbourhoods(
                    queries, memory, layer_labels, options, finest_rows=grid[0], exclude_self=exclude_self
                ),
            )
        )
    return by_head


def neighbourhoods(
    queries: Float[Tensor, "heads height width dim"],
    keys: Sequence[Float[Tensor, "heads height width dim"]],
    labels: Sequence[Float[Tensor, "height width channels"]],
    options: PropagationOptions,
    *,
    finest_rows: int,
    exclude_self: bool,
) -> dict[str, Any]:
    """Keyword arguments of `propagate` and `nearest_keys` that restrict the keys to which queries of a layer attend.

    Args:
        queries: queries of the target frame in a layer.
        keys, labels: keys and labels of the memory frames in the layer.
        options: how labels are propagated.
        finest_rows: rows of the finest layer, whose tokens are the unit of the radius.
        exclude_self: see `propagate`; neighbourhoods do not follow objects then.

    Returns:
        `radius`, `offsets` and `exclude_self`.
    """
    radius, offsets = options.radius, None
    if radius is not None:
        radius = -(-radius // downsampling(finest_rows, queries.shape[1]))
        if options.follow and not exclude_self:
            offsets = object_offsets(queries.detach(), keys, labels, slack=-(-radius // 3))
    return {"radius": radius, "offsets": offsets, "exclude_self": exclude_self}


def mean_over_heads(
    compared: Sequence[Comparison], by_head: Sequence[Float[Tensor, "used height width channels"]]
) -> Float[Tensor, "channels rows columns"]:
    """Mean of the heads' labels, weighted by `Comparison.weights`, on the finest layer's grid.

    Args:
        compared: comparisons of the frame, see `compare`.
        by_head: labels returned by `propagate_by_head`.
    """
    grid = finest(one.grid for one in compared)
    total = compared[0].queries.new_zeros(by_head[0].shape[-1], *grid)
    for one, per_head in zip(compared, by_head, strict=True):
        if len(per_head):
            propagated = torch.einsum("h,hyxc->cyx", one.weights[_used(one)].to(per_head), per_head)
            total = total + unpooled(propagated[None], grid)[0]
    return total


def _used(one: Comparison) -> Int[Tensor, " used"]:
    """Heads whose weight is not 0."""
    return one.weights.nonzero()[:, 0]


def _select_heads(tokens: Tensor, used: Tensor) -> Tensor:
    """The used heads, without a copy where all are used."""
    return tokens if len(used) == len(tokens) else tokens[used]


def _weights_of(layer: Features, weights: Mapping[str, Tensor] | None, layers: int) -> Tensor:
    count = layer.queries.shape[1]
    if not weights:
        return torch.full((count,), 1 / (count * layers), device=layer.queries.device)
    if layer.layer not in weights or len(weights[layer.layer]) != count:
        raise OptionError(
            "head_weights",
            sorted(weights),
            f"{count} weights for {layer.layer}; the adapter was learned for other layers",
        )
    return weights[layer.layer].to(layer.queries.device, torch.float32)


def _compare_layer(layer: Features, options: PropagationOptions, weights: Tensor) -> Comparison:
    total = weights.sum(0, keepdim=True)
    if options.affinity == "cosine":
        tokens = F.normalize(layer.tokens[0].float(), dim=-1).unsqueeze(0)
        return Comparison(tokens, tokens, total, layer.layer)
    queries = layer.queries[0].float() / math.sqrt(layer.queries.shape[-1])
    keys = layer.keys[0].float()
    if options.heads == "separate":
        return Comparison(queries, keys, weights, layer.layer)
    within_layer = weights / total.clamp(min=torch.finfo(weights.dtype).tiny)
    queries = _concatenate_heads(queries * within_layer[:, None, None, None])
    return Comparison(queries, _concatenate_heads(keys), total, layer.layer)


def _concatenate_heads(tokens: Tensor) -> Tensor:
    """Vectors of all heads concatenated: inner products are the sums over heads."""
    return tokens.permute(1, 2, 0, 3).flatten(2).unsqueeze(0).contiguous()


def _fuse(layers: Sequence[Comparison]) -> Comparison:
    """Vectors of all layers concatenated on the finest grid: inner products are the weighted sums over layers."""
    grid = finest(layer.grid for layer in layers)
    queries = [on_grid(layer.queries * layer.weights.sum(), grid) for layer in layers]
    keys = [on_grid(layer.keys, grid) for layer in layers]
    names = " + ".join(layer.layer for layer in layers)
    one = torch.ones_like(layers[0].weights[:1]).detach()
    return Comparison(torch.cat(queries, -1), torch.cat(keys, -1), one, names)


def on_grid(
    tokens: Float[Tensor, "heads height width dim"], grid: tuple[int, int]
) -> Float[Tensor, "heads rows columns dim"]:
    """Tokens of a coarser layer interpolated to a finer grid; see `unpooled`."""
    return unpooled(tokens.permute(0, 3, 1, 2), grid).permute(0, 2, 3, 1)
