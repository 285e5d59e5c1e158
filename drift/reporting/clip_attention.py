"""Attention of one frame of a clip: a figure of selected queries, and coarse maps of all cells for the report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drift.clip import Clip
from drift.errors import OptionError
from drift.formats import SegmentedFrame
from drift.propagation.tracker import Tracker
from drift.reporting.attention_figure import AttentionView, draw_attention
from drift.reporting.attention_maps import MAX_LAYERS, AttentionMaps, compute_maps, jpeg, save_maps
from drift.reporting.output_folder import OutputFolder
from drift.reporting.query_points import QueryPoint, chosen_points, default_points

__all__ = ["keep_clip_attention"]

_MEMORY_FRAMES = 5  # drawn memory frames, evenly spaced from the first to the last
_MAX_SIDE = 400  # pixels, of the images in the report


def keep_clip_attention(
    tracker: Tracker,
    clip: Clip,
    segmented: SegmentedFrame,
    folder: OutputFolder,
    chosen: Sequence[Sequence[float]] | None = None,
) -> None:
    """Saves the attention of the last tracked frame: `attention/CLIP.png` and `attention/CLIP.npz`.

    Writes nothing if the memory was empty when the frame was tracked.

    Args:
        tracker: tracker that has just processed `segmented`.
        clip: clip of the frame.
        segmented: the frame with its predicted mask and points.
        folder: output folder of the run.
        chosen: x and y of the queries in pixels; None for the defaults, see `default_points`. If no object is
            visible, the mask of the first given frame supplies the defaults.

    Raises:
        OptionError: a chosen query is outside the frame.
    """
    frame = clip.reduced_frame(segmented.frame)
    size = (frame.shape[0], frame.shape[1])
    queries = _queries(clip, segmented, size, chosen)
    indices, layers = tracker.attention([(query.row, query.column) for query in queries])
    if not indices:
        return
    drawn = np.unique(np.linspace(0, len(indices) - 1, _MEMORY_FRAMES).round().astype(int)).tolist()
    memory_frames = [clip.reduced_frame(clip.frames[indices[position]]) for position in drawn]
    view = AttentionView(
        frame=frame,
        frame_index=segmented.index,
        queries=queries,
        memory_frames=memory_frames,
        memory_indices=[indices[position] for position in drawn],
        layers={layer: layers[layer][:, drawn].numpy() for layer in list(layers)[:MAX_LAYERS]},
    )
    title = f"{clip.name}: attention of frame {segmented.index} over {len(indices)} memory frames"
    draw_attention(view, folder.attention(clip), title=title)
    maps, frame_weights, grid = compute_maps(lambda pixels: tracker.attention(pixels)[1], size, drawn)
    images = [jpeg(image, max_side=_MAX_SIDE) for image in (frame, *memory_frames)]
    save_maps(
        folder.attention(clip).with_suffix(".npz"),
        AttentionMaps(segmented.index, view.memory_indices, images, maps, frame_weights, grid),
    )


def _queries(
    clip: Clip,
    segmented: SegmentedFrame,
    size: tuple[int, int],
    chosen: Sequence[Sequence[float]] | None,
) -> list[QueryPoint]:
    scale_y, scale_x = size[0] / segmented.frame.shape[0], size[1] / segmented.frame.shape[1]
    if chosen:
        height, width = segmented.frame.shape[:2]
        for x, y in chosen:
            if not (0 <= x < width and 0 <= y < height):
                raise OptionError(
                    "output.attention_points", f"[{x:g},{y:g}]", f"pixels of a {width} x {height} frame"
                )
        return chosen_points([(x * scale_x, y * scale_y) for x, y in chosen], size)
    points = [point._replace(x=point.x * scale_x, y=point.y * scale_y) for point in segmented.points]
    mask = clip.reduced_mask(segmented.mask)
    if not mask.any() and clip.given and not points:
        mask = clip.reduced_mask(clip.given[min(clip.given)])
    return default_points(mask, points)
