"""The temporal kernel: labels propagated from memory frames to a target frame by attention.

`docs/method.md`, "The temporal kernel" (arXiv 2511.19936): `A = softmax(Q Kᵀ / temperature)` over the tokens of all
memory frames together, restricted to a spatial radius and to the top-k keys, applied to labels.

The (target tokens x memory tokens) matrix is never materialised. Queries are processed in tiles; a tile attends only to
the keys of its own window, so time and memory scale with the radius, not with the frame's area. Without radius and
top-k the kernel is plain attention with labels as values, computed by PyTorch's fused kernel.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from drift.options import positive, whole_number

__all__ = ["TILE", "attention_logits", "attention_maps", "nearest_keys", "propagate"]

TILE = 8
"""Side of the tiles of queries that share an offset, in tokens; also the tiles of the kernel on a CPU."""

_ROUNDING = 1e-6  # differences of labels up to this count as equal
_WORKSPACES = 2**29  # upper bound of all threads' buffers, in bytes
_CPU_TILE = TILE
_STRIP = 2**26  # bytes of keys that tiles share, unless those of one tile are more
_TILES = (32, 16, 8)  # tokens; larger tiles need fewer products but compute more logits outside the radius


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
        offsets: for each memory frame, the rows and columns by which the neighbourhoods of each tile of `TILE` x `TILE`
            queries are shifted, at most as far as the tile stays within the frame; None to centre the neighbourhoods
            on their queries. Without a radius they have no effect.

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
        return _attend_in_tiles(
            queries, keys, labels, radius, top_k, exclude_self=exclude_self, offsets=offsets
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
    """The keys with the largest logits of each query, in no particular order.

    Args:
        count: number of keys for each query, over all memory frames together.
        queries, keys, radius, exclude_self, offsets: see `propagate`.

    Returns:
        Indices of the keys among the tokens of all memory frames, `(frame * height + row) * width + column`; -1 where
        there are fewer keys than `count`.
    """
    height, width = queries.shape[1:3]
    numbers = torch.arange(len(keys) * height * width, device=queries.device, dtype=queries.dtype)
    with torch.autocast(queries.device.type, enabled=False):
        found = _attend_in_tiles(
            queries,
            keys,
            list(numbers.view(len(keys), height, width, 1)),
            radius,
            count,
            exclude_self=exclude_self,
            offsets=None if radius is None else offsets,
            numbers=True,
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


_Shift = tuple[int, int]  # rows and columns by which a window is moved


def _spans(length: int, radius: int | None, tile: int, *, clipped: bool = True) -> list[_Span]:
    """The tiles along an axis; windows end at the frame's edges if `clipped`."""
    reach = length if radius is None else radius
    low, high = (0, length) if clipped else (-reach, length + reach)
    stops = ((start, min(start + tile, length)) for start in range(0, length, tile))
    return [_Span(a, b, max(a - reach, low), min(b + reach, high)) for a, b in stops]


@dataclass(frozen=True)
class _Strip:
    """Keys and labels in the windows of neighbouring tiles of one row of tiles.

    Columns precede rows, so that each tile's window is a contiguous slice and needs no copy of its own.

    Attributes:
        rows: rows of the tiles and of their windows.
        low, high: first column, and the one after the last.
        keys: `(heads, frames, columns, rows, dim)`.
        labels: `(frames, columns, rows, channels)`.
        outside: places that a shift moves out of their frame, `(frames, columns, rows)`; None if there are none.
    """

    rows: _Span
    low: int
    high: int
    keys: Tensor
    labels: Tensor
    outside: Tensor | None


class _Workspace:
    """Buffers and masks reused by all strips of a call; allocating fresh pages costs more than filling them.

    With gradients nothing is reused, as the graph keeps the tensors of every tile.
    """

    def __init__(self, like: Tensor, *, reuse: bool) -> None:
        self._like, self.reuse = like, reuse
        self._buffers: dict[str, Tensor] = {}
        self._too_far: dict[tuple[int, ...], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """An uninitialised tensor, valid until `name` is taken again."""
        size = math.prod(shape)
        if not self.reuse:
            return self._like.new_empty(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = self._like.new_empty(size)
        return self._buffers[name][:size].view(shape)

    def too_far(self, rows: _Span, columns: _Span, radius: int) -> Bool[Tensor, "queries places"]:
        """Places of a window that lie outside the radius of each query of a tile; equal tiles share them."""
        shape = tuple(
            place - span.start for span in (rows, columns) for place in (span.stop, span.low, span.high)
        )
        if shape not in self._too_far:
            by_row, by_column = (span.too_far(radius, self._like.device) for span in (rows, columns))
            mask = by_row[:, None, None] | by_column[:, :, None]
            self._too_far[shape] = mask.flatten(2).flatten(0, 1)
        return self._too_far[shape]


def _cut_strip(
    keys: Sequence[Tensor],
    labels: Sequence[Tensor],
    rows: _Span,
    columns: Sequence[_Span],
    shifts: Sequence[_Shift],
    workspace: _Workspace,
) -> _Strip:
    """Copies the windows of the tiles at `rows` and neighbouring `columns` from the memory, shifted in each frame."""
    heads, height, width, dim = keys[0].shape
    down, right = [shift[0] for shift in shifts], [shift[1] for shift in shifts]
    top, bottom = max(rows.low, -max(down)), min(rows.high, height - min(down))
    low, high = max(columns[0].low, -max(right)), min(columns[-1].high, width - min(right))
    shape = (len(keys), high - low, bottom - top)
    cut, values = (
        workspace.take("keys", (heads, *shape, dim)),
        labels[0].new_zeros(*shape, labels[0].shape[-1]),
    )
    outside = None
    if len(set(shifts)) > 1:
        outside = torch.ones(shape, dtype=torch.bool, device=cut.device)
        cut.zero_()  # places outside the frame are masked, but must be finite
    for place, (y_shift, x_shift) in enumerate(shifts):
        y, to_y = _overlap(top, bottom, y_shift, height)
        x, to_x = _overlap(low, high, x_shift, width)
        cut[:, place, to_x, to_y] = keys[place][:, y, x].transpose(1, 2)
        values[place, to_x, to_y] = labels[place][y, x].transpose(0, 1)
        if outside is not None:
            outside[place, to_x, to_y] = False
    return _Strip(replace(rows, low=top, high=bottom), low, high, cut, values.to(cut.dtype), outside)


def _overlap(low: int, high: int, shift: int, length: int) -> tuple[slice, slice]:
    """The part of a shifted window that lies within the frame: in the frame, and in the window."""
    start, stop = max(low + shift, 0), min(high + shift, length)
    return slice(start, stop), slice(start - shift - low, stop - shift - low)


def _shifts(
    offsets: Sequence[Tensor] | None, frames: int, rows: Sequence[_Span], columns: Sequence[_Span]
) -> list[list[list[_Shift]]]:
    """Shift of the window of each tile in each frame, limited so that the tile itself stays within the frame."""
    if offsets is None:
        return [[[(0, 0)] * frames] * len(columns)] * len(rows)
    height, width = rows[-1].stop, columns[-1].stop
    asked = torch.stack(list(offsets), 2).tolist()
    return [
        [
            [
                (min(max(y, -row.start), height - row.stop), min(max(x, -column.start), width - column.stop))
                for y, x in asked[i][j]
            ]
            for j, column in enumerate(columns)
        ]
        for i, row in enumerate(rows)
    ]


def _runs(shifts: Sequence[list[_Shift]], varied: Sequence[bool], longest: int) -> Iterator[slice]:
    """Runs of at most `longest` neighbouring tiles with varied labels and equal shifts."""
    for (needed, _), group in groupby(range(len(shifts)), lambda tile: (varied[tile], shifts[tile])):
        tiles = list(group)
        for start in range(0, len(tiles) if needed else 0, longest):
            run = tiles[start : start + longest]
            yield slice(run[0], run[-1] + 1)


def _varied(
    labels: Float[Tensor, "frames height width channels"],
    constant: Float[Tensor, " channels"],
    rows: Sequence[_Span],
    columns: Sequence[_Span],
    shifts: Sequence[Sequence[Sequence[_Shift]]],
) -> list[list[bool]]:
    """For each tile, whether any label in its windows differs from `constant`."""
    differs = ((labels - constant).abs() > _ROUNDING).any(-1)
    counts = F.pad(differs.long().cumsum(1).cumsum(2), (1, 0, 1, 0)).flatten()
    height, width = differs.shape[1] + 1, differs.shape[2] + 1
    moved = torch.tensor(shifts, device=labels.device)  # (tile rows, tile columns, frames, 2)

    def edges(spans: Sequence[_Span], axis: int, length: int) -> list[Tensor]:
        ends = torch.tensor([[span.low, span.high] for span in spans], device=labels.device)
        ends = ends.view(-1, 1, 1, 2) if axis == 0 else ends.view(1, -1, 1, 2)
        return list((ends + moved[..., axis, None]).clamp(0, length - 1).unbind(-1))

    (top, bottom), (left, right) = edges(rows, 0, height), edges(columns, 1, width)
    frame = torch.arange(len(labels), device=labels.device) * height

    def count(row: Tensor, column: Tensor) -> Tensor:
        return counts[(frame + row) * width + column]

    inside = count(bottom, right) - count(top, right) - count(bottom, left) + count(top, left)
    varied: list[list[bool]] = (inside > 0).any(-1).tolist()
    return varied


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
    offsets: Sequence[Tensor] | None,
    numbers: bool = False,
) -> Tensor:
    """The mean label of each query's keys; with `numbers` the labels of its `top_k` keys, which are numbers, or -1."""
    heads, height, width, _ = queries.shape
    needs_graph = torch.is_grad_enabled() and any(x.requires_grad for x in (queries, *keys, *labels))
    make_workspace = partial(_Workspace, queries, reuse=not needs_graph)
    tile = TILE if offsets else _tile(queries, len(keys), radius)
    all_rows, all_columns = (_spans(n, radius, tile, clipped=not offsets) for n in (height, width))
    shifts = _shifts(offsets, len(keys), all_rows, all_columns)

    attend_tile = partial(_attend, exclude_self=exclude_self, numbers=numbers)

    def attend(row: int, run: slice, workspace: _Workspace) -> Tensor:
        rows, columns = all_rows[row], all_columns[run]
        strip = whole or _cut_strip(keys, labels, rows, columns, shifts[row][run.start], workspace)
        first, last = columns[0].start, columns[-1].stop
        tiles = queries[:, rows.start : rows.stop, first:last].split(tile, 2)
        parts = [
            attend_tile(part, strip, rows, span, radius, top_k, workspace)
            for span, part in zip(columns, tiles, strict=True)
        ]
        return torch.cat(parts, 2)

    whole = None
    if radius is None:
        whole = _cut_strip(keys, labels, all_rows[0], all_columns, shifts[0][0], make_workspace())
    if needs_graph:  # concatenated: the backward pass of a slice fills a tensor of the whole grid
        workspace = make_workspace()
        all_of_row = [True] * len(all_columns)
        runs = [list(_runs(of_row, all_of_row, len(all_columns))) for of_row in shifts]
        return torch.cat(
            [
                torch.cat([attend(row, run, workspace) for run in runs[row]], 2)
                for row in range(len(all_rows))
            ],
            1,
        )

    if numbers:
        varied = [[True] * len(all_columns)] * len(all_rows)
        propagated = queries.new_empty(heads, height, width, top_k or 0)
    else:
        # Where all labels in reach are equal, so is the result: most of the background.
        stacked = torch.stack(list(labels)).to(queries.dtype)
        constant = stacked[:, :: TILE // 2, :: TILE // 2].flatten(0, 2).median(0).values
        varied = _varied(stacked, constant, all_rows, all_columns, shifts)
        propagated = constant.expand(heads, height, width, -1).clone()

    def fill(row: int, run: slice, workspace: _Workspace) -> None:
        rows, columns = all_rows[row], all_columns[run]
        y, x = slice(rows.start, rows.stop), slice(columns[0].start, columns[-1].stop)
        propagated[:, y, x] = attend(row, run, workspace)

    threads, tiles = _threads_and_tiles(queries, len(keys), all_rows, all_columns)
    work = [(row, run) for row, of_row in enumerate(shifts) for run in _runs(of_row, varied[row], tiles)]
    if threads == 1:
        workspace = make_workspace()
        for part in work:
            fill(*part, workspace)
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
    fill: Callable[[int, slice, _Workspace], None],
    work: Sequence[tuple[int, slice]],
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
                    part = next(remaining, None)
                if part is None:
                    return
                fill(*part, workspace)

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
    numbers: bool,
) -> Tensor:
    """Attention of a tile `(heads, rows, columns, dim)` to its window; see `_attend_in_tiles`."""
    height, width = tile.shape[1:3]
    rows = replace(rows, low=strip.rows.low, high=strip.rows.high)
    columns = replace(columns, low=max(columns.low, strip.low), high=min(columns.high, strip.high))
    window = slice(columns.low - strip.low, columns.high - strip.low)
    keys, labels = strip.keys[:, :, window].flatten(2, 3), strip.labels[:, window].flatten(0, 2)
    logits = _logits(tile.flatten(1, 2), keys, workspace)
    if strip.outside is not None:
        outside = strip.outside[:, window].flatten(1)[:, None]
        mask_fill = logits.masked_fill_ if workspace.reuse else logits.masked_fill
        logits = mask_fill(outside, _never(logits.dtype))
    if exclude_self:
        row = torch.arange(rows.start, rows.stop, device=tile.device) - strip.rows.low
        column = torch.arange(columns.start, columns.stop, device=tile.device) - columns.low
        own = (column * strip.keys.shape[3] + row[:, None]).flatten()
        logits[:, 0, torch.arange(len(own), device=own.device), own] = _never(logits.dtype)
    too_far = None if radius is None else workspace.too_far(rows, columns, radius)
    if top_k is None or logits.shape[-1] <= 2 * top_k:
        if too_far is not None:
            logits = logits.masked_fill(too_far, _never(logits.dtype))
        flat = logits.transpose(1, 2).flatten(2)
        if top_k is None or (top_k >= flat.shape[-1] and not numbers):
            return (flat.softmax(-1) @ labels).unflatten(1, (height, width))
        values, tokens = flat.topk(min(top_k, flat.shape[-1]), dim=-1, sorted=False)
    else:
        values, tokens = _largest(logits.detach(), too_far, top_k)
        if logits.requires_grad:
            exact = logits.transpose(1, 2).flatten(2).gather(-1, tokens)
            values = torch.where(values > _never(values.dtype) / 2, exact, values)
    if numbers:
        found = labels[tokens][..., 0].masked_fill(values < _never(values.dtype) / 2, -1)
        return F.pad(found, (0, (top_k or 0) - found.shape[-1]), value=-1).unflatten(1, (height, width))
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
