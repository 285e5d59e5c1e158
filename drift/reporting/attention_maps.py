"""Low-resolution attention maps of all cells of a frame, for the report's viewer: `attention/CLIP.npz`."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from drift.formats.writer import atomic_path

__all__ = ["MAX_LAYERS", "AttentionMaps", "compute_maps", "jpeg", "load_maps", "save_maps"]

_CELLS = 24  # along the longer side of the frame
MAX_LAYERS = 4
"""Maximum number of layers in figures and maps."""

_BATCH_WEIGHTS = 2_400_000  # attention weights per head and batch: 24 queries at 480p with 15 memory frames


@dataclass(frozen=True)
class AttentionMaps:
    """Attention of all cells of a coarse grid on the target frame.

    Attributes:
        frame_index: index of the target frame.
        memory_indices: indices of the memory frames.
        images: JPEGs of the target frame and of the memory frames, in this order.
        layers: per layer, the attention of each target cell (in row-major order) on each cell of the memory
            frames, as the square root scaled to 255 at the maximum of the target cell.
        frame_weights: per layer, the attention of each target cell summed over each memory frame, in [0, 1].
        grid: rows and columns of the grid.
    """

    frame_index: int
    memory_indices: Sequence[int]
    images: Sequence[bytes]
    layers: Mapping[str, UInt8[np.ndarray, "cells frames rows columns"]]
    frame_weights: Mapping[str, Float[np.ndarray, "cells frames"]]
    grid: tuple[int, int]


def compute_maps(
    attention: Callable[[Sequence[tuple[int, int]]], dict[str, Tensor]],
    size: tuple[int, int],
    frames: Sequence[int],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], tuple[int, int]]:
    """Computes `layers`, `frame_weights` and `grid` of `AttentionMaps`.

    Args:
        attention: returns the attention of pixels (row, column) per layer, `(pixels, frames, rows, columns)`.
        size: height and width of the target frame.
        frames: positions of the memory frames to keep.
    """
    scale = _CELLS / max(size)
    rows, columns = max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)
    pixels = [
        (int((r + 0.5) * size[0] / rows), int((c + 0.5) * size[1] / columns))
        for r in range(rows)
        for c in range(columns)
    ]
    maps: dict[str, list[Tensor]] = {}
    frame_weights: dict[str, list[Tensor]] = {}
    start, batch = 0, 1  # the first query gives the number of weights per query
    while start < len(pixels):
        by_layer = attention(pixels[start : start + batch])
        start += batch
        batch = max(1, _BATCH_WEIGHTS // max(weights[0].numel() for weights in by_layer.values()))
        for layer, weights in list(by_layer.items())[:MAX_LAYERS]:
            weights = weights[:, list(frames)]
            pooled = F.adaptive_avg_pool2d(weights, (rows, columns))
            maximum = pooled.amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
            maps.setdefault(layer, []).append(((pooled / maximum).sqrt() * 255).round().to(torch.uint8))
            frame_weights.setdefault(layer, []).append(weights.sum((2, 3)))
    return _joined(maps), _joined(frame_weights), (rows, columns)


def _joined(batches: Mapping[str, Sequence[Tensor]]) -> dict[str, np.ndarray]:
    return {layer: torch.cat(list(tensors)).numpy() for layer, tensors in batches.items()}


def save_maps(path: Path, maps: AttentionMaps) -> None:
    """Writes the maps atomically as a compressed npz file."""
    arrays: dict[str, Any] = {
        f"image{index}": np.frombuffer(image, np.uint8) for index, image in enumerate(maps.images)
    }
    for index, layer in enumerate(maps.layers):
        arrays[f"map{index}"] = maps.layers[layer]
        arrays[f"weights{index}"] = maps.frame_weights[layer].astype(np.float16)
    arrays |= {
        "frame_index": np.array(maps.frame_index),
        "memory_indices": np.array(maps.memory_indices, dtype=np.int64),
        "layers": np.array(list(maps.layers)),
        "grid": np.array(maps.grid),
    }
    with atomic_path(path) as partial:
        np.savez_compressed(partial, **arrays)


def load_maps(path: Path) -> AttentionMaps:
    """Reads a file written by `save_maps`."""
    with np.load(path) as arrays:
        names = [str(name) for name in arrays["layers"]]
        memory = arrays["memory_indices"].tolist()
        rows, columns = arrays["grid"].tolist()
        return AttentionMaps(
            frame_index=int(arrays["frame_index"]),
            memory_indices=memory,
            images=[arrays[f"image{index}"].tobytes() for index in range(len(memory) + 1)],
            layers={name: arrays[f"map{index}"] for index, name in enumerate(names)},
            frame_weights={
                name: arrays[f"weights{index}"].astype(np.float32) for index, name in enumerate(names)
            },
            grid=(rows, columns),
        )


def jpeg(image: UInt8[np.ndarray, "height width 3"], *, max_side: int) -> bytes:
    """Encodes an RGB image as JPEG, downscaled so that no side exceeds `max_side` pixels."""
    thumbnail = Image.fromarray(image)
    thumbnail.thumbnail((max_side, max_side))
    buffer = io.BytesIO()
    thumbnail.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
