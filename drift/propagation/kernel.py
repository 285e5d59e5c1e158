"""The temporal kernel: labels carried from memory frames to a target frame by attention.

Section 2.3 of the design, arXiv 2511.19936: `A = softmax(Q Kᵀ / temperature)` over the tokens of all
memory frames together, restricted to a spatial radius and to the top-k keys, applied to labels.

The (target tokens x memory tokens) matrix is never held. Queries are taken tile by tile; a tile meets
only the keys of its own window, so time and memory go with the radius, not with the frame's area.
Without radius and top-k the kernel is plain attention whose values are the labels, and PyTorch's fused
kernel does it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from drift.options import positive, whole_number

__all__ = ["attention_maps", "propagate"]

_WORKSPACES = 2**29  # bytes that all threads' buffers take at most
_TILE = 8  # tokens; larger tiles copy fewer keys but compute more logits outside the radius


def propagate(
    queries: Float[Tensor, "heads height width dim"],
    keys: Sequence[Float[Tensor, "heads height width dim"]],
    labels: Sequence[Float[Tensor, "height width channels"]],
    *,
    temperature: float = 1.0,
    radius: int | None = None,
    top_k: int | None = None,
) -> Float[Tensor, "heads height width channels"]:
    """Labels of the target frame, as each head sees them.

    Args:
        queries: the target's queries, already scaled (by 1/√dim for attention).
        keys: the memory frames' keys, one tensor per frame.
        labels: the memory frames' labels, one tensor per frame, in the order of `keys`.
        temperature: divides the logits; above 0. Small values sharpen.
        radius: a query meets keys at most this many tokens away, in rows and in columns
            (the square neighbourhood of DINO and DIFT); None for the whole frame.
        top_k: how many of its keys, over all memory frames together, a query keeps; None for all.

    Returns:
        For each head the weighted mean of labels; channels keep their sum where they sum to 1.

    Raises:
        OptionError: an option is out of range.
        ValueError: there is no memory, or keys and labels differ in number or size.
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
    queries = queries / temperature
    with torch.autocast(queries.device.type, enabled=False):  # bfloat16 would blur which keys are largest
        return _carry(queries, keys, labels, radius, top_k)


def attention_maps(
    queries: Float[Tensor, "heads queries dim"],
    keys: Sequence[Float[Tensor, "heads height width dim"]],
    *,
    temperature: float = 1.0,
    shares: Float[Tensor, " heads"] | None = None,
) -> Float[Tensor, "queries frames height width"]:
    """Where queries look, over all memory frames together, as the mean over heads; each one's sums to 1.

    For looking at: neither radius nor top-k hide anything. Arguments as for `propagate`; heads count by their
    `shares`, where there are any.
    """
    stacked = torch.stack(list(keys), dim=1)
    if shares is None or not shares.sum():
        shares = torch.ones(len(queries), device=queries.device)
    with torch.autocast(queries.device.type, enabled=False):
        logits = torch.bmm(queries / temperature, stacked.flatten(1, 3).mT)
        weights = torch.einsum("h,hqk->qk", (shares / shares.sum()).to(logits), logits.softmax(-1))
    return weights.unflatten(1, stacked.shape[1:4])


def _carry(
    queries: Tensor, keys: Sequence[Tensor], labels: Sequence[Tensor], radius: int | None, top_k: int | None
) -> Tensor:
    grid = queries.shape[1:3]
    if radius is not None and radius >= max(grid) - 1:
        radius = None
    if radius is None and top_k is None:
        return _attend_everywhere(queries, keys, labels)
    return _attend_in_tiles(queries, keys, labels, radius, top_k)


def _attend_everywhere(queries: Tensor, keys: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    """Scaled-dot-product attention with labels as values."""
    heads, height, width, dim = queries.shape
    channels = labels[0].shape[-1]
    # The fused CPU kernel wants queries, keys and values of one width; zeros change nothing.
    common = max(dim, channels)
    q = F.pad(queries.flatten(1, 2), (0, common - dim))[None]
    k = F.pad(torch.cat([frame.flatten(1, 2) for frame in keys], dim=1), (0, common - dim))[None]
    v = F.pad(torch.cat([frame.flatten(0, 1) for frame in labels]), (0, common - channels))
    v = v.expand(1, heads, -1, -1)
    carried = F.scaled_dot_product_attention(q, k, v.to(q.dtype), scale=1.0)[0, ..., :channels]
    return carried.unflatten(1, (height, width))


@dataclass(frozen=True)
class _Span:
    """Along one axis: a tile of queries `[start, stop)` and its window of keys `[low, high)`."""

    start: int
    stop: int
    low: int
    high: int

    def too_far(self, radius: int | None, device: torch.device) -> Tensor:
        """`(queries, keys)` bool: pairs more than `radius` apart along this axis."""
        query = torch.arange(self.start, self.stop, device=device)[:, None]
        key = torch.arange(self.low, self.high, device=device)[None]
        reach = max(self.high, self.stop) if radius is None else radius
        return (query - key).abs() > reach


def _spans(length: int, radius: int | None) -> Iterator[_Span]:
    for start in range(0, length, _TILE):
        stop = min(start + _TILE, length)
        if radius is None:
            yield _Span(start, stop, 0, length)
        else:
            yield _Span(start, stop, max(start - radius, 0), min(stop + radius, length))


@dataclass(frozen=True)
class _Window:
    """The keys and labels that the queries of one tile may meet, in groups of one row of one frame.

    Attributes:
        keys: `(heads, groups * group, dim + marks)`.
        labels: `(groups * group, channels)`.
        group: tokens of a group.
        marks: `(tile's columns, marks)`, appended to the queries: see `_cut_window`.
    """

    keys: Tensor
    labels: Tensor
    group: int
    marks: Tensor


class _Workspace:
    """Buffers that all tiles of one call share: fresh pages for every tile cost more than filling them."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """An uninitialised tensor that stays valid until `name` is taken again."""
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = self._like.new_empty(size)
        return self._buffers[name][:size].view(shape)


def _cut_window(
    keys: Sequence[Tensor],
    labels: Sequence[Tensor],
    rows: _Span,
    columns: _Span,
    radius: int | None,
    workspace: _Workspace,
) -> _Window:
    """Copies a window out of the memory, so that one matrix product gives all its logits.

    Which columns lie too far is told to that product itself: a query carries a one-hot mark of its
    column in the tile, a key the penalty for each column of the tile. Adding a mask to the logits
    instead would read and write them all once more, which costs more than the product's few extra terms.
    """
    heads, _, _, dim = keys[0].shape
    marks = 0 if radius is None else columns.stop - columns.start
    shape = (heads, len(keys), rows.high - rows.low, columns.high - columns.low, dim + marks)
    cut = workspace.take("keys", shape)
    for place, frame in enumerate(keys):
        cut[:, place, ..., :dim] = frame[:, rows.low : rows.high, columns.low : columns.high]
    if marks:
        cut[..., dim:] = columns.too_far(radius, cut.device).mT * _never(cut.dtype)
    values = torch.stack([frame[rows.low : rows.high, columns.low : columns.high] for frame in labels])
    one_hot = torch.eye(columns.stop - columns.start, marks, dtype=cut.dtype, device=cut.device)
    return _Window(cut.flatten(1, 3), values.flatten(0, 2).to(cut.dtype), shape[3], one_hot)


def _never(dtype: torch.dtype) -> float:
    """A logit whose weight is 0; finite, since 0 times infinity is not a number."""
    return torch.finfo(dtype).min / 8


def _attend_in_tiles(
    queries: Tensor, keys: Sequence[Tensor], labels: Sequence[Tensor], radius: int | None, top_k: int | None
) -> Tensor:
    heads, height, width, _ = queries.shape
    carried = queries.new_empty(heads, height, width, labels[0].shape[-1])
    tiles = [(rows, columns) for rows in _spans(height, radius) for columns in _spans(width, radius)]
    whole = _cut_window(keys, labels, *tiles[0], None, _Workspace(queries)) if radius is None else None

    def attend(rows: _Span, columns: _Span, workspace: _Workspace) -> None:
        too_far = None if radius is None else rows.too_far(radius, queries.device)
        window = whole or _cut_window(keys, labels, rows, columns, radius, workspace)
        y, x = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
        carried[:, y, x] = _attend(queries[:, y, x], window, too_far, top_k, workspace)

    largest = 4 * heads * (_TILE**2 + queries.shape[-1]) * _most_keys(tiles, len(keys))  # bytes of a tile
    threads = min(torch.get_num_threads(), len(tiles), max(1, _WORKSPACES // largest))
    if threads == 1 or queries.device.type != "cpu" or torch.is_grad_enabled():  # a graph is a thread's own
        workspace = _Workspace(queries)
        for tile in tiles:
            attend(*tile, workspace)
    else:
        _each_in_a_thread(attend, tiles, threads, lambda: _Workspace(queries))
    return carried


def _most_keys(tiles: Sequence[tuple[_Span, _Span]], frames: int) -> int:
    """The keys of the largest window."""
    sizes = ((rows.high - rows.low) * (columns.high - columns.low) for rows, columns in tiles)
    return frames * max(sizes)


def _each_in_a_thread(
    attend: Callable[[_Span, _Span, _Workspace], None],
    tiles: Sequence[tuple[_Span, _Span]],
    threads: int,
    make_workspace: Callable[[], _Workspace],
) -> None:
    """A thread for each core, each with tiles of its own: PyTorch's threads would share steps that are too small."""
    waiting, inference, before = iter(tiles), torch.is_inference_mode_enabled(), torch.get_num_threads()
    taking = threading.Lock()

    def work() -> None:
        torch.set_num_threads(1)
        workspace = make_workspace()
        with torch.inference_mode(inference), torch.no_grad():
            while True:
                with taking:
                    tile = next(waiting, None)
                if tile is None:
                    return
                attend(*tile, workspace)

    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="drift-kernel") as pool:
            done = [pool.submit(work) for _ in range(threads)]
    finally:
        torch.set_num_threads(before)  # else threads that begin later take the workers' setting
    for one in done:
        one.result()


def _attend(
    tile: Tensor, window: _Window, rows_too_far: Tensor | None, top_k: int | None, workspace: _Workspace
) -> Tensor:
    """Attention of a tile `(heads, rows, columns, dim)` to its window: `(heads, rows, columns, channels)`."""
    heads, rows, columns, _ = tile.shape
    marks = window.marks.expand(heads, rows, -1, -1) if window.marks.shape[1] else None
    marked = tile if marks is None else torch.cat([tile, marks], dim=-1)
    logits = workspace.take("logits", (heads, rows * columns, window.keys.shape[1]))
    torch.bmm(marked.flatten(1, 2), window.keys.mT, out=logits)
    grouped = logits.unflatten(-1, (-1, window.group))
    closed = None  # (rows * columns, groups): groups that lie too far, row for row
    if rows_too_far is not None:
        frames = grouped.shape[-2] // rows_too_far.shape[1]
        closed = rows_too_far.repeat(1, frames).repeat_interleave(columns, dim=0)
    if top_k is None or grouped.shape[-2] <= 2 * top_k:
        if closed is not None:
            grouped.masked_fill_(closed[..., None], _never(logits.dtype))
        if top_k is None or top_k >= logits.shape[-1]:
            return (logits.softmax(-1) @ window.labels).unflatten(1, (rows, columns))
        values, tokens = logits.topk(top_k, dim=-1, sorted=False)
    else:
        values, tokens = _largest(grouped, closed, top_k)
    weights = values.softmax(-1)
    return torch.einsum("hqk,hqkc->hqc", weights, window.labels[tokens]).unflatten(1, (rows, columns))


def _largest(grouped: Tensor, closed: Tensor | None, top_k: int) -> tuple[Tensor, Tensor]:
    """The `top_k` largest of the logits `(heads, queries, groups, group)` and their tokens, read once.

    The k largest lie in the k groups of largest maximum: were one outside, each of those k groups
    would hold a value at least as large. A maximum per group is a plain vectorised reduction, and the
    search for the k largest then sees `groups + k * group` values instead of all of them.
    """
    group = grouped.shape[-1]
    maxima = grouped.amax(-1)
    if closed is not None:
        maxima.masked_fill_(closed, _never(maxima.dtype) * 2)
    best, groups = maxima.topk(top_k, dim=-1, sorted=False)
    candidates = grouped.gather(-2, groups[..., None].expand(*groups.shape, group))
    # A closed group is among the best only where too few are open: it must then still weigh nothing.
    candidates.masked_fill_((best < _never(maxima.dtype) * 1.5)[..., None], _never(maxima.dtype))
    values, places = candidates.flatten(-2).topk(top_k, dim=-1, sorted=False)
    return values, groups.gather(-1, places // group) * group + places % group
