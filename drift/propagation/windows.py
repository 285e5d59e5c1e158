"""The kernel on an accelerator: tiles with their windows of keys as one batch, in as few steps as memory allows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F

from drift.propagation.tiles import TILE, labels_of_largest, never

__all__ = ["attend_in_windows"]

_BATCH = 2**29  # bytes of the keys and logits of a batch, unless those of one tile are more


def attend_in_windows(
    queries: Tensor,
    keys: Sequence[Tensor],
    labels: Sequence[Tensor],
    radius: int | None,
    top_k: int | None,
    *,
    exclude_self: bool,
    offsets: Sequence[Tensor] | None,
    numbers: bool,
) -> Tensor:
    """See `propagate`, and `labels_of_largest` for `numbers`."""
    heads, height, width, dim = queries.shape
    device = queries.device
    rows, columns = -(-height // TILE), -(-width // TILE)
    tiles = F.pad(queries, (0, 0, 0, columns * TILE - width, 0, rows * TILE - height))
    tiles = tiles.view(heads, rows, TILE, columns, TILE, dim).permute(1, 3, 0, 2, 4, 5)
    tiles = tiles.reshape(rows * columns, heads, TILE**2, dim)
    memory, values = torch.stack(list(keys), 1).flatten(1, 3), torch.stack(list(labels)).flatten(0, 2)
    start = torch.cartesian_prod(*(torch.arange(n, device=device) * TILE for n in (rows, columns)))
    tokens, outside = _windows(start, (height, width), len(keys), radius, offsets)
    inner = torch.arange(TILE, device=device)
    own = (start[:, :1] + inner)[:, :, None] * width + (start[:, 1:] + inner)[:, None]
    too_far = None if radius is None else _too_far(radius, device)
    size = max(1, _BATCH // (4 * heads * tokens[0].numel() * (dim + TILE**2)))
    everything = memory.unflatten(1, (len(keys), -1))[None]  # (one, heads, frames, places, dim)
    parts = []
    for batch in torch.arange(rows * columns, device=device).split(size):
        near = everything if radius is None else memory[:, tokens[batch]].transpose(0, 1)
        logits = tiles[batch][:, :, None] @ near.mT
        hidden = outside[batch][:, None, :, None]
        if exclude_self:
            itself = tokens[batch][:, :, None] == own[batch].flatten(1)[:, None, :, None]
            hidden = hidden | itself[:, None]  # tokens of other frames have other numbers
        logits = logits.masked_fill(hidden, never(logits.dtype)).flatten(0, 1)
        near_labels = values[tokens[batch].flatten(1)].to(logits.dtype).repeat_interleave(heads, 0)
        parts.append(labels_of_largest(logits, near_labels, too_far, top_k, numbers=numbers))
    found = torch.cat(parts).view(rows, columns, heads, TILE, TILE, -1).permute(2, 0, 3, 1, 4, 5)
    return found.reshape(heads, rows * TILE, columns * TILE, -1)[:, :height, :width].contiguous()


def _windows(
    start: Int[Tensor, "tiles 2"],
    grid: tuple[int, int],
    frames: int,
    radius: int | None,
    offsets: Sequence[Int[Tensor, "tile_rows tile_columns 2"]] | None,
) -> tuple[Int[Tensor, "tiles frames places"], Bool[Tensor, "tiles frames places"]]:
    """Tokens of the memory in each tile's window, and the places of a window that lie outside the frame."""
    device = start.device
    if radius is None:
        tokens = torch.arange(frames * grid[0] * grid[1], device=device).view(1, frames, -1)
        tokens = tokens.expand(len(start), -1, -1)
        return tokens, torch.zeros((), dtype=torch.bool, device=device).expand(tokens.shape)
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
    """Pairs of a tile's queries and its window's places that are more than `radius` apart along an axis."""
    query = torch.arange(TILE, device=device)[:, None] + radius
    far = (query - torch.arange(TILE + 2 * radius, device=device)).abs() > radius
    return (far[:, None, :, None] | far[None, :, None, :]).flatten(2).flatten(0, 1)
