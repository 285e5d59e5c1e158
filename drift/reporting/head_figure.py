"""Heat map of head weights: one row per layer, one column per head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

__all__ = ["draw_head_weights"]


def draw_head_weights(weights: Mapping[str, Sequence[float]], *, title: str) -> Image.Image:
    """Draws a heat map; layers may have different numbers of heads.

    Args:
        weights: weight of each head per layer; the weights of all layers sum to 1.
        title: title of the figure.

    Returns:
        An RGB image.
    """
    heads = max(len(row) for row in weights.values())
    values = np.array([[*row, *[np.nan] * (heads - len(row))] for row in weights.values()])
    figure = Figure(figsize=(2.6 + 0.75 * heads, 1.2 + 0.55 * len(weights)), layout="constrained", dpi=110)
    canvas = FigureCanvasAgg(figure)
    axis = figure.subplots()
    drawn = axis.imshow(values, cmap="Blues", vmin=0, vmax=float(np.nanmax(values)), aspect="auto")
    for row, column in np.argwhere(~np.isnan(values)):
        value = values[row, column]
        colour = "white" if value > 0.6 * np.nanmax(values) else "black"
        axis.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=9, color=colour)
    axis.set_xticks(range(heads), [f"head {head}" for head in range(heads)], fontsize=8)
    axis.set_yticks(range(len(weights)), list(weights), fontsize=8)
    axis.set_title(title, fontsize=10)
    figure.colorbar(drawn, ax=axis)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
