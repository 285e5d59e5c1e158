"""Openly licensed training pictures: named cut-outs with alpha, and background photographs.

They come from Debian packages (see `SOURCES`), found below any folder: the root of a system
where the packages are installed, or one into which they were unpacked with `dpkg -x`. A few more
photographs come with scikit-image.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from drift.errors import InputError

__all__ = [
    "HELD_OUT",
    "SOURCES",
    "Cutout",
    "find_backgrounds",
    "find_cutouts",
    "find_photographs",
    "load_pictures",
]

SOURCES = {
    "tuxpaint-stamps-default": "usr/share/tuxpaint/stamps",
    "gnome-backgrounds": "usr/share/backgrounds/gnome",
    "mate-backgrounds": "usr/share/backgrounds/mate",
    "plasma-workspace-wallpapers": "usr/share/wallpapers",
    "ukui-wallpapers": "usr/share/backgrounds",
    "lxqt-themes": "usr/share/lxqt/wallpapers",
    "lomiri-wallpapers-20.04": "usr/share/backgrounds",
    "lomiri-wallpapers-16.04": "usr/share/backgrounds",
}
"""Folder of the pictures in each Debian package; the first holds cut-outs, the others backgrounds."""

PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "rocket.jpg",
)
"""Backgrounds that scikit-image installs, in the public domain or under CC0."""

HELD_OUT = frozenset({"fox", "rooster", "zebra", "beetle", "GreenMeadow", "Garden"})
"""File stems of pictures excluded from training; the sample clip is rendered from them."""

_DRAWN = ("cartoon", "symbols", "flags", "roadsigns", "hanukkah", "body_parts", "mirror")
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
_MIN_COLOURS = 150
_MIN_SIDE = 48


@dataclass(frozen=True)
class Cutout:
    """An object on a transparent background.

    Attributes:
        rgba: `(height, width, 4)` uint8, RGB and alpha, cropped to the object.
        name: what it shows, in lower-case English without an article ("emperor tamarin").
    """

    rgba: np.ndarray
    name: str


def _files(root: Path, packages: list[str]) -> Iterator[Path]:
    for package in packages:
        inside = SOURCES[package]
        for folder in (root / inside, root / package / inside, root / inside.removeprefix("usr/")):
            if folder.is_dir():
                yield from sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
                break


def _open(path: Path, mode: str) -> Image.Image | None:
    """Picture in `mode`, or None if the file cannot be read."""
    try:
        return Image.open(path).convert(mode)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return None


def _name(path: Path) -> str:
    """Name of the object, from the text file beside the picture if it is short, else from the file name."""
    stem = re.sub(r"[^a-z]+", " ", path.stem.lower()).strip()
    text = path.with_suffix(".txt")
    lines = text.read_text(encoding="utf-8", errors="replace").strip().splitlines() if text.is_file() else []
    words = re.split(r"[.,;:!?(]", lines[0].lower())[0] if lines else stem
    words = re.sub(r"[^a-z]+", " ", re.sub(r"^\s*(a|an|the|some|two|one)\s+", "", words)).strip()
    return words if 0 < len(words.split()) <= 3 else stem or "object"


def _is_photographic(rgba: np.ndarray) -> bool:
    """Whether the object has as many distinct colours as a photograph; drawings have fewer."""
    solid = rgba[rgba[..., 3] > 128][:, :3] >> 3
    return len(np.unique(solid.astype(np.int32) @ (1024, 32, 1))) >= _MIN_COLOURS


def find_cutouts(root: Path, *, max_side: int = 320, held_out: bool = False) -> list[Cutout]:
    """Photographic cut-outs below `root`.

    Args:
        root: a system's root, or a folder of unpacked Debian packages.
        max_side: longest side in pixels; larger ones are reduced.
        held_out: give those in `HELD_OUT` only, instead of all but those.
    """
    cutouts = []
    for path in _files(root, ["tuxpaint-stamps-default"]):
        if (path.stem in HELD_OUT) is not held_out or any(
            word in str(path.relative_to(root)) for word in _DRAWN
        ):
            continue
        picture = _open(path, "RGBA")
        box = picture.getchannel("A").getbbox() if picture else None
        if picture is None or box is None:
            continue
        picture = picture.crop(box)
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        rgba = np.asarray(picture)
        if min(rgba.shape[:2]) >= _MIN_SIDE and _is_photographic(rgba):
            cutouts.append(Cutout(rgba, _name(path)))
    return cutouts


def find_backgrounds(root: Path, *, max_side: int = 1024, held_out: bool = False) -> list[np.ndarray]:
    """Wallpapers below `root` as RGB uint8 `(height, width, 3)`, one per motif."""
    backgrounds: dict[str, np.ndarray] = {}
    for path in _files(root, [name for name in SOURCES if "tuxpaint" not in name]):
        motif = next((p.name for p in path.parents if p.parent.name == "wallpapers"), path.stem)
        held = path.stem in HELD_OUT
        if held is not held_out or "screenshot" in path.stem or motif in backgrounds:
            continue
        picture = _open(path, "RGB")
        if picture is None or min(picture.size) < 256:
            continue
        picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
        backgrounds[motif] = np.asarray(picture)
    return list(backgrounds.values())


def find_photographs(*, max_side: int = 1024) -> list[np.ndarray]:
    """`PHOTOGRAPHS` as RGB uint8 `(height, width, 3)`; empty if scikit-image is not installed."""
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        return []
    folder = Path(package.origin).parent / "data"
    pictures = [_open(folder / name, "RGB") for name in PHOTOGRAPHS]
    for picture in pictures:
        if picture is not None:
            picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return [np.asarray(picture) for picture in pictures if picture is not None]


def load_pictures(root: Path) -> tuple[list[Cutout], list[np.ndarray]]:
    """Cut-outs and backgrounds for training, found below `root`.

    Raises:
        InputError: there are too few; the message names the packages to install.
    """
    cutouts, backgrounds = find_cutouts(root), find_backgrounds(root)
    if len(cutouts) < 10 or len(backgrounds) < 10:
        raise InputError(
            f"{root}: only {len(cutouts)} cut-outs and {len(backgrounds)} backgrounds found; "
            f"install or unpack the Debian packages {', '.join(SOURCES)} there"
        )
    return cutouts, backgrounds + find_photographs()
