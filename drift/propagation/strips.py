"""Implementation of the kernel for CPUs: strips of neighbouring tiles, which share a copy of their keys, in threads."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from drift.propagation.tiles import TILE, labels_of_largest, never

__all__ = ["attend_in_strips"]

_ROUNDING = 1e-6  # differences of labels up to this count as equal
_WORKSPACES = 2**29  # upper bound of all threads' buffers, in bytes
_STRIP = 2**26  # bytes of keys that tiles share, unless those of one tile are more


@dataclass(frozen=True)
class _Span:
    """A tile of queries `[start, stop)` and its window of keys `[low, high)` along an axis."""

    start: int
    stop: int
    low: int
    high: int

    def too_far(self, radius: int, device: torch.device) -> Tensor:
        """True for each query and key that are more than `radius` apart along the axis, `(queries, keys)` bool."""
        query = torch.arange(self.start, self.stop, device=device)[:, None]
        return (query - torch.arange(self.low, self.high, device=device)[None]).abs() > radius


_Shift = tuple[int, int]  # rows and columns by which a window is moved


def _spans(length: int, radius: int | None, *, clipped: bool = True) -> list[_Span]:
    """The tiles along an axis, with windows that are clipped to the frame if `clipped`."""
    reach = length if radius is None else radius
    low, high = (0, length) if clipped else (-reach, length + reach)
    stops = ((start, min(start + TILE, length)) for start in range(0, length, TILE))
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
        """True for each query of a tile and place of its window outside its radius; shared by tiles of equal shape."""
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
    """Runs of at most `longest` neighbouring tiles with equal shifts, of those whose labels vary."""
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
    """Whether any label in the windows of each tile differs from `constant`."""
    differs = ~((labels - constant).abs() <= _ROUNDING).all(-1)  # a NaN differs
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


def attend_in_strips(
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
    heads, height, width, _ = queries.shape
    needs_graph = torch.is_grad_enabled() and any(x.requires_grad for x in (queries, *keys, *labels))
    make_workspace = partial(_Workspace, queries, reuse=not needs_graph)
    all_rows, all_columns = (_spans(n, radius, clipped=not offsets) for n in (height, width))
    shifts = _shifts(offsets, len(keys), all_rows, all_columns)

    attend_tile = partial(_attend, exclude_self=exclude_self, return_indices=return_indices)

    def attend(row: int, run: slice, workspace: _Workspace) -> Tensor:
        rows, columns = all_rows[row], all_columns[run]
        strip = whole or _cut_strip(keys, labels, rows, columns, shifts[row][run.start], workspace)
        first, last = columns[0].start, columns[-1].stop
        tiles = queries[:, rows.start : rows.stop, first:last].split(TILE, 2)
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

    if return_indices:
        varied = [[True] * len(all_columns)] * len(all_rows)
        propagated = queries.new_empty(heads, height, width, top_k or 0)
    else:
        # A mean of equal labels is that label: tiles that reach only the background are not computed.
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
    if threads == 1 or len(work) < 2:
        workspace = make_workspace()
        for part in work:
            fill(*part, workspace)
    else:
        _run_in_threads(fill, work, min(threads, len(work)), make_workspace)
    return propagated


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
    return_indices: bool,
) -> Tensor:
    """Attention of a tile `(heads, rows, columns, dim)` to its window; see `attend_in_strips`."""
    height, width = tile.shape[1:3]
    rows = replace(rows, low=strip.rows.low, high=strip.rows.high)
    columns = replace(columns, low=max(columns.low, strip.low), high=min(columns.high, strip.high))
    window = slice(columns.low - strip.low, columns.high - strip.low)
    keys, labels = strip.keys[:, :, window].flatten(2, 3), strip.labels[:, window].flatten(0, 2)
    logits = _logits(tile.flatten(1, 2), keys, workspace)
    if strip.outside is not None:
        outside = strip.outside[:, window].flatten(1)[:, None]
        mask_fill = logits.masked_fill_ if workspace.reuse else logits.masked_fill
        logits = mask_fill(outside, never(logits.dtype))
    if exclude_self:
        row = torch.arange(rows.start, rows.stop, device=tile.device) - strip.rows.low
        column = torch.arange(columns.start, columns.stop, device=tile.device) - columns.low
        own = (column * strip.keys.shape[3] + row[:, None]).flatten()
        logits[:, 0, torch.arange(len(own), device=own.device), own] = never(logits.dtype)
    too_far = None if radius is None else workspace.too_far(rows, columns, radius)
    labelled = labels_of_largest(logits, labels, too_far, top_k, return_indices=return_indices)
    return labelled.unflatten(1, (height, width))


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
