"""Where every place of a frame looks, at low resolution: `attention/CLIP.npz`, which the report's viewer shows."""

from __future__ import annotations

import io
import os
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

__all__ = ["MOST_LAYERS", "AttentionMaps", "gathered_maps", "jpeg", "load_maps", "save_maps"]

_CELLS = 24  # along the longer side
MOST_LAYERS = 4
"""How many layers' attention is shown."""

_AT_ONCE = 2_400_000  # weights of a head: those of 24 queries for 480p frames and 15 in memory


@dataclass(frozen=True)
class AttentionMaps:
    """Where the cells of a frame look, on a coarse grid.

    Attributes:
        frame_index: of the target frame.
        memory_indices: of the memory frames that are shown.
        pictures: JPEGs of the target and of the memory frames, in this order.
        layers: by layer, for each cell of the target (row by row) and each memory frame how much each of its cells
            is attended: the square root, 255 for the query's strongest.
        shares: by layer, which part of its attention each cell has on each memory frame.
        grid: rows and columns of cells.
    """

    frame_index: int
    memory_indices: Sequence[int]
    pictures: Sequence[bytes]
    layers: Mapping[str, UInt8[np.ndarray, "cells frames rows columns"]]
    shares: Mapping[str, Float[np.ndarray, "cells frames"]]
    grid: tuple[int, int]


def gathered_maps(
    attention: Callable[[Sequence[tuple[int, int]]], dict[str, Tensor]],
    size: tuple[int, int],
    shown: Sequence[int],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], tuple[int, int]]:
    """`layers`, `shares` and `grid` of `AttentionMaps`.

    Args:
        attention: the attention of pixels (row, column), by layer `(pixels, frames, rows, columns)`.
        size: height and width of the frame.
        shown: places of the memory frames that are shown.
    """
    scale = _CELLS / max(size)
    rows, columns = max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)
    pixels = [
        (int((r + 0.5) * size[0] / rows), int((c + 0.5) * size[1] / columns))
        for r in range(rows)
        for c in range(columns)
    ]
    maps: dict[str, list[Tensor]] = {}
    shares: dict[str, list[Tensor]] = {}
    done, at_once = 0, 1  # the first one tells how large a query's attention is
    while done < len(pixels):
        found = attention(pixels[done : done + at_once])
        done += at_once
        at_once = max(1, _AT_ONCE // max(weights[0].numel() for weights in found.values()))
        for layer, weights in list(found.items())[:MOST_LAYERS]:
            weights = weights[:, list(shown)]
            pooled = F.adaptive_avg_pool2d(weights, (rows, columns))
            strongest = pooled.amax((1, 2, 3), keepdim=True).clamp(min=1e-12)
            maps.setdefault(layer, []).append(((pooled / strongest).sqrt() * 255).round().to(torch.uint8))
            shares.setdefault(layer, []).append(weights.sum((2, 3)))
    joined = {layer: torch.cat(parts).numpy() for layer, parts in maps.items()}
    return joined, {layer: torch.cat(parts).numpy() for layer, parts in shares.items()}, (rows, columns)


def save_maps(path: Path, maps: AttentionMaps) -> None:
    """Writes maps, whole or not at all."""
    arrays: dict[str, Any] = {
        f"picture{place}": np.frombuffer(one, np.uint8) for place, one in enumerate(maps.pictures)
    }
    for place, layer in enumerate(maps.layers):
        arrays[f"map{place}"] = maps.layers[layer]
        arrays[f"share{place}"] = maps.shares[layer].astype(np.float16)
    arrays |= {
        "frame_index": np.array(maps.frame_index),
        "memory_indices": np.array(maps.memory_indices, dtype=np.int64),
        "layers": np.array(list(maps.layers)),
        "grid": np.array(maps.grid),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(
            file,
            **arrays,
        )
    os.replace(partial, path)


def load_maps(path: Path) -> AttentionMaps:
    """What `save_maps` wrote."""
    with np.load(path) as kept:
        names = [str(name) for name in kept["layers"]]
        memory = kept["memory_indices"].tolist()
        rows, columns = kept["grid"].tolist()
        return AttentionMaps(
            frame_index=int(kept["frame_index"]),
            memory_indices=memory,
            pictures=[kept[f"picture{place}"].tobytes() for place in range(len(memory) + 1)],
            layers={name: kept[f"map{place}"] for place, name in enumerate(names)},
            shares={name: kept[f"share{place}"].astype(np.float32) for place, name in enumerate(names)},
            grid=(rows, columns),
        )


def jpeg(picture: UInt8[np.ndarray, "height width 3"], *, longer_side: int) -> bytes:
    """An RGB picture as a JPEG whose longer side is at most so many pixels."""
    image = Image.fromarray(picture)
    image.thumbnail((longer_side, longer_side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
