"""The attention of a clip in work: a figure of chosen queries, and coarse maps of all places for the report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drift.clip import Clip
from drift.formats import SegmentedFrame
from drift.propagation.tracker import Tracker
from drift.reporting.attention_figure import AttentionView, draw_attention
from drift.reporting.attention_maps import MOST_LAYERS, AttentionMaps, gathered_maps, jpeg, save_maps
from drift.reporting.output_folder import OutputFolder
from drift.reporting.query_points import QueryPoint, chosen_points, default_points

__all__ = ["keep_clip_attention"]

_SHOWN = 5  # memory frames, evenly from the first to the last
_LONGER_SIDE = 400  # pixels, of the viewer's pictures


def keep_clip_attention(
    tracker: Tracker,
    clip: Clip,
    segmented: SegmentedFrame,
    folder: OutputFolder,
    chosen: Sequence[Sequence[float]] | None = None,
) -> None:
    """Draws where queries of the frame last tracked look, and keeps where all its places look.

    Where nothing is remembered yet, nothing is made.

    Args:
        tracker: whose last frame it is.
        clip: of the frame.
        segmented: the frame, and what was found in it.
        folder: where the files go: `attention/CLIP.png` and `attention/CLIP.npz`.
        chosen: x and y of the queries in the frame's pixels; None for the inmost pixel of each object (where no object
            is seen, of those given first), for the points that are followed, and for the background.
    """
    frame = clip.reduced_frame(segmented.frame)
    size = (frame.shape[0], frame.shape[1])
    queries = _queries(clip, segmented, size, chosen)
    indices, layers = tracker.attention([(one.row, one.column) for one in queries])
    if not indices:
        return
    shown = np.unique(np.linspace(0, len(indices) - 1, _SHOWN).round().astype(int)).tolist()
    pictures = [clip.reduced_frame(clip.frames[indices[place]]) for place in shown]
    view = AttentionView(
        frame=frame,
        frame_index=segmented.index,
        queries=queries,
        memory_frames=pictures,
        memory_indices=[indices[place] for place in shown],
        layers={layer: layers[layer][:, shown].numpy() for layer in list(layers)[:MOST_LAYERS]},
    )
    title = f"{clip.name}: where queries of frame {segmented.index} attend, over {len(indices)} memory frames"
    draw_attention(view, folder.attention(clip), title=title)
    maps, shares, grid = gathered_maps(lambda pixels: tracker.attention(pixels)[1], size, shown)
    kept = [jpeg(one, longer_side=_LONGER_SIDE) for one in (frame, *pictures)]
    save_maps(
        folder.attention(clip).with_suffix(".npz"),
        AttentionMaps(segmented.index, view.memory_indices, kept, maps, shares, grid),
    )


def _queries(
    clip: Clip,
    segmented: SegmentedFrame,
    size: tuple[int, int],
    chosen: Sequence[Sequence[float]] | None,
) -> list[QueryPoint]:
    down, across = size[0] / segmented.frame.shape[0], size[1] / segmented.frame.shape[1]
    if chosen:
        return chosen_points([(x * across, y * down) for x, y in chosen], size)
    points = [one._replace(x=one.x * across, y=one.y * down) for one in segmented.points]
    mask = clip.reduced_mask(segmented.mask)
    if not mask.any() and clip.given and not points:
        mask = clip.reduced_mask(clip.given[min(clip.given)])
    return default_points(mask, points)
