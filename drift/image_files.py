"""Reading frames and masks from image files, and writing indexed masks."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from drift.errors import InputError

__all__ = ["DAVIS_PALETTE", "MAX_PIXELS", "read_frame", "read_mask", "write_mask"]

MAX_PIXELS = 2**26
"""Of a frame or mask, twice as many as in an 8K video; larger files are refused before they are decoded."""

_FORMATS = "PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"  # without those that start a program (EPS)
_MAX_GREY_IDS = 32  # more grey values than this are taken for shades, not for object ids
_SQUARE = np.ones((3, 3), np.uint8)
_SOFT_EDGES = 64, 192  # between these grey values, a pixel of a soft mask is neither black nor white


def _davis_palette() -> np.ndarray:
    """The palette of DAVIS and PASCAL VOC: the bits of the index are distributed to R, G and B in turn."""
    index = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


DAVIS_PALETTE = _davis_palette()
"""`(256, 3)` uint8 RGB: the colour of each object id."""


def _open(path: Path) -> Image.Image:
    """The first image of a file, decoded.

    Raises:
        InputError: the file is missing, damaged, too large, or not an image.
    """
    try:
        image = Image.open(path, formats=_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(
                f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}"
            )
        image.load()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise InputError(
            f"{path}: cannot be read as an image (not in one of the formats {', '.join(_FORMATS)})"
        ) from None
    except Exception as error:  # damaged files raise errors of any kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be read as an image ({reason}); replace the file") from None
    return image


def read_frame(path: Path) -> np.ndarray:
    """Reads a frame as `(height, width, 3)` uint8 RGB; greyscale is expanded, alpha is dropped, 16 bits become 8.

    Raises:
        InputError: the file is missing, truncated, too large, or not an image of 8 or 16 bits.
    """
    image = _open(path)
    if image.mode == "F":
        raise InputError(f"{path}: contains floating-point numbers; save the frame with 8 bits per channel")
    if not image.mode.startswith("I"):
        return np.array(image.convert("RGB"))
    grey = np.array(image)
    if grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
        raise InputError(f"{path}: contains 32-bit numbers; save the frame with 8 bits per channel")
    return np.repeat((grey // 256).astype(np.uint8)[..., None], 3, axis=2)


def read_mask(path: Path, *, binary: bool | None = False) -> np.ndarray:
    """Reads a mask as `(height, width)` uint8 object ids, 0 for the background.

    Object ids are palette indices or grey values, never colours.

    Args:
        path: image file.
        binary: True: every non-zero pixel is object 1. False: pixels are object ids, 255 (void in DAVIS-2017) becomes
            background. None: a mask in black and white is one object, also with soft edges (JPEG, anti-aliasing),
            which are thresholded; other masks contain object ids.

    Raises:
        InputError: the file is missing or broken, contains colours or shades of grey instead of object ids, or ids
            above 255.
    """
    image = _open(path)
    if image.mode in ("1", "L", "P"):
        mask = np.array(image, dtype=np.uint8)
    elif image.mode.startswith("I"):
        ids = np.array(image)
        if binary is not False and set(np.unique(ids).tolist()) <= {0, 65535}:
            ids //= 257  # 16-bit black and white
        if ids.max(initial=0) > 255 or ids.min(initial=0) < 0:
            wrong = f"{ids.max()}, above 255" if ids.max() > 255 else f"{ids.min()}, below 0"
            raise InputError(f"{path}: contains object id {wrong}; renumber the objects")
        mask = ids.astype(np.uint8)
    else:
        mask = _from_colours(path, image, binary)
    if binary is None and image.mode != "P":
        has_ids = image.mode in ("1", "L", "I", "I;16") and image.format != "JPEG"
        mask = _object_or_ids(path, mask, has_ids=has_ids)
    if binary:
        return (mask > 0).astype(np.uint8)
    return np.where(mask == 255, np.uint8(0), mask)


def _from_colours(path: Path, image: Image.Image, binary: bool | None) -> np.ndarray:
    """The grey values of an RGB mask, which is allowed for one object in black and white."""
    if image.mode == "F":
        raise InputError(
            f"{path}: contains floating-point numbers; save object ids as an indexed (palette) PNG"
        )
    colours = np.array(image.convert("RGB"))
    black_and_white = binary is None or set(np.unique(colours).tolist()) <= {0, 255}
    if binary is not False and black_and_white and (colours == colours[..., :1]).all():
        return colours[..., 0]
    raise InputError(
        f"{path}: is a colour image ({image.mode}), but a mask contains object ids; "
        "save it as an indexed (palette) or 8-bit grey PNG"
    )


def _object_or_ids(path: Path, mask: np.ndarray, *, has_ids: bool) -> np.ndarray:
    """Object 1 of a grey mask in black and white, with soft edges thresholded; or the object ids it contains."""
    is_shade = (mask > 0) & (mask < 255)
    shades = np.unique(mask[is_shade])
    has_ids &= len(shades) <= _MAX_GREY_IDS
    if has_ids and len(shades) and (shades[-1] == len(shades) or not (mask == 255).any()):
        return mask
    # A lossless soft edge changes from pixel to pixel; ids fill areas.
    has_areas = has_ids and (cv2.erode(mask, _SQUARE) == cv2.dilate(mask, _SQUARE))[is_shade].any()
    black, white = np.count_nonzero(mask < _SOFT_EDGES[0]), np.count_nonzero(mask >= _SOFT_EDGES[1])
    if has_areas or mask.size - black - white > min(black, white):
        raise InputError(
            f"{path}: contains shades of grey that are neither object ids nor one object in black and white; "
            "save object ids as an indexed (palette) PNG"
        )
    return (mask > 127).astype(np.uint8)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Writes `(height, width)` uint8 object ids atomically as an indexed PNG with the palette of DAVIS."""
    image = Image.fromarray(mask, mode="P")
    image.putpalette(DAVIS_PALETTE.tobytes())
    partial = path.with_name(f".{path.name}.partial")
    image.save(partial, format="PNG")
    os.replace(partial, path)
