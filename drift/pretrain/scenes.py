"""Endless scenes with captions, composed from cut-outs and backgrounds.

Scene `i` of a seed is always the same, so that a resumed training goes on where it stood.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from drift.pretrain.pictures import Cutout

__all__ = ["SceneDataset", "caption", "compose"]

_COUNTS = {1: "a", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


def caption(names: list[str]) -> str:
    """A sentence that counts the named objects: "a photo of a tiger and two apples"."""
    if not names:
        return "a photo of a landscape"
    parts = []
    for name in dict.fromkeys(names):
        count = names.count(name)
        article = "an" if count == 1 and name[0] in "aeiou" else _COUNTS[min(count, 6)]
        parts.append(f"{article} {name}{'s' if count > 1 else ''}")
    return "a photo of " + " and ".join(parts)


def _similarity(
    source: tuple[int, int], centre: tuple[float, float], scale: float, degrees: float, mirrored: bool
) -> np.ndarray:
    """The 2 x 3 map of a `(height, width)` picture's centre to `centre` (x, y), turned and scaled."""
    height, width = source
    turn = np.asarray(cv2.getRotationMatrix2D((width / 2, height / 2), degrees, scale), dtype=np.float64)
    turn[:, 2] += np.asarray(centre) - (width / 2, height / 2)
    if mirrored:
        turn = turn @ np.array([[-1, 0, width], [0, 1, 0], [0, 0, 1]], dtype=np.float64)
    return turn


def _warp(picture: np.ndarray, matrix: np.ndarray, side: int, border: int) -> np.ndarray:
    shrink = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if shrink < 0.5:  # warpAffine has no prefilter: reduce first, so that nothing aliases
        factor = 2 ** int(np.floor(-np.log2(shrink)))
        size = (max(picture.shape[1] // factor, 1), max(picture.shape[0] // factor, 1))
        matrix = matrix.copy()
        matrix[:, 0] *= picture.shape[1] / size[0]
        matrix[:, 1] *= picture.shape[0] / size[1]
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return cv2.warpAffine(picture, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=border)


def _relight(rgb: np.ndarray, random: np.random.Generator, strength: float) -> np.ndarray:
    """A gain, an offset and a tint, in [0, 1] RGB."""
    gain = 1 + strength * random.uniform(-0.5, 0.5)
    tint = 1 + strength * random.uniform(-0.15, 0.15, size=3)
    return np.clip((rgb - 0.5) * gain * tint + 0.5 + strength * random.uniform(-0.15, 0.15), 0, 1)


def _texture(rgb: np.ndarray) -> float:
    """Mean absolute Laplacian of a crop: about 0 for plain sky, 0.05 and more for foliage."""
    return float(np.abs(cv2.Laplacian(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.CV_32F)).mean())


def _background(pictures: list[np.ndarray], side: int, random: np.random.Generator) -> np.ndarray:
    """A crop of a random wallpaper; of three tries the first with some texture."""
    for _ in range(3):
        crop = _crop(pictures, side, random)
        if _texture(crop) > 0.02:
            break
    return _relight(crop, random, 1.0)


def _crop(pictures: list[np.ndarray], side: int, random: np.random.Generator) -> np.ndarray:
    picture = pictures[random.integers(len(pictures))]
    smallest = side / min(picture.shape[:2])
    scale = smallest * float(np.exp(random.uniform(0.05, 1.2)))
    half = side / 2 / scale  # source pixels from the crop's centre to its edge
    height, width = picture.shape[:2]
    centre = [random.uniform(half, max(n - half, half + 1)) for n in (width, height)]
    matrix = _similarity((height, width), (0, 0), scale, random.uniform(-8, 8), random.random() < 0.5)
    matrix[:, 2] += side / 2 - matrix @ (*centre, 1)
    return _warp(picture, matrix, side, cv2.BORDER_REFLECT_101).astype(np.float32) / 255


def _paste(
    canvas: np.ndarray, cutout: Cutout, centre: tuple[float, float], size: float, random: np.random.Generator
) -> np.ndarray:
    side = canvas.shape[0]
    scale = size / max(cutout.rgba.shape[:2])
    turned = _similarity(cutout.rgba.shape[:2], centre, scale, random.uniform(-25, 25), random.random() < 0.5)
    premultiplied = cutout.rgba.astype(np.float32) / 255
    premultiplied[..., :3] *= premultiplied[..., 3:]
    layer = _warp(premultiplied, turned, side, cv2.BORDER_CONSTANT)
    alpha = layer[..., 3:]
    colour = _relight(layer[..., :3] / np.maximum(alpha, 1e-3), random, 0.8)
    if random.random() < 0.3:
        shift = np.array([[1, 0, random.uniform(-6, 6)], [0, 1, random.uniform(2, 8)]], dtype=np.float32)
        shadow = cv2.warpAffine(cv2.GaussianBlur(alpha, (0, 0), 4), shift, (side, side))
        canvas = canvas * (1 - 0.5 * shadow[..., None] * (1 - alpha))
    return canvas * (1 - alpha) + colour * alpha


def compose(
    cutouts: list[Cutout], backgrounds: list[np.ndarray], side: int, random: np.random.Generator
) -> tuple[np.ndarray, str]:
    """One scene: `(side, side, 3)` float32 RGB in [0, 1], and its caption."""
    canvas = _background(backgrounds, side, random)
    kinds = int(random.choice(6, p=(0.06, 0.2, 0.28, 0.22, 0.14, 0.1)))
    names: list[str] = []
    for _ in range(kinds):
        cutout = cutouts[random.integers(len(cutouts))]
        copies = 1 if random.random() < 0.75 else int(random.integers(2, 4))
        size = side * float(np.exp(random.uniform(np.log(0.22), np.log(1.5)))) / np.sqrt(copies)
        for _ in range(copies):
            centre = (float(random.uniform(0, side)), float(random.uniform(0, side)))
            canvas = _paste(canvas, cutout, centre, size * random.uniform(0.85, 1.15), random)
            names.append(cutout.name)
    if random.random() < 0.25:
        canvas = cv2.GaussianBlur(canvas, (0, 0), random.uniform(0.4, 1.3))
    if random.random() < 0.3:
        canvas = canvas + random.normal(0, random.uniform(0.005, 0.03), canvas.shape)
    return np.clip(canvas, 0, 1).astype(np.float32), caption(names)


class SceneDataset(Dataset[tuple[torch.Tensor, str]]):
    """Scenes `first` to `first + length - 1` of a seed: image `(3, side, side)` in [-1, 1], caption."""

    def __init__(
        self,
        cutouts: list[Cutout],
        backgrounds: list[np.ndarray],
        *,
        side: int,
        length: int,
        seed: int = 0,
        first: int = 0,
    ) -> None:
        self.cutouts, self.backgrounds = cutouts, backgrounds
        self.side, self.length, self.seed, self.first = side, length, seed, first

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        if not 0 <= index < self.length:
            raise IndexError(index)  # what ends a `for` loop over the scenes
        random = np.random.default_rng((self.seed, self.first + index))
        image, text = compose(self.cutouts, self.backgrounds, self.side, random)
        return torch.from_numpy(image).permute(2, 0, 1) * 2 - 1, text
