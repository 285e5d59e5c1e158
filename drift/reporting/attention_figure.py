"""A picture of where one query looks: the method's kernel, made visible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["AttentionView", "draw_attention"]


@dataclass(frozen=True)
class AttentionView:
    """One query's attention over the memory.

    Attributes:
        frame: `(height, width, 3)` uint8 RGB, the target frame.
        frame_index: its index in the clip.
        point: the query, (row, column) in pixels.
        memory_frames: the memory frames' pictures, likewise.
        memory_indices: their indices in the clip.
        weights: `(memory frames, rows, columns)`, all of them summing to 1.
    """

    frame: UInt8[np.ndarray, "height width 3"]
    frame_index: int
    point: tuple[int, int]
    memory_frames: Sequence[UInt8[np.ndarray, "height width 3"]]
    memory_indices: Sequence[int]
    weights: Float[np.ndarray, "frames rows columns"]


def draw_attention(view: AttentionView, path: Path, *, title: str) -> None:
    """Draws the target with its query, then each memory frame under its attention, into a PNG."""
    columns = len(view.memory_frames) + 1
    height, width = view.frame.shape[:2]
    figure = Figure(figsize=(4.2 * columns, 4.2 * height / width + 0.7), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    axes[0].imshow(view.frame)
    axes[0].plot(view.point[1], view.point[0], "+", color="white", markersize=22, markeredgewidth=4)
    axes[0].plot(view.point[1], view.point[0], "+", color="red", markersize=20, markeredgewidth=2)
    axes[0].set_title(f"query, frame {view.frame_index}", fontsize=10)
    for axis, picture, index, weights in zip(
        axes[1:], view.memory_frames, view.memory_indices, view.weights, strict=True
    ):
        grey = np.repeat(picture.mean(-1, keepdims=True), 3, axis=-1).astype(np.uint8)
        axis.imshow(grey // 2 + 80)
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        strength = weights / max(float(weights.max()), 1e-12)
        axis.imshow(
            strength, cmap="inferno", alpha=np.sqrt(strength), extent=extent, interpolation="bilinear"
        )
        axis.set_title(f"frame {index}: {weights.sum():.0%} of the attention", fontsize=10)
    for axis in axes:
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
