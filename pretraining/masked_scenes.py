"""Generated scenes with exact masks of their objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np

from pretraining.pictures import Cutout
from pretraining.scenes import Light, PlacedObject, imagine, render

__all__ = ["MaskedScene", "draw_scene", "drawn_size"]

_SIZES = ((7, 12), (7, 12), (7, 12), (7, 12), (12, 7))  # height and width, relative to 12
_TEXTURED = 0.15  # fraction of cut-outs with the texture of a background
_SMALLEST, _LARGEST = 0.002, 0.7  # area of prompted objects, relative to the picture
_MAGNIFIED = 3.0  # largest magnification of a cut-out
_STREAK = 7  # longest motion blur in pixels
_JOINED = 0.3  # probability of a mask that joins two objects that touch
_MOST = 6  # masks per scene


class MaskedScene(NamedTuple):
    """A picture and the masks of objects in it.

    Attributes:
        image: RGB in [0, 255], `(height, width, 3)` uint8.
        covers: fraction of each 2 x 2 pixels that an object covers, `(objects, height / 2, width / 2)` in [0, 1].
    """

    image: np.ndarray
    covers: np.ndarray


def drawn_size(side: int, random: np.random.Generator) -> tuple[int, int]:
    """Random height and width, the longer one `side` pixels."""
    height, width = _SIZES[random.integers(len(_SIZES))]
    return side * height // 12, side * width // 12


def draw_scene(
    cutouts: Sequence[Cutout],
    grounds: Sequence[np.ndarray],
    size: tuple[int, int],
    random: np.random.Generator,
) -> MaskedScene:
    """A random scene of `size` (height, width) with at least one object of useful size."""
    side = max(size)
    while True:
        scene = imagine(cutouts, grounds, random, kinds=int(random.integers(1, 6)))
        objects = tuple(_varied(placed, scene.ground, grounds, size, random) for placed in scene.objects)
        lights = (Light.drawn(random, 0.5),)
        picture, covers = render(replace(scene, objects=objects, ground_lights=lights), side, random)
        top, left = ((side - n) // 2 for n in size)
        crop = (slice(top, top + size[0]), slice(left, left + size[1]))
        grid = (size[1] // 2, size[0] // 2)
        halves = [cv2.resize(cover[crop], grid, interpolation=cv2.INTER_AREA) for cover in covers]
        masks = [cover for cover in [*_joined(halves, random), *halves] if _is_useful(cover)]
        if masks:
            return MaskedScene(_filmed(picture[crop], random), np.stack(masks[:_MOST]))


def _is_useful(cover: np.ndarray) -> bool:
    return bool(_SMALLEST < (cover > 0.5).mean() < _LARGEST)


def _joined(covers: Sequence[np.ndarray], random: np.random.Generator) -> list[np.ndarray]:
    """With probability `_JOINED`, the union of two objects that touch."""
    grown = [cv2.dilate(cover, np.ones((3, 3), np.uint8)) > 0.5 for cover in covers]
    pairs = [(a, b) for a in range(len(covers)) for b in range(a) if (grown[a] & grown[b]).any()]
    if not pairs or random.random() > _JOINED:
        return []
    first, second = pairs[random.integers(len(pairs))]
    return [np.clip(covers[first] + covers[second], 0, 1)]


def _varied(
    placed: PlacedObject,
    ground: np.ndarray,
    grounds: Sequence[np.ndarray],
    size: tuple[int, int],
    random: np.random.Generator,
) -> PlacedObject:
    """Moves an object into the crop, limits its magnification, and changes its texture or its colours."""
    cutout, side = placed.cutout, max(size)
    reach = (0.9 * size[1] / side, 0.9 * size[0] / side)
    x, y = (0.5 + part * (at - 0.5) for at, part in zip(placed.placement.centre, reach, strict=True))
    placement = replace(placed.placement, centre=(x, y))
    if random.random() < _TEXTURED:
        texture = ground if random.random() < 0.3 else grounds[int(random.integers(len(grounds)))]
        cutout = _textured(cutout, texture, placement.size * side, random)
    else:
        largest = _MAGNIFIED * max(cutout.rgba.shape) / side
        placement = replace(placement, size=min(placement.size, largest))
        cutout = _matched(cutout, ground, random.uniform(0, 0.7))
    return replace(placed, cutout=cutout, placement=placement, lights=(Light.drawn(random, 0.4),))


def _textured(cutout: Cutout, ground: np.ndarray, length: float, random: np.random.Generator) -> Cutout:
    alpha = cutout.rgba[..., 3]
    scale = min(max(length, 48), 512) / max(alpha.shape)
    alpha = cv2.resize(alpha, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    height, width = alpha.shape
    scale = random.uniform(1, 2) * max(height / ground.shape[0], width / ground.shape[1], 0.4)
    ground = cv2.resize(ground, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    top, left = (
        int(random.integers(max(a - b, 0) + 1)) for a, b in zip(ground.shape, alpha.shape, strict=False)
    )
    colours = cv2.resize(ground[top : top + height, left : left + width], (width, height))
    return replace(cutout, rgba=np.dstack([colours, alpha]))


def _matched(cutout: Cutout, ground: np.ndarray, strength: float) -> Cutout:
    """Moves mean and deviation of the colours towards those of the background."""
    rgb, shown = cutout.rgba[..., :3].astype(np.float32), cutout.rgba[..., 3] > 128
    if not shown.any():
        return cutout
    mean, deviation = rgb[shown].mean(0), rgb[shown].std(0) + 1
    pixels = ground[::8, ::8].reshape(-1, 3).astype(np.float32)
    matched = (rgb - mean) / deviation * (pixels.std(0) + 1) + pixels.mean(0)
    rgb = np.clip(rgb + strength * (matched - rgb), 0, 255).astype(np.uint8)
    return replace(cutout, rgba=np.dstack([rgb, cutout.rgba[..., 3]]))


def _filmed(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The picture as uint8, with random motion blur, blur and JPEG compression."""
    chance = random.random()
    if chance < 0.2:
        length = int(random.integers(3, _STREAK + 1))
        turn = cv2.getRotationMatrix2D(((length - 1) / 2,) * 2, random.uniform(0, 180), 1)
        line = np.zeros((length, length), np.float32)
        line[length // 2] = 1
        kernel = cv2.warpAffine(line, turn, (length, length))
        picture = cv2.filter2D(picture, -1, kernel / kernel.sum())
    elif chance < 0.6:
        picture = cv2.GaussianBlur(picture, (0, 0), random.uniform(0.4, 1.0))
    coded = np.clip(picture * 255, 0, 255).astype(np.uint8)
    if random.random() < 0.5:
        _, file = cv2.imencode(".jpg", coded, [cv2.IMWRITE_JPEG_QUALITY, int(random.integers(40, 92))])
        coded = cv2.imdecode(file, cv2.IMREAD_COLOR)
    return coded
