"""Implementation of the kernel for accelerators: batches of tiles with their windows of keys, as memory allows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from drift.propagation.tiles import TILE, labels_of_largest, never

__all__ = ["attend_in_windows"]

_BATCH = 2**29  # bytes of the keys, logits and labels of a batch, unless those of one tile are more


def attend_in_windows(
    queries: Tensor,
    keys: Sequence[Tensor],
    labels: Sequence[Tensor],
    radius: int | None,
    top_k: int | None,
    *,
    exclude_self: bool,
    offsets: Sequence[Tensor] | None,
    return_indices: bool,
) -> Tensor:
    """Attention as in `propagate`, where the other arguments are described.

    Args:
        return_indices: see `labels_of_largest`.
    """
    heads, height, width, dim = queries.shape
    device = queries.device
    rows, columns = -(-height // TILE), -(-width // TILE)
    tiles = F.pad(queries, (0, 0, 0, columns * TILE - width, 0, rows * TILE - height))
    tiles = tiles.view(heads, rows, TILE, columns, TILE, dim).transpose(2, 3).reshape(heads, -1, TILE**2, dim)
    memory = torch.stack(list(keys), 1).flatten(2, 3)  # (heads, frames, tokens of a frame, dim)
    values = torch.stack(list(labels)).flatten(0, 2).to(queries.dtype)
    start = torch.cartesian_prod(*(torch.arange(n, device=device) * TILE for n in (rows, columns)))
    inner = torch.arange(TILE, device=device)
    own = ((start[:, :1] + inner)[:, :, None] * width + (start[:, 1:] + inner)[:, None]).flatten(1)
    parts = []
    if radius is None:
        everything = torch.arange(height * width, device=device)
        size = max(1, _BATCH // (8 * heads * len(keys) * height * width * TILE**2))
        for batch in torch.arange(rows * columns, device=device).split(size):
            logits = tiles[:, batch].flatten(1, 2)[:, None] @ memory.mT
            if exclude_self:
                itself = own[batch].flatten()[:, None] == everything
                logits[:, 0] = logits[:, 0].masked_fill(itself, never(logits.dtype))
            labelled = labels_of_largest(logits, values, None, top_k, return_indices=return_indices)
            parts.append(labelled.unflatten(1, (len(batch), -1)))
    else:
        tokens, outside = _windows(start, (height, width), len(keys), radius, offsets)
        too_far = _too_far(radius, device)
        places = tokens[0].numel()
        size = max(1, _BATCH // (4 * heads * places * (dim + 2 * TILE**2 + values.shape[1])))
        for batch in torch.arange(rows * columns, device=device).split(size):
            near = memory.flatten(1, 2)[:, tokens[batch]]  # (heads, tiles, frames, places, dim)
            logits = tiles[:, batch][:, :, None] @ near.mT
            hidden = outside[batch][:, :, None]
            if exclude_self:  # tokens of other frames have other indices
                hidden = hidden | (tokens[batch][:, :, None] == own[batch][:, None, :, None])
            logits = logits.masked_fill(hidden, never(logits.dtype)).flatten(0, 1)
            near_labels = values[tokens[batch].flatten(1)].expand(heads, -1, -1, -1).flatten(0, 1)
            labelled = labels_of_largest(logits, near_labels, too_far, top_k, return_indices=return_indices)
            parts.append(labelled.unflatten(0, (heads, -1)))
    found = torch.cat(parts, 1).view(heads, rows, columns, TILE, TILE, -1).transpose(2, 3)
    return found.reshape(heads, rows * TILE, columns * TILE, -1)[:, :height, :width].contiguous()


def _windows(
    start: Int[Tensor, "tiles 2"],
    grid: tuple[int, int],
    frames: int,
    radius: int,
    offsets: Sequence[Int[Tensor, "tile_rows tile_columns 2"]] | None,
) -> tuple[Int[Tensor, "tiles frames places"], Bool[Tensor, "tiles frames places"]]:
    """Indices of the memory tokens in the window of each tile, and a mask of the places outside the frame."""
    device = start.device
    first = (start - radius)[:, None].expand(-1, frames, -1)
    if offsets is not None:  # a tile stays within the frame
        stop = (start + TILE).minimum(torch.tensor(grid, device=device))
        shift = torch.stack(list(offsets), 2).to(device).flatten(0, 1)
        first = first + shift.maximum(-start[:, None]).minimum(
            (torch.tensor(grid, device=device) - stop)[:, None]
        )
    places = first[..., None] + torch.arange(TILE + 2 * radius, device=device)
    y, x = places.unbind(2)
    outside = ((y < 0) | (y >= grid[0]))[..., :, None] | ((x < 0) | (x >= grid[1]))[..., None, :]
    frame = torch.arange(frames, device=device)[:, None, None] * grid[0]
    tokens = (frame + y.clamp(0, grid[0] - 1)[..., None]) * grid[1] + x.clamp(0, grid[1] - 1)[..., None, :]
    return tokens.flatten(2), outside.flatten(2)


def _too_far(radius: int, device: torch.device) -> Bool[Tensor, "queries places"]:
    """True for each query of a tile and place of its window that are more than `radius` apart along an axis."""
    query = torch.arange(TILE, device=device)[:, None] + radius
    far = (query - torch.arange(TILE + 2 * radius, device=device)).abs() > radius
    return (far[:, None, :, None] | far[None, :, None, :]).flatten(2).flatten(0, 1)
