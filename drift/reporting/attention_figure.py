"""Figure of the propagation kernel: attention of selected queries over the memory frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from drift.formats.writer import atomic_path
from drift.reporting.query_points import QueryPoint

__all__ = ["AttentionView", "draw_attention"]

_PANEL = 290  # panel width in pixels
_TITLE = 24  # title height in pixels
_GAP = 6  # pixels between panels


@dataclass(frozen=True)
class AttentionView:
    """Attention of selected queries over the memory.

    Attributes:
        frame: target frame, RGB.
        frame_index: index of the target frame in the clip.
        queries: pixels of the target frame.
        memory_frames: memory frames to draw, RGB.
        memory_indices: indices of `memory_frames` in the clip.
        layers: attention per layer, averaged over heads. The weights of a query sum to 1 over all memory frames,
            including those that are not drawn.
    """

    frame: UInt8[np.ndarray, "height width 3"]
    frame_index: int
    queries: Sequence[QueryPoint]
    memory_frames: Sequence[UInt8[np.ndarray, "height width 3"]]
    memory_indices: Sequence[int]
    layers: Mapping[str, Float[np.ndarray, "queries frames rows columns"]]


def draw_attention(view: AttentionView, path: Path, *, title: str) -> None:
    """Draws one row per query and layer, the target frame followed by the memory frames, and saves it as PNG.

    Uses Pillow: matplotlib takes more than a second for this number of panels.

    Args:
        view: what to draw.
        path: path of the PNG file.
        title: title of the figure.
    """
    height, width = view.frame.shape[:2]
    size = (_PANEL, max(round(_PANEL * height / width), 1))
    rows = [(index, layer) for index in range(len(view.queries)) for layer in view.layers]
    columns = len(view.memory_frames) + 1
    step_x, step_y = size[0] + _GAP, size[1] + _GAP + _TITLE
    sheet = Image.new("RGB", (columns * step_x + _GAP, len(rows) * step_y + 2 * _TITLE), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((sheet.width / 2, _TITLE), title, "black", ImageFont.load_default(17), anchor="mm")
    backgrounds = [_grey(frame, size) for frame in view.memory_frames]
    for row, (query_index, layer) in enumerate(rows):
        query = view.queries[query_index]
        name = query.name if len(view.layers) == 1 else f"{query.name}, {layer}"
        weights = view.layers[layer][query_index]
        maximum = max(float(weights.max()), 1e-12)
        panels = [(f"{name}: frame {view.frame_index}", _query_panel(view.frame, query, size))]
        panels += [
            (
                f"frame {index}: {frame_weights.sum():.0%}",
                _attention_panel(background, frame_weights / maximum),
            )
            for index, background, frame_weights in zip(
                view.memory_indices, backgrounds, weights, strict=True
            )
        ]
        for column, (caption, panel) in enumerate(panels):
            left, top = _GAP + column * step_x, 2 * _TITLE + row * step_y
            centre = (left + size[0] / 2, top + _TITLE / 2)
            draw.text(centre, caption, "black", ImageFont.load_default(13), anchor="mm")
            sheet.paste(panel, (left, top + _TITLE))
    with atomic_path(path) as partial:
        sheet.save(partial, "PNG")


def _query_panel(frame: np.ndarray, query: QueryPoint, size: tuple[int, int]) -> Image.Image:
    """The target frame with a cross at the query."""
    panel = Image.fromarray(frame).resize(size)
    draw = ImageDraw.Draw(panel)
    x, y = ((query.column + 0.5) * size[0] / frame.shape[1], (query.row + 0.5) * size[1] / frame.shape[0])
    for colour, arm, thickness in (("white", 11, 5), ("red", 10, 2)):
        draw.line((x - arm, y, x + arm, y), colour, thickness)
        draw.line((x, y - arm, x, y + arm), colour, thickness)
    return panel


def _grey(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    grey = np.asarray(Image.fromarray(frame).resize(size).convert("L"), dtype=np.float32)
    return np.repeat(grey[..., None] / 2 + 80, 3, axis=-1)


def _attention_panel(grey: np.ndarray, weights: np.ndarray) -> Image.Image:
    """A grey memory frame with a heat map of attention weights in [0, 1]."""
    weights = cv2.dilate(weights, np.ones((3, 3), np.uint8))  # makes single tokens visible
    weights = cv2.resize(weights, (grey.shape[1], grey.shape[0]), interpolation=cv2.INTER_LINEAR)
    levels = (weights * 255).round().astype(np.uint8)
    heat = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    alpha = np.sqrt(weights)[..., None]
    return Image.fromarray((grey * (1 - alpha) + heat * alpha).round().astype(np.uint8))
