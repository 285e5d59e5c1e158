"""A picture of where queries look: the method's kernel, made visible."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from drift.reporting.query_points import QueryPoint

__all__ = ["AttentionView", "draw_attention"]

_PANEL = 2.9  # inches across
_TITLE = 0.32  # inches down


@dataclass(frozen=True)
class AttentionView:
    """Some queries' attention over the memory.

    Attributes:
        frame: `(height, width, 3)` uint8 RGB, the target frame.
        frame_index: its index in the clip.
        queries: whose attention it is.
        memory_frames: the pictures of the memory frames that are shown, likewise.
        memory_indices: their indices in the clip.
        layers: by layer, the mean over its heads; over all memory frames, shown or not, each query's sums to 1.
    """

    frame: UInt8[np.ndarray, "height width 3"]
    frame_index: int
    queries: Sequence[QueryPoint]
    memory_frames: Sequence[UInt8[np.ndarray, "height width 3"]]
    memory_indices: Sequence[int]
    layers: Mapping[str, Float[np.ndarray, "queries frames rows columns"]]


def draw_attention(view: AttentionView, path: Path, *, title: str) -> None:
    """Draws, for each query and layer, the target with the query and each memory frame under its attention, a PNG."""
    height, width = view.frame.shape[:2]
    rows = [(place, layer) for place in range(len(view.queries)) for layer in view.layers]
    columns = len(view.memory_frames) + 1
    across, down = _PANEL * columns, (_PANEL * height / width + _TITLE) * len(rows) + 2 * _TITLE
    figure = Figure(figsize=(across, down), dpi=100)
    FigureCanvasAgg(figure)
    # A clip's name may hold a $, which is no formula.
    figure.suptitle(title, fontsize=12, y=1 - 0.3 * _TITLE / down, va="top", parse_math=False)
    edges = {"left": 0.005, "right": 0.995, "bottom": 0.005, "top": 1 - 2 * _TITLE / down}
    axes = figure.subplots(
        len(rows), columns, squeeze=False, gridspec_kw={**edges, "wspace": 0.03, "hspace": 0.2}
    )
    for of_row, (place, layer) in zip(axes, rows, strict=True):
        query = view.queries[place]
        name = query.name if len(view.layers) == 1 else f"{query.name}, {layer}"
        _draw_query(of_row[0], view.frame, query)
        of_row[0].set_title(f"{name}: frame {view.frame_index}", fontsize=9, parse_math=False)
        weights = view.layers[layer][place]
        strongest = max(float(weights.max()), 1e-12)
        for axis, picture, index, on_frame in zip(
            of_row[1:], view.memory_frames, view.memory_indices, weights, strict=True
        ):
            _draw_attended(axis, picture, on_frame / strongest)
            axis.set_title(f"frame {index}: {on_frame.sum():.0%}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png")
    os.replace(partial, path)


def _draw_query(axis: Axes, frame: np.ndarray, query: QueryPoint) -> None:
    axis.imshow(frame)
    for colour, size, thickness in (("white", 20, 4), ("red", 18, 2)):
        axis.plot(query.column, query.row, "+", color=colour, markersize=size, markeredgewidth=thickness)
    axis.set_axis_off()


def _draw_attended(axis: Axes, picture: np.ndarray, strength: np.ndarray) -> None:
    """A memory frame in grey, and over it how strongly each place is attended, from 0 to 1."""
    height, width = picture.shape[:2]
    grey = np.repeat(picture.mean(-1, keepdims=True), 3, axis=-1).astype(np.uint8)
    axis.imshow(grey // 2 + 80)
    strength = cv2.dilate(strength, np.ones((3, 3), np.uint8))  # else a single token cannot be seen
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axis.imshow(strength, cmap="inferno", alpha=np.sqrt(strength), extent=extent, interpolation="bilinear")
    axis.set_axis_off()
