"""Reads the output folder of a run for the report and comparison pages; images become data URLs."""

from __future__ import annotations

import base64
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from drift.errors import InputError
from drift.image_files import DAVIS_PALETTE
from drift.reporting.attention_maps import AttentionMaps, load_maps
from drift.reporting.sampled_frames import errors_path

__all__ = ["RunFiles", "read_run"]


@dataclass(frozen=True)
class RunFiles:
    """Files in the output folder of a run.

    Attributes:
        folder: `output.dir`.
        results: content of `results.json`.
        curves: content of `curves.json`; empty if the file does not exist.
    """

    folder: Path
    results: Mapping[str, Any]
    curves: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of the folder; for a run of a sweep, prefixed with the name of the sweep's folder."""
        folder = self.folder.resolve()
        return f"{folder.parent.name}/{folder.name}" if folder.name.isdigit() else folder.name

    def clips(self, *, attention: bool = True) -> list[dict[str, Any]]:
        """Data of each clip for the page's script.

        Args:
            attention: include the attention maps.
        """
        return [self._clip(name, result, attention) for name, result in self.results["sequences"].items()]

    def _clip(self, name: str, result: Mapping[str, Any], attention: bool) -> dict[str, Any]:
        curves = self.curves.get(name, {})
        maps = self.folder / "attention" / f"{name}.npz"
        return {
            "name": name,
            "samples": _samples(self.folder / "samples" / name),
            "objects": {
                object_id: {**curve, "colour": _colour(int(object_id))}
                for object_id, curve in curves.get("objects", {}).items()
            },
            "losses": curves.get("losses", {}),
            "head_weights": curves.get("head_weights", {}),
            "stages": result.get("seconds_per_frame_by_stage", {}),
            "attention": _attention(maps) if attention and maps.is_file() else None,
        }


def read_run(folder: Path) -> RunFiles:
    """Reads the output folder of a run.

    Raises:
        InputError: the folder is not that of a run, or a file cannot be read; names the file.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the output.dir of a run of evaluate.py")
    results = _json(path)
    curves = folder / "curves.json"
    complete = results.keys() >= {"sequences", "frames", "seconds_per_frame"}
    if not complete or not isinstance(results["sequences"], dict):
        raise InputError(f"{path}: does not contain the results of a run")
    return RunFiles(folder, results, _json(curves) if curves.is_file() else {})


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: does not contain the results of a run")
    return content


def _colour(object_id: int) -> str:
    """Palette colour of an object, lightened so that lines are visible on light and dark backgrounds."""
    red, green, blue = (min(round(60 + 0.9 * float(c)), 255) for c in DAVIS_PALETTE[object_id])
    return f"#{red:02x}{green:02x}{blue:02x}"


def _samples(folder: Path) -> list[dict[str, Any]]:
    samples = []
    for path in sorted(folder.glob("*.jpg")):
        if path.stem.isdigit():
            sample: dict[str, Any] = {"frame": int(path.stem), "overlay": _url(path.read_bytes(), "jpeg")}
            if (errors := errors_path(path)).is_file():
                sample["errors"] = _url(errors.read_bytes(), "jpeg")
            samples.append(sample)
    return samples


def _attention(path: Path) -> dict[str, Any] | None:
    """Attention maps for the page; None if the file is damaged or from another version."""
    try:
        maps = load_maps(path)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        return None
    return {
        "frame": maps.frame_index,
        "memory": list(maps.memory_indices),
        "grid": list(maps.grid),
        "images": [_url(image, "jpeg") for image in maps.images],
        "layers": [_layer(maps, name) for name in maps.layers],
    }


def _layer(maps: AttentionMaps, name: str) -> dict[str, Any]:
    """Maps of one layer as a greyscale PNG with one row of pixels per target cell."""
    buffer = io.BytesIO()
    values = maps.layers[name]
    Image.fromarray(values.reshape(len(values), -1)).save(buffer, "PNG", optimize=True)
    weights = np.round(maps.frame_weights[name].astype(float), 3).tolist()
    return {"name": name, "maps": _url(buffer.getvalue(), "png"), "frame_weights": weights}


def _url(image: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
