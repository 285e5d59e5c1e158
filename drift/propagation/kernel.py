"""The temporal kernel: labels propagated from memory frames to a target frame by attention.

`docs/method.md`, "The temporal kernel" (arXiv 2511.19936): `A = softmax(Q Kᵀ / temperature)` over the tokens of all
memory frames together, restricted to a spatial radius and to the top-k keys, applied to labels.

The (target tokens x memory tokens) matrix is never materialised. Queries are processed in tiles; a tile attends only to
the keys of its own window, so time and memory scale with the radius, not with the frame's area. `strips`
implements this for CPUs, `windows` for accelerators. Without radius and top-k the kernel is
plain attention with labels as values, computed by PyTorch's fused kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from drift.options import positive, whole_number
from drift.propagation.strips import attend_in_strips
from drift.propagation.windows import attend_in_windows

__all__ = ["attention_logits", "attention_maps", "nearest_keys", "propagate"]


def propagate(
    queries: Float[Tensor, "heads height width dim"],
    keys: Sequence[Float[Tensor, "heads height width dim"]],
    labels: Sequence[Float[Tensor, "height width channels"]],
    *,
    temperature: float = 1.0,
    radius: int | None = None,
    top_k: int | None = None,
    exclude_self: bool = False,
    offsets: Sequence[Int[Tensor, "tile_rows tile_columns 2"]] | None = None,
) -> Float[Tensor, "heads height width channels"]:
    """Propagates labels from memory frames to the target frame, separately for each head.

    Differentiable with respect to queries, keys and labels; the choice of the top-k keys is treated as constant.

    Args:
        queries: queries of the target frame, already scaled (by 1/√dim for attention).
        keys: keys of the memory frames, one tensor per frame.
        labels: labels of the memory frames, one tensor per frame, in the order of `keys`.
        temperature: divides the logits; above 0. Small values sharpen.
        radius: largest distance of a key from its query in tokens, along rows and along columns (the square
            neighbourhood of DINO and DIFT); None for the whole frame.
        top_k: number of keys, over all memory frames together, that a query keeps; None for all.
        exclude_self: whether a query never attends to the key at its own position in the first memory frame. For
            attention within one frame.
        offsets: for each memory frame, the rows and columns by which the neighbourhoods of each tile of 8 x 8 queries
            (`tiles.TILE`) are shifted, at most as far as the tile stays within the frame; None to centre the
            neighbourhoods on their queries. Without a radius they have no effect.

    Returns:
        The attention-weighted mean of the labels for each head. Channels that sum to 1 still do.

    Raises:
        OptionError: an option is out of range.
        ValueError: the memory is empty, or keys and labels differ in number or size.

    Example:
        >>> queries = torch.eye(2).view(1, 1, 2, 2)  # one head, a grid of 1 x 2 tokens
        >>> labels = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> propagate(queries, [queries], [labels], top_k=1)
        tensor([[[[1., 0.],
                  [0., 1.]]]])
    """
    positive("temperature", temperature)
    whole_number("radius", radius, minimum=0, none_allowed=True)
    whole_number("top_k", top_k, minimum=1, none_allowed=True)
    grid = queries.shape[1:3]
    if not keys or len(keys) != len(labels):
        raise ValueError(
            f"{len(keys)} frames of keys and {len(labels)} of labels; both must be equal and not 0"
        )
    if any(k.shape[1:3] != grid for k in keys) or any(y.shape[:2] != grid for y in labels):
        raise ValueError(f"keys and labels must lie on the queries' grid of {grid[0]} x {grid[1]} tokens")
    if radius is not None and radius >= max(grid) - 1:
        radius = None
    offsets = None if radius is None else offsets
    with torch.autocast(
        queries.device.type, enabled=False
    ):  # half precision would change which keys are largest
        queries = queries / temperature
        if radius is None and top_k is None and not exclude_self:
            return _attend_everywhere(queries, keys, labels)
        return _implementation(queries.device)(
            queries,
            keys,
            labels,
            radius,
            top_k,
            exclude_self=exclude_self,
            offsets=offsets,
            return_indices=False,
        )


@torch.no_grad()
def nearest_keys(
    queries: Float[Tensor, "heads height width dim"],
    keys: Sequence[Float[Tensor, "heads height width dim"]],
    count: int,
    *,
    radius: int | None = None,
    exclude_self: bool = False,
    offsets: Sequence[Int[Tensor, "tile_rows tile_columns 2"]] | None = None,
) -> Int[Tensor, "heads height width count"]:
    """Finds the `count` keys with the largest logits for each query, in no particular order.

    Args:
        queries, keys: see `propagate`; computed in float32.
        count: number of keys for each query, over all memory frames together; 1 or more.
        radius, exclude_self, offsets: see `propagate`.

    Returns:
        Indices of the keys among the tokens of all memory frames, `(frame * height + row) * width + column`; -1 where
        there are fewer keys than `count`.

    Raises:
        ValueError: the memory is empty.
    """
    if not keys:
        raise ValueError("0 frames of keys; there must be one or more")
    height, width = queries.shape[1:3]
    queries, keys = queries.float(), [frame.float() for frame in keys]
    indices = torch.arange(len(keys) * height * width, device=queries.device, dtype=queries.dtype)
    with torch.autocast(queries.device.type, enabled=False):
        found = _implementation(queries.device)(
            queries,
            keys,
            list(indices.view(len(keys), height, width, 1)),
            radius,
            count,
            exclude_self=exclude_self,
            offsets=None if radius is None else offsets,
            return_indices=True,
        )
    return found.long()


def attention_logits(
    queries: Float[Tensor, "*batch queries dim"], keys: Float[Tensor, "*batch keys dim"]
) -> Float[Tensor, "*batch queries keys"]:
    """Q Kᵀ / √dim in float32, whatever autocast says; queries are scaled before the product, which cannot overflow."""
    with torch.autocast(queries.device.type, enabled=False):
        return (queries.float() / math.sqrt(queries.shape[-1])) @ keys.float().mT


def attention_maps(
    queries: Float[Tensor, "heads queries dim"],
    keys: Sequence[Float[Tensor, "heads height width dim"]],
    *,
    temperature: float = 1.0,
    weights: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "queries frames height width"]:
    """Attention of queries over all memory frames together, averaged over heads; sums to 1 for each query.

    For visualisation: neither radius nor top-k apply.

    Args:
        queries, keys, temperature: see `propagate`.
        weights: weight of each head in the average; None for equal weights.
    """
    stacked = torch.stack(list(keys), dim=1)
    if weights is None or not weights.sum():
        weights = torch.ones(len(queries), device=queries.device)
    with torch.autocast(queries.device.type, enabled=False):
        logits = torch.bmm(queries / temperature, stacked.flatten(1, 3).mT)
        attention = torch.einsum("h,hqk->qk", (weights / weights.sum()).to(logits), logits.softmax(-1))
    return attention.unflatten(1, stacked.shape[1:4])


def _implementation(device: torch.device) -> Callable[..., Tensor]:
    """Implementation of the kernel for a device."""
    return attend_in_strips if device.type == "cpu" else attend_in_windows


def _attend_everywhere(queries: Tensor, keys: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    """Scaled-dot-product attention with labels as values."""
    heads, height, width, dim = queries.shape
    channels = labels[0].shape[-1]
    # The fused CPU kernel needs queries, keys and values of equal width; zeros change nothing.
    common = max(dim, channels)
    q = F.pad(queries.flatten(1, 2), (0, common - dim))[None]
    k = F.pad(torch.cat([frame.flatten(1, 2) for frame in keys], dim=1), (0, common - dim))[None]
    v = F.pad(torch.cat([frame.flatten(0, 1) for frame in labels]), (0, common - channels))
    v = v.expand(1, heads, -1, -1)
    propagated = F.scaled_dot_product_attention(q, k, v.to(q.dtype), scale=1.0)[0, ..., :channels]
    return propagated.unflatten(1, (height, width))
