"""A run's folder as the report and comparisons need it: results, curves, and pictures made part of the page."""

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
    """What a run left.

    Attributes:
        folder: of the run.
        results: its `results.json`.
        curves: its `curves.json`: scores by frame, losses, head weights of each clip.
    """

    folder: Path
    results: Mapping[str, Any]
    curves: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The folder's name; that of a sweep's run with the sweep's."""
        folder = self.folder.resolve()
        return f"{folder.parent.name}/{folder.name}" if folder.name.isdigit() else folder.name

    def clips(self, *, attention: bool = True) -> list[dict[str, Any]]:
        """What the page shows of each clip."""
        return [self._clip(name, told, attention) for name, told in self.results["sequences"].items()]

    def _clip(self, name: str, told: Mapping[str, Any], attention: bool) -> dict[str, Any]:
        curves = self.curves.get(name, {})
        maps = self.folder / "attention" / f"{name}.npz"
        return {
            "name": name,
            "samples": _samples(self.folder / "samples" / name),
            "objects": {
                one: {**curve, "colour": _colour(int(one))}
                for one, curve in curves.get("objects", {}).items()
            },
            "losses": curves.get("losses", {}),
            "head_weights": curves.get("head_weights", {}),
            "stages": told.get("seconds_per_frame_by_stage", {}),
            "attention": _attention(maps) if attention and maps.is_file() else None,
        }


def read_run(folder: Path) -> RunFiles:
    """Reads a run's folder.

    Raises:
        InputError: it is none, or its files cannot be read; names the file.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the output.dir of a run of evaluate.py")
    results = _json(path)
    curves = folder / "curves.json"
    if not isinstance(results.get("sequences"), dict) or not results.keys() >= {
        "frames",
        "seconds_per_frame",
    }:
        raise InputError(f"{path}: holds no results of a run")
    return RunFiles(folder, results, _json(curves) if curves.is_file() else {})


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds no results of a run")
    return found


def _colour(object_id: int) -> str:
    """An object's colour in the overlays, lighter, so that a line of it is seen on black and on white."""
    red, green, blue = (60 + 0.9 * float(one) for one in DAVIS_PALETTE[object_id])
    return f"#{min(round(red), 255):02x}{min(round(green), 255):02x}{min(round(blue), 255):02x}"


def _samples(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.glob("*.jpg")):
        if path.stem.isdigit():
            errors = errors_path(path)
            sample = {"frame": int(path.stem), "overlay": _url(path.read_bytes(), "jpeg")}
            found.append(sample | ({"errors": _url(errors.read_bytes(), "jpeg")} if errors.is_file() else {}))
    return found


def _attention(path: Path) -> dict[str, Any] | None:
    try:
        maps = load_maps(path)
    except (
        OSError,
        EOFError,
        ValueError,
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
    ):  # another version's, or damaged
        return None
    return {
        "frame": maps.frame_index,
        "memory": list(maps.memory_indices),
        "grid": list(maps.grid),
        "pictures": [_url(one, "jpeg") for one in maps.pictures],
        "layers": [_layer(maps, name) for name in maps.layers],
    }


def _layer(maps: AttentionMaps, name: str) -> dict[str, Any]:
    """One layer's maps as a grey PNG with a row for each cell of the target."""
    buffer = io.BytesIO()
    values = maps.layers[name]
    Image.fromarray(values.reshape(len(values), -1)).save(buffer, "PNG", optimize=True)
    shares = np.round(maps.shares[name].astype(float), 3).tolist()
    return {"name": name, "maps": _url(buffer.getvalue(), "png"), "shares": shares}


def _url(picture: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
