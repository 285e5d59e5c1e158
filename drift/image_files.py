"""Reading frames and masks from files, writing indexed masks. Every error names the file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from drift.errors import InputError

__all__ = ["DAVIS_PALETTE", "read_frame", "read_mask", "write_mask"]

_INDEXED_MODES = {"1", "L", "P"}


def _davis_palette() -> np.ndarray:
    """The palette of DAVIS and PASCAL VOC: the bits of the index, dealt to R, G and B in turn."""
    index = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


DAVIS_PALETTE = _davis_palette()
"""`(256, 3)` uint8 RGB: the colour of each object id."""


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read as an image ({error}); replace the file") from None
    return image


def read_frame(path: Path) -> np.ndarray:
    """A frame as `(height, width, 3)` uint8 RGB; grey-scale is repeated, alpha is dropped.

    Raises:
        InputError: the file is missing, no image, or truncated.
    """
    return np.array(_open(path).convert("RGB"))


def read_mask(path: Path, *, binary: bool | None = False) -> np.ndarray:
    """A mask as `(height, width)` uint8 object ids, 0 for the background.

    Ids are the palette's *indices* (or grey values), never colours.

    Args:
        path: of the file.
        binary: True where every non-zero pixel is object 1; False where pixels are ids and 255 is DAVIS-2017's void,
            which counts as background; None where black and white alone are taken for one object, all else for ids.

    Raises:
        InputError: the file is missing or broken, holds colours instead of ids, or ids above 255.
    """
    image = _open(path)
    if image.mode in _INDEXED_MODES:
        mask = np.array(image, dtype=np.uint8)
    elif image.mode.startswith("I"):
        ids = np.array(image)
        if ids.max(initial=0) > 255:
            raise InputError(
                f"{path}: holds object id {ids.max()}; at most 255 ids fit a mask: renumber them"
            )
        mask = ids.astype(np.uint8)
    else:
        mask = _grey(path, image, binary)
    if binary is None:
        binary = image.mode != "P" and set(np.unique(mask).tolist()) <= {0, 255}
    if binary:
        return (mask > 0).astype(np.uint8)
    return np.where(mask == 255, np.uint8(0), mask)


def _grey(path: Path, image: Image.Image, binary: bool | None) -> np.ndarray:
    """The grey values of a mask that was saved with three colours, where it may only be black and white."""
    colours = np.array(image.convert("RGB"))
    is_grey = (colours == colours[..., :1]).all()
    if is_grey and (binary or (binary is None and set(np.unique(colours).tolist()) <= {0, 255})):
        return colours[..., 0]
    raise InputError(
        f"{path}: is a colour image ({image.mode}), but a mask holds object ids; "
        "save it as an indexed (palette) or 8-bit grey PNG"
    )


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Writes `(height, width)` uint8 object ids as an indexed PNG in DAVIS' palette, whole or not at all."""
    image = Image.fromarray(mask, mode="P")
    image.putpalette(DAVIS_PALETTE.tobytes())
    partial = path.with_name(f".{path.name}.partial")
    image.save(partial, format="PNG")
    os.replace(partial, path)
