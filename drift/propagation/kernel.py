"""The temporal kernel: labels propagated from memory frames to a target frame by attention.

`docs/method.md`, "The temporal kernel" (arXiv 2511.19936): `A = softmax(Q Kᵀ / temperature)` over the tokens of all
memory frames together, restricted to a spatial radius and to the top-k keys, applied to labels.

The (target tokens x memory tokens) matrix is never materialised. Queries are processed in tiles; a tile attends only to
the keys of its own window, so time and memory scale with the radius, not with the frame's area. Without radius and
top-k the kernel is plain attention with labels as values, computed by PyTorch's fused kernel.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from drift.options import positive, whole_number

__all__ = ["attention_logits", "attention_maps", "propagate"]

_WORKSPACES = 2**29  # upper bound of all threads' buffers, in bytes
_STRIP = 2**26  # bytes of keys that tiles share, unless those of one tile are more
_TILES = (32, 16, 8)  # tokens; larger tiles need fewer products but compute more logits outside the radius
_CPU_TILE = 8


def propagate(
    queries: Float[Tensor, "heads height width dim"],
    keys: Sequence[Float[Tensor, "heads height width dim"]],
    labels: Sequence[Float[Tensor, "height width channels"]],
    *,
    temperature: float = 1.0,
    radius: int | None = None,
    top_k: int | None = None,
    exclude_self: bool = False,
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
    with torch.autocast(
        queries.device.type, enabled=False
    ):  # half precision would change which keys are largest
        queries = queries / temperature
        if radius is None and top_k is None and not exclude_self:
            return _attend_everywhere(queries, keys, labels)
        return _attend_in_tiles(queries, keys, labels, radius, top_k, exclude_self=exclude_self)


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


@dataclass(frozen=True)
class _Span:
    """A tile of queries `[start, stop)` and its window of keys `[low, high)` along an axis."""

    start: int
    stop: int
    low: int
    high: int

    def too_far(self, radius: int, device: torch.device) -> Tensor:
        """Pairs more than `radius` apart along the axis, `(queries, keys)` bool."""
        query = torch.arange(self.start, self.stop, device=device)[:, None]
        return (query - torch.arange(self.low, self.high, device=device)[None]).abs() > radius


def _spans(length: int, radius: int | None, tile: int) -> list[_Span]:
    reach = length if radius is None else radius
    stops = ((start, min(start + tile, length)) for start in range(0, length, tile))
    return [_Span(a, b, max(a - reach, 0), min(b + reach, length)) for a, b in stops]


@dataclass(frozen=True)
class _Strip:
    """Keys and labels in the windows of neighbouring tiles of one row of tiles.

    Columns precede rows, so that each tile's window is a contiguous slice and needs no copy of its own.

    Attributes:
        rows: rows of the tiles and of their windows.
        low: first column.
        keys: `(heads, frames, columns, rows, dim)`.
        labels: `(frames, columns, rows, channels)`.
    """

    rows: _Span
    low: int
    keys: Tensor
    labels: Tensor


class _Workspace:
    """Buffers reused by all strips of a call; allocating fresh pages costs more than filling them.

    With gradients nothing is reused, as the graph keeps the tensors of every tile.
    """

    def __init__(self, like: Tensor, *, reuse: bool) -> None:
        self._like, self.reuse = like, reuse
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """An uninitialised tensor, valid until `name` is taken again."""
        size = math.prod(shape)
        if not self.reuse:
            return self._like.new_empty(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = self._like.new_empty(size)
        return self._buffers[name][:size].view(shape)


def _cut_strip(
    keys: Sequence[Tensor],
    labels: Sequence[Tensor],
    rows: _Span,
    columns: Sequence[_Span],
    workspace: _Workspace,
) -> _Strip:
    """Copies the windows of the tiles at `rows` and neighbouring `columns` from the memory."""
    heads, _, _, dim = keys[0].shape
    low, high = columns[0].low, columns[-1].high
    cut = workspace.take("keys", (heads, len(keys), high - low, rows.high - rows.low, dim))
    for place, frame in enumerate(keys):
        cut[:, place] = frame[:, rows.low : rows.high, low:high].transpose(1, 2)
    values = torch.stack([frame[rows.low : rows.high, low:high].transpose(0, 1) for frame in labels])
    return _Strip(rows, low, cut, values.to(cut.dtype))


def _never(dtype: torch.dtype) -> float:
    """A logit whose weight is 0; finite, since 0 * inf is NaN."""
    return torch.finfo(dtype).min / 8


def _attend_in_tiles(
    queries: Tensor,
    keys: Sequence[Tensor],
    labels: Sequence[Tensor],
    radius: int | None,
    top_k: int | None,
    *,
    exclude_self: bool,
) -> Tensor:
    heads, height, width, _ = queries.shape
    needs_graph = torch.is_grad_enabled() and any(x.requires_grad for x in (queries, *keys, *labels))
    make_workspace = partial(_Workspace, queries, reuse=not needs_graph)
    tile = _tile(queries, len(keys), radius)
    all_rows, all_columns = _spans(height, radius, tile), _spans(width, radius, tile)
    whole = _cut_strip(keys, labels, all_rows[0], all_columns, make_workspace()) if radius is None else None

    def attend(rows: _Span, columns: Sequence[_Span], workspace: _Workspace) -> Tensor:
        strip = whole or _cut_strip(keys, labels, rows, columns, workspace)
        first, last = columns[0].start, columns[-1].stop
        tiles = queries[:, rows.start : rows.stop, first:last].split(tile, 2)
        parts = [
            _attend(part, strip, rows, span, radius, top_k, workspace, exclude_self=exclude_self)
            for span, part in zip(columns, tiles, strict=True)
        ]
        return torch.cat(parts, 2)

    if needs_graph:  # concatenated: the backward pass of a slice fills a tensor of the whole grid
        workspace = make_workspace()
        return torch.cat([attend(rows, all_columns, workspace) for rows in all_rows], 1)

    propagated = queries.new_empty(heads, height, width, labels[0].shape[-1])

    def fill(rows: _Span, columns: Sequence[_Span], workspace: _Workspace) -> None:
        y, x = slice(rows.start, rows.stop), slice(columns[0].start, columns[-1].stop)
        propagated[:, y, x] = attend(rows, columns, workspace)

    threads, tiles = _threads_and_tiles(queries, len(keys), all_rows, all_columns)
    strips = [all_columns[first : first + tiles] for first in range(0, len(all_columns), tiles)]
    work = list(itertools.product(all_rows, strips))
    if threads == 1:
        workspace = make_workspace()
        for spans in work:
            fill(*spans, workspace)
    else:
        _run_in_threads(fill, work, threads, make_workspace)
    return propagated


def _tile(queries: Tensor, frames: int, radius: int | None) -> int:
    """Side of a tile; on an accelerator the largest of `_TILES` whose logits fit into `_WORKSPACES`."""
    heads, height, width, _ = queries.shape
    if queries.device.type == "cpu":
        return _CPU_TILE
    for tile in _TILES:
        places = height * width if radius is None else (tile + 2 * radius) ** 2
        if 4 * heads * frames * tile**2 * places <= _WORKSPACES:
            break
    return tile


def _threads_and_tiles(
    queries: Tensor, frames: int, rows: Sequence[_Span], columns: Sequence[_Span]
) -> tuple[int, int]:
    """Number of threads, and number of neighbouring tiles per strip, within `_WORKSPACES` and `_STRIP`."""
    heads, *_, dim = queries.shape
    tile = columns[0].stop
    per_column = 4 * heads * dim * frames * max(span.high - span.low for span in rows)  # bytes
    window = max(span.high - span.low for span in columns)
    largest = per_column * window * (1 + tile**2 / dim)  # bytes of a tile's keys and logits
    threads = min(torch.get_num_threads(), len(rows) * len(columns), max(1, int(_WORKSPACES // largest)))
    if queries.device.type != "cpu":
        threads = 1
    shared = 1 + max(0, _STRIP // per_column - window) // tile
    parallel = -(-2 * threads // len(rows)) if threads > 1 else 1  # strips of a row of tiles
    return threads, min(shared, -(-len(columns) // parallel))


def _run_in_threads(
    fill: Callable[[_Span, Sequence[_Span], _Workspace], None],
    work: Sequence[tuple[_Span, Sequence[_Span]]],
    threads: int,
    make_workspace: Callable[[], _Workspace],
) -> None:
    """Distributes strips over one thread per core; PyTorch's own threads would split steps that are too small."""
    remaining, inference, before = iter(work), torch.is_inference_mode_enabled(), torch.get_num_threads()
    lock = threading.Lock()

    def fill_strips() -> None:
        torch.set_num_threads(1)
        workspace = make_workspace()
        with torch.inference_mode(inference), torch.no_grad():
            while True:
                with lock:
                    spans = next(remaining, None)
                if spans is None:
                    return
                fill(*spans, workspace)

    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="drift-kernel") as pool:
            futures = [pool.submit(fill_strips) for _ in range(threads)]
    finally:
        torch.set_num_threads(before)  # threads that start later would inherit the workers' setting
    for future in futures:
        future.result()


def _attend(
    tile: Tensor,
    strip: _Strip,
    rows: _Span,
    columns: _Span,
    radius: int | None,
    top_k: int | None,
    workspace: _Workspace,
    *,
    exclude_self: bool,
) -> Tensor:
    """Attention of a tile `(heads, rows, columns, dim)` to its window: `(heads, rows, columns, channels)`."""
    height, width = tile.shape[1:3]
    window = slice(columns.low - strip.low, columns.high - strip.low)
    keys, labels = strip.keys[:, :, window].flatten(2, 3), strip.labels[:, window].flatten(0, 2)
    logits = _logits(tile.flatten(1, 2), keys, workspace)
    if exclude_self:
        row = torch.arange(rows.start, rows.stop, device=tile.device) - strip.rows.low
        column = torch.arange(columns.start, columns.stop, device=tile.device) - columns.low
        own = (column * strip.keys.shape[3] + row[:, None]).flatten()
        logits[:, 0, torch.arange(len(own), device=own.device), own] = _never(logits.dtype)
    too_far = None if radius is None else _too_far(rows, columns, radius, tile.device)
    if top_k is None or logits.shape[-1] <= 2 * top_k:
        if too_far is not None:
            logits = logits.masked_fill(too_far, _never(logits.dtype))
        flat = logits.transpose(1, 2).flatten(2)
        if top_k is None or top_k >= flat.shape[-1]:
            return (flat.softmax(-1) @ labels).unflatten(1, (height, width))
        values, tokens = flat.topk(top_k, dim=-1, sorted=False)
    else:
        values, tokens = _largest(logits.detach(), too_far, top_k)
        if logits.requires_grad:
            exact = logits.transpose(1, 2).flatten(2).gather(-1, tokens)
            values = torch.where(values > _never(values.dtype) / 2, exact, values)
    weights = values.softmax(-1)
    return torch.einsum("hqk,hqkc->hqc", weights, labels[tokens]).unflatten(1, (height, width))


def _logits(
    queries: Float[Tensor, "heads queries dim"],
    keys: Float[Tensor, "heads frames places dim"],
    workspace: _Workspace,
) -> Float[Tensor, "heads frames queries places"]:
    heads, frames, places, _ = keys.shape
    of_frames = queries[:, None].expand(-1, frames, -1, -1).flatten(0, 1)
    if not workspace.reuse:
        return torch.bmm(of_frames, keys.flatten(0, 1).mT).unflatten(0, (heads, frames))
    logits = workspace.take("logits", (heads * frames, queries.shape[1], places))
    return torch.bmm(of_frames, keys.flatten(0, 1).mT, out=logits).unflatten(0, (heads, frames))


def _too_far(
    rows: _Span, columns: _Span, radius: int, device: torch.device
) -> Bool[Tensor, "queries places"]:
    """Places of a window that lie outside the radius of each query of a tile."""
    by_row, by_column = rows.too_far(radius, device), columns.too_far(radius, device)
    return (by_row[:, None, None] | by_column[:, :, None]).flatten(2).flatten(0, 1)


def _largest(
    logits: Float[Tensor, "heads frames queries places"],
    too_far: Bool[Tensor, "queries places"] | None,
    top_k: int,
) -> tuple[Float[Tensor, "heads queries k"], Int[Tensor, "heads queries k"]]:
    """The `top_k` largest logits of each query and their tokens, `frame * places + place`.

    The k largest logits lie at the k places whose maxima over frames are largest: any other place would leave k values
    that are at least as large. So the search covers `places + k * frames` values instead of `frames * places`.
    """
    _, frames, _, places = logits.shape
    maxima = logits.amax(1)
    if too_far is not None:
        maxima.masked_fill_(too_far, _never(maxima.dtype) * 2)
    best, chosen = maxima.topk(top_k, dim=-1, sorted=False)
    candidates = logits.gather(-1, chosen[:, None].expand(-1, frames, -1, -1)).transpose(1, 2)
    # Masked places are chosen only where fewer than k are within the radius; their weight must still be 0.
    masked = (best < _never(maxima.dtype) * 1.5)[:, :, None]
    candidates = candidates.masked_fill(masked, _never(maxima.dtype))
    values, order = candidates.flatten(2).topk(top_k, dim=-1, sorted=False)
    return values, order // top_k * places + chosen.gather(-1, order % top_k)
