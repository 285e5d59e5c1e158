"""A picture of where queries look: the method's kernel, made visible."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from drift.reporting.query_points import QueryPoint

__all__ = ["AttentionView", "draw_attention"]

_PANEL = 290  # pixels across
_TITLE = 24  # pixels down
_GAP = 6


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
    """Draws, for each query and layer, the target with the query and each memory frame under its attention, a PNG.

    Drawn by Pillow: a plotting library takes over a second for as many panels.
    """
    height, width = view.frame.shape[:2]
    size = (_PANEL, max(round(_PANEL * height / width), 1))
    rows = [(place, layer) for place in range(len(view.queries)) for layer in view.layers]
    columns = len(view.memory_frames) + 1
    step_across, step_down = size[0] + _GAP, size[1] + _GAP + _TITLE
    sheet = Image.new("RGB", (columns * step_across + _GAP, len(rows) * step_down + 2 * _TITLE), "white")
    text = ImageDraw.Draw(sheet)
    text.text((sheet.width / 2, _TITLE), title, "black", ImageFont.load_default(17), anchor="mm")
    greys = [_grey(picture, size) for picture in view.memory_frames]
    for row, (place, layer) in enumerate(rows):
        query = view.queries[place]
        name = query.name if len(view.layers) == 1 else f"{query.name}, {layer}"
        weights = view.layers[layer][place]
        strongest = max(float(weights.max()), 1e-12)
        panels = [(f"{name}: frame {view.frame_index}", _with_query(view.frame, query, size))]
        panels += [
            (f"frame {index}: {on_frame.sum():.0%}", _attended(grey, on_frame / strongest))
            for index, grey, on_frame in zip(view.memory_indices, greys, weights, strict=True)
        ]
        for column, (said, panel) in enumerate(panels):
            left, top = _GAP + column * step_across, 2 * _TITLE + row * step_down
            centre = (left + size[0] / 2, top + _TITLE / 2)
            text.text(centre, said, "black", ImageFont.load_default(13), anchor="mm")
            sheet.paste(panel, (left, top + _TITLE))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    sheet.save(partial, "PNG")
    os.replace(partial, path)


def _with_query(frame: np.ndarray, query: QueryPoint, size: tuple[int, int]) -> Image.Image:
    """The target frame, and a cross where the query is."""
    panel = Image.fromarray(frame).resize(size)
    draw = ImageDraw.Draw(panel)
    x, y = ((query.column + 0.5) * size[0] / frame.shape[1], (query.row + 0.5) * size[1] / frame.shape[0])
    for colour, reach, thickness in (("white", 11, 5), ("red", 10, 2)):
        draw.line((x - reach, y, x + reach, y), colour, thickness)
        draw.line((x, y - reach, x, y + reach), colour, thickness)
    return panel


def _grey(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    grey = np.asarray(Image.fromarray(picture).resize(size).convert("L"), dtype=np.float32)
    return np.repeat(grey[..., None] / 2 + 80, 3, axis=-1)


def _attended(grey: np.ndarray, strength: np.ndarray) -> Image.Image:
    """A memory frame in grey, and over it how strongly each place is attended, from 0 to 1."""
    strength = cv2.dilate(strength, np.ones((3, 3), np.uint8))  # else a single token cannot be seen
    strength = cv2.resize(strength, (grey.shape[1], grey.shape[0]), interpolation=cv2.INTER_LINEAR)
    levels = (strength * 255).round().astype(np.uint8)
    heat = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    alpha = np.sqrt(strength)[..., None]
    return Image.fromarray((grey * (1 - alpha) + heat * alpha).round().astype(np.uint8))
