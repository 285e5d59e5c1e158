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
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from drift.options import positive, whole_number

__all__ = ["attention_logits", "attention_maps", "propagate"]

_WORKSPACES = 2**29  # upper bound of all threads' buffers, in bytes
_TILE = 8  # tokens; larger tiles copy fewer keys but compute more logits outside the radius


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

    def too_far(self, radius: int | None, device: torch.device) -> Tensor:
        """Pairs more than `radius` apart along the axis, `(queries, keys)` bool."""
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
    """Keys and labels that the queries of a tile may attend to, in groups of one row of one frame.

    Attributes:
        keys: `(heads, groups * group, dim + marks)`.
        labels: `(groups * group, channels)`.
        group: number of tokens in a group.
        marks: `(columns of the tile, marks)`, appended to the queries; see `_cut_window`.
    """

    keys: Tensor
    labels: Tensor
    group: int
    marks: Tensor


class _Workspace:
    """Buffers shared by all tiles of a call: allocating fresh pages for every tile costs more than filling them.

    Where gradients are needed the graph keeps every tile's tensors, so nothing is reused.
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


def _cut_window(
    keys: Sequence[Tensor],
    labels: Sequence[Tensor],
    rows: _Span,
    columns: _Span,
    radius: int | None,
    workspace: _Workspace,
) -> _Window:
    """Copies a window out of the memory, so that one matrix product gives all its logits.

    The product itself masks the columns that lie too far: a query carries a one-hot mark of its column in the tile, a
    key the penalty for each column of the tile. Adding a mask to the logits instead would read and write all of them
    once more, which costs more than the product's few extra terms.
    """
    heads, _, _, dim = keys[0].shape
    marks = 0 if radius is None else columns.stop - columns.start
    shape = (heads, len(keys), rows.high - rows.low, columns.high - columns.low, dim + marks)
    cut = workspace.take("keys", shape)
    for place, frame in enumerate(keys):
        cut[:, place, ..., :dim] = frame[:, rows.low : rows.high, columns.low : columns.high]
    if marks:
        cut[..., dim:] = columns.too_far(radius, cut.device).mT.to(cut) * _never(cut.dtype)
    values = torch.stack([frame[rows.low : rows.high, columns.low : columns.high] for frame in labels])
    one_hot = torch.eye(columns.stop - columns.start, marks, dtype=cut.dtype, device=cut.device)
    return _Window(cut.flatten(1, 3), values.flatten(0, 2).to(cut.dtype), shape[3], one_hot)


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
    tiles = [[(rows, columns) for columns in _spans(width, radius)] for rows in _spans(height, radius)]
    flat = [tile for row in tiles for tile in row]
    needs_graph = torch.is_grad_enabled() and any(x.requires_grad for x in (queries, *keys, *labels))
    make_workspace = partial(_Workspace, queries, reuse=not needs_graph)
    whole = _cut_window(keys, labels, *flat[0], None, make_workspace()) if radius is None else None

    def attend(tile: Tensor, rows: _Span, columns: _Span, workspace: _Workspace) -> Tensor:
        too_far = None if radius is None else rows.too_far(radius, queries.device)
        own = _own_keys(rows, columns, queries.device) if exclude_self else None
        window = whole or _cut_window(keys, labels, rows, columns, radius, workspace)
        return _attend(tile, window, too_far, own, top_k, workspace)

    if needs_graph:  # split and concatenated: the backward pass of a slice fills a tensor of the whole grid
        workspace, parts = make_workspace(), []
        for row, strip in zip(tiles, queries.split(_TILE, 1), strict=True):
            columns = zip(row, strip.split(_TILE, 2), strict=True)
            parts.append(torch.cat([attend(tile, *spans, workspace) for spans, tile in columns], 2))
        return torch.cat(parts, 1)

    propagated = queries.new_empty(heads, height, width, labels[0].shape[-1])

    def fill(rows: _Span, columns: _Span, workspace: _Workspace) -> None:
        y, x = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
        propagated[:, y, x] = attend(queries[:, y, x], rows, columns, workspace)

    largest = 4 * heads * (_TILE**2 + queries.shape[-1]) * _most_keys(flat, len(keys))  # bytes of a tile
    threads = min(torch.get_num_threads(), len(flat), max(1, _WORKSPACES // largest))
    if threads == 1 or queries.device.type != "cpu":
        workspace = make_workspace()
        for spans in flat:
            fill(*spans, workspace)
    else:
        _run_in_threads(fill, flat, threads, make_workspace)
    return propagated


def _own_keys(rows: _Span, columns: _Span, device: torch.device) -> Tensor:
    """For each query of a tile, the place of the key at its own position in the window, `(queries,)`."""
    row = torch.arange(rows.start - rows.low, rows.stop - rows.low, device=device)
    column = torch.arange(columns.start - columns.low, columns.stop - columns.low, device=device)
    return (row[:, None] * (columns.high - columns.low) + column).flatten()


def _most_keys(tiles: Sequence[tuple[_Span, _Span]], frames: int) -> int:
    """The number of keys of the largest window."""
    sizes = ((rows.high - rows.low) * (columns.high - columns.low) for rows, columns in tiles)
    return frames * max(sizes)


def _run_in_threads(
    attend: Callable[[_Span, _Span, _Workspace], None],
    tiles: Sequence[tuple[_Span, _Span]],
    threads: int,
    make_workspace: Callable[[], _Workspace],
) -> None:
    """Distributes tiles over one thread per core; PyTorch's own threads would split steps that are too small."""
    remaining, inference, before = iter(tiles), torch.is_inference_mode_enabled(), torch.get_num_threads()
    lock = threading.Lock()

    def work() -> None:
        torch.set_num_threads(1)
        workspace = make_workspace()
        with torch.inference_mode(inference), torch.no_grad():
            while True:
                with lock:
                    tile = next(remaining, None)
                if tile is None:
                    return
                attend(*tile, workspace)

    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="drift-kernel") as pool:
            futures = [pool.submit(work) for _ in range(threads)]
    finally:
        torch.set_num_threads(before)  # threads that start later would inherit the workers' setting
    for future in futures:
        future.result()


def _attend(
    tile: Tensor,
    window: _Window,
    rows_too_far: Tensor | None,
    own: Tensor | None,
    top_k: int | None,
    workspace: _Workspace,
) -> Tensor:
    """Attention of a tile `(heads, rows, columns, dim)` to its window: `(heads, rows, columns, channels)`."""
    heads, rows, columns, _ = tile.shape
    marks = window.marks.expand(heads, rows, -1, -1) if window.marks.shape[1] else None
    marked = tile if marks is None else torch.cat([tile, marks], dim=-1)
    if workspace.reuse:
        logits = workspace.take("logits", (heads, rows * columns, window.keys.shape[1]))
        torch.bmm(marked.flatten(1, 2), window.keys.mT, out=logits)
    else:
        logits = torch.bmm(marked.flatten(1, 2), window.keys.mT)
    if own is not None:
        logits[:, torch.arange(len(own), device=own.device), own] = _never(logits.dtype)
    grouped = logits.unflatten(-1, (-1, window.group))
    closed = None  # (rows * columns, groups): groups that lie too far along rows
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
        values, tokens = _largest(grouped.detach(), closed, top_k)
        if logits.requires_grad:
            values = torch.where(values > _never(values.dtype) / 2, logits.gather(-1, tokens), values)
    weights = values.softmax(-1)
    return torch.einsum("hqk,hqkc->hqc", weights, window.labels[tokens]).unflatten(1, (rows, columns))


def _largest(grouped: Tensor, closed: Tensor | None, top_k: int) -> tuple[Tensor, Tensor]:
    """The `top_k` largest of the logits `(heads, queries, groups, group)` and their tokens, in one read.

    The k largest logits lie in the k groups of largest maximum: if one lay outside, each of those k groups would hold a
    value at least as large. The maximum of a group is a plain vectorised reduction, and the search for the k largest
    then covers `groups + k * group` values instead of all of them.
    """
    group = grouped.shape[-1]
    maxima = grouped.amax(-1)
    if closed is not None:
        maxima.masked_fill_(closed, _never(maxima.dtype) * 2)
    best, groups = maxima.topk(top_k, dim=-1, sorted=False)
    candidates = grouped.gather(-2, groups[..., None].expand(*groups.shape, group))
    # A closed group is among the best only where too few are open; its weight must still be 0.
    candidates.masked_fill_((best < _never(maxima.dtype) * 1.5)[..., None], _never(maxima.dtype))
    values, places = candidates.flatten(-2).topk(top_k, dim=-1, sorted=False)
    return values, groups.gather(-1, places // group) * group + places % group
