"""Motion of objects: neighbourhoods of the kernel that follow them (`docs/holding-on.md`, "Windows that follow").

An object's displacement between two frames maximises the mean cosine similarity between its tokens in the one and the
tokens at the displaced positions in the other, less a penalty for the distance. The neighbourhoods of the tiles that
the object alone is expected to cover are centred on its position in each memory frame; all others stay where they are.

An object that the newest memory frame does not show is searched for in the whole frame, from the newest frame that
shows it. A wrong position does little harm: the frames without the object still contribute the tokens of that very
place, which are more similar to it.

After a scene cut, objects of the previous frame are lost (`is_scene_cut`).

Where similar objects meet, their tokens do not distinguish them; their motion does (`with_motion_prior`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from drift.propagation.tiles import TILE

__all__ = [
    "displacement",
    "expected_labels",
    "frame_similarity",
    "is_scene_cut",
    "lookalikes",
    "object_offsets",
    "positions_of",
    "with_motion_prior",
]

_CUT_POOL = 4  # as _POOL, for the detection of scene cuts
_CUT_RATIO = 0.8  # of similarities, see `is_scene_cut`
_POOL = 2  # tokens are averaged over squares of this side before they are compared
_REACH = 16  # largest displacement between neighbouring frames along an axis, in pooled tokens
_INERTIA = 0.004  # similarity that a displacement by one pooled token must gain
_INERTIA_OF_LOOKALIKES = 0.05  # as _INERTIA, for an object with a lookalike
_LOOKALIKE = 0.9  # cosine similarity of the mean tokens of two objects, see `lookalikes`
_PRIOR_BLUR = 5  # side of the square over which expected labels are averaged, in tokens
_PRIOR_FLOOR = 0.05  # smallest prior of an object
_PRIOR_SHARE = 0.2  # of the lookalikes' total probability, added to each of them before the prior applies
_VELOCITY_FRAMES = 5  # newest frames from which velocities are estimated


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
    alike = lookalikes(keys[-1], labels[-1]).tolist()
    for channel, positions in enumerate(positions_of(labels), start=1):
        shown = positions.isfinite().all(1).nonzero()[:, 0].tolist()
        if not shown:
            continue
        newest = shown[-1]
        reach = _REACH if newest == len(keys) - 1 else max(target.shape[:2])
        probability = labels[newest][..., channel]
        if newest not in pooled:  # once for all objects
            pooled[newest] = _pooled(keys[newest])
        inertia = _INERTIA_OF_LOOKALIKES if alike[channel - 1] else _INERTIA
        moved = displacement(target, pooled[newest], probability, reach, inertia)
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


def lookalikes(
    keys: Float[Tensor, "heads height width dim"], labels: Float[Tensor, "height width channels"]
) -> Bool[Tensor, " objects"]:
    """Objects of a frame that are similar to another object of the frame.

    Two objects are similar if the cosine similarity of their mean normalised tokens is above 0.9. With the embedded
    model, it is at most 0.8 for objects of different kinds.

    Args:
        keys: keys of the frame.
        labels: its labels, background first.

    Returns:
        True for each object with a lookalike; False for objects that the frame does not show.
    """
    if labels.shape[-1] < 3:  # one object
        return torch.zeros(labels.shape[-1] - 1, dtype=torch.bool, device=labels.device)
    means = F.normalize(torch.einsum("yxc,yxd->cd", labels[..., 1:], _pooled(keys, 1)), dim=-1)
    return ((means @ means.mT).fill_diagonal_(0) > _LOOKALIKE).any(0)


def expected_labels(
    labels: Sequence[Float[Tensor, "height width channels"]], indices: Sequence[int]
) -> Float[Tensor, "objects height width"]:
    """Labels of each object in the frame after the newest one, under a constant-velocity model.

    The labels of the newest frame, displaced by the velocity: the slope of a line that is fitted to the object's
    positions in the five newest frames, weighted by its total probability in each, so that frames in which the object
    is partly hidden count less.

    Args:
        labels: labels of earlier frames, background first; the last one is the newest.
        indices: index in the clip of each frame.
    """
    recent = [i for i, index in enumerate(indices) if index > indices[-1] - _VELOCITY_FRAMES]
    labels = [labels[i] for i in recent]
    times = torch.tensor([float(indices[i]) for i in recent], device=labels[0].device)
    positions = positions_of(labels)
    shown = positions.isfinite().all(-1)
    positions = positions.nan_to_num()
    mass = torch.stack([frame[..., 1:].sum((0, 1)) for frame in labels], 1) * shown
    mass = (mass / mass.sum(1, keepdim=True)).nan_to_num()[..., None]
    elapsed = times[:, None] - (mass * times[:, None]).sum(1, keepdim=True)
    velocity = (mass * elapsed * positions).sum(1) / (mass * elapsed**2).sum(1)
    return torch.stack(
        [
            _displaced(labels[-1][..., channel], velocity)
            for channel, velocity in enumerate(velocity.nan_to_num().round(), start=1)
        ]
    )


def with_motion_prior(
    labels: Float[Tensor, "channels height width"],
    expected: Float[Tensor, "objects height width"],
    alike: Bool[Tensor, " objects"],
) -> Float[Tensor, "channels height width"]:
    """Redistributes the probability of similar objects among them according to their motion.

    At each token their total probability is unchanged; so are the background and other objects.

    Args:
        labels: propagated labels, background first.
        expected: labels expected from the objects' motion, see `expected_labels`.
        alike: objects with a lookalike, see `lookalikes`.
    """
    objects = labels[1:][alike]
    total = objects.sum(0)
    prior = F.avg_pool2d(
        expected[None, alike], _PRIOR_BLUR, stride=1, padding=_PRIOR_BLUR // 2, count_include_pad=False
    )[0].clamp(min=_PRIOR_FLOOR)
    shared = (objects + _PRIOR_SHARE * total) * prior
    labels = labels.clone()
    labels[1:][alike] = shared * (total / shared.sum(0).clamp(min=torch.finfo(shared.dtype).tiny))
    return labels


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
    inertia: float = _INERTIA,
) -> Float[Tensor, " axes"]:
    """Rows and columns by which an object moved from a frame to the target frame, in tokens.

    Args:
        target, source: normalised tokens of both frames, averaged over squares of 2 x 2 tokens.
        probability: probability of the object in the source frame.
        reach: largest displacement along each axis, in pooled tokens.
        inertia: similarity that a displacement by one pooled token must gain.
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
    best = (scores - inertia * moves.float().norm(dim=1)).argmax()
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
    # In this layout PyTorch sees that channels are last in memory; otherwise `avg_pool2d` copies its input.
    pooled = F.avg_pool2d(values[None].permute(0, 3, 1, 2), side, ceil_mode=True, count_include_pad=False)
    return pooled[0].permute(1, 2, 0)


def _near_tiles(
    probability: Float[Tensor, "height width"], moved: Float[Tensor, " axes"]
) -> Bool[Tensor, "tile_rows tile_columns"]:
    """Tiles with a displaced object within a tile's length: a token above half of its largest probability."""
    displaced = _displaced(probability, moved)[None, None]
    tiles = F.max_pool2d(displaced, 3 * TILE, stride=TILE, padding=TILE, ceil_mode=True)[0, 0]
    return tiles > probability.max() / 2


def _displaced(
    probability: Float[Tensor, "height width"], moved: Float[Tensor, " axes"]
) -> Float[Tensor, "height width"]:
    """Probability moved by rows and columns; 0 where it comes from outside the frame."""
    down, right = (int(n) for n in moved)
    return F.pad(probability, (right, -right, down, -down))
