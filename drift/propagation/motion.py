"""Motion of objects: neighbourhoods of the kernel that follow them (`docs/holding-on.md`, "Windows that follow").

An object's displacement between two frames maximises the mean cosine similarity between its tokens in the one and the
tokens at the displaced positions in the other, less a penalty for the distance. The neighbourhoods of the tiles that
the object alone is expected to cover are centred on its position in each memory frame; all others stay where they are.

An object that the newest memory frame does not show is searched for in the whole frame, from the newest frame that
shows it. A wrong position does little harm: the frames without the object still contribute the tokens of that very
place, which are more similar to it.

After a scene cut, objects of the previous frame are lost (`is_scene_cut`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from drift.propagation.kernel import TILE

__all__ = ["displacement", "frame_similarity", "is_scene_cut", "object_offsets", "positions_of"]

_CUT_POOL = 4  # as _POOL, for the detection of scene cuts
_CUT_RATIO = 0.8  # of similarities, see `is_scene_cut`
_POOL = 2  # tokens are averaged over squares of this side before they are compared
_REACH = 16  # largest displacement between neighbouring frames along an axis, in pooled tokens
_INERTIA = 0.004  # similarity that a displacement by one pooled token must gain


def object_offsets(
    queries: Float[Tensor, "heads height width dim"],
    keys: Sequence[Float[Tensor, "heads height width dim"]],
    labels: Sequence[Float[Tensor, "height width channels"]],
    slack: int,
) -> list[Int[Tensor, "tile_rows tile_columns 2"]] | None:
    """Offsets of the kernel's neighbourhoods that follow objects; see `propagate`.

    Args:
        queries: queries of the target frame.
        keys: keys of the memory frames; the last one is the newest.
        labels: their labels, background first.
        slack: displacements of fewer tokens along both axes are ignored.

    Returns:
        Offsets in each memory frame; None if all are 0.
    """
    height, width = labels[0].shape[:2]
    tiles = -(-height // TILE), -(-width // TILE)
    offsets = torch.zeros(len(keys), *tiles, 2, dtype=torch.long, device=queries.device)
    objects_near = torch.zeros(tiles, dtype=torch.long, device=queries.device)
    target, pooled = _pooled(queries), dict[int, Tensor]()
    for channel, positions in enumerate(positions_of(labels), start=1):
        shown = positions.isfinite().all(1).nonzero()[:, 0].tolist()
        if not shown:
            continue
        newest = shown[-1]
        reach = _REACH if newest == len(keys) - 1 else max(target.shape[:2])
        probability = labels[newest][..., channel]
        if newest not in pooled:  # once for all objects
            pooled[newest] = _pooled(keys[newest])
        moved = displacement(target, pooled[newest], probability, reach)
        shifts = (positions - positions[newest] - moved).nan_to_num().round().long()
        shifts[shifts.abs().amax(1) < slack] = 0
        near = _near_tiles(probability, moved)
        offsets[:, near] = shifts[:, None]
        objects_near += near
    offsets[:, objects_near > 1] = 0  # one object's offset would hide the other
    return list(offsets) if offsets.any() else None


def positions_of(
    labels: Sequence[Float[Tensor, "height width channels"]],
) -> Float[Tensor, "objects frames 2"]:
    """Row and column of the centre of each object in each frame, in tokens; NaN where the frame does not show it.

    The centre of mass of the tokens whose probability is above half of the object's largest probability in any frame.
    """
    objects = torch.stack(list(labels))[..., 1:].permute(3, 0, 1, 2).float()
    peaks = objects.flatten(1).amax(1) if objects.numel() else objects.sum((1, 2, 3))
    objects = objects * (objects > peaks[:, None, None, None] / 2)
    row, column = (torch.arange(n, device=objects.device, dtype=torch.float) for n in objects.shape[2:])
    moments = torch.stack([objects.sum(3) @ row, objects.sum(2) @ column], -1)
    return moments / objects.sum((2, 3))[..., None]  # 0 / 0 is NaN


def is_scene_cut(
    keys: Float[Tensor, "heads height width dim"],
    previous: Float[Tensor, "heads height width dim"],
    before_previous: Float[Tensor, "heads height width dim"],
) -> bool:
    """Whether there is a scene cut between the previous frame and the current one.

    There is a cut if the similarity of the current and the previous frame is less than 0.8 times that of the previous
    frame and its predecessor; see `frame_similarity`.

    Args:
        keys: keys of the current frame.
        previous: keys of the previous frame.
        before_previous: keys of the frame before the previous one.
    """
    # Not a quotient: the similarity across an earlier cut may be negative.
    return bool(frame_similarity(keys, previous) < _CUT_RATIO * frame_similarity(previous, before_previous))


def frame_similarity(
    keys: Float[Tensor, "heads height width dim"], earlier: Float[Tensor, "heads height width dim"]
) -> Float[Tensor, ""]:
    """Similarity of a frame to an earlier one, in [-1, 1].

    The mean, over tokens, of the largest cosine similarity to any token of the earlier frame. Keys are averaged over
    4 x 4 tokens and concatenated over heads.
    """
    tokens, others = (_pooled(frame, _CUT_POOL).flatten(0, 1) for frame in (keys, earlier))
    return (tokens @ others.mT).amax(1).mean()


def displacement(
    target: Float[Tensor, "rows columns dim"],
    source: Float[Tensor, "rows columns dim"],
    probability: Float[Tensor, "height width"],
    reach: int = _REACH,
) -> Float[Tensor, " axes"]:
    """Rows and columns by which an object moved from a frame to the target frame, in tokens.

    Args:
        target, source: normalised tokens of both frames, averaged over squares of 2 x 2 tokens.
        probability: probability of the object in the source frame.
        reach: largest displacement along each axis, in pooled tokens.
    """
    rows, columns, _ = target.shape
    weights = _pool(probability[..., None])[..., 0]
    y, x = (weights > weights.max() / 2).nonzero(as_tuple=True)
    weights = weights[y, x] / weights[y, x].sum()
    similar = source[y, x] @ target.flatten(0, 1).mT
    moves = torch.cartesian_prod(*(_steps(min(reach, n - 1), similar.device) for n in (rows, columns)))
    to_y, to_x = y[:, None] + moves[:, 0], x[:, None] + moves[:, 1]
    inside = (to_y >= 0) & (to_y < rows) & (to_x >= 0) & (to_x < columns)
    places = to_y.clamp(0, rows - 1) * columns + to_x.clamp(0, columns - 1)
    similar = similar.gather(1, places) * inside  # a token that leaves the frame is similar to nothing
    scores = similar.mT @ weights
    best = (scores - _INERTIA * moves.float().norm(dim=1)).argmax()
    return moves[best].float() * _POOL


def _steps(reach: int, device: torch.device) -> Int[Tensor, " steps"]:
    return torch.arange(-reach, reach + 1, device=device)


def _pooled(
    tokens: Float[Tensor, "heads height width dim"], side: int = _POOL
) -> Float[Tensor, "rows columns channels"]:
    """Normalised tokens of all heads together, averaged over squares."""
    return F.normalize(_pool(tokens.permute(1, 2, 0, 3).flatten(2).float(), side), dim=-1)


def _pool(
    values: Float[Tensor, "height width channels"], side: int = _POOL
) -> Float[Tensor, "rows columns channels"]:
    pooled = F.avg_pool2d(values.permute(2, 0, 1)[None], side, ceil_mode=True, count_include_pad=False)
    return pooled[0].permute(1, 2, 0)


def _near_tiles(
    probability: Float[Tensor, "height width"], moved: Float[Tensor, " axes"]
) -> Bool[Tensor, "tile_rows tile_columns"]:
    """Tiles with a displaced object within a tile's length: a token above half of its largest probability."""
    down, right = (int(n) for n in moved)
    displaced = F.pad(probability, (right, -right, down, -down))[None, None]
    tiles = F.max_pool2d(displaced, 3 * TILE, stride=TILE, padding=TILE, ceil_mode=True)[0, 0]
    return tiles > probability.max() / 2
