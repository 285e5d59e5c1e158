"""The sample clip's frames: every layer of the meadow drawn in its place, lit, and exposed.

A frame is drawn `FINENESS` times as large and averaged down, which gives soft edges and exact coverage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from drift.errors import InputError
from pretraining.meadow import ACTORS, FINENESS, SIZE, Actor, Layer, build_layers, finer, motion
from pretraining.pictures import Cutout, find_backgrounds, find_cutouts

__all__ = ["Frame", "render"]

_NOISE = 0.008


@dataclass(frozen=True)
class Frame:
    """One rendered frame.

    Attributes:
        image: `(height, width, 3)` uint8 RGB.
        mask: `(height, width)` uint8, the topmost object that covers at least half of each pixel.
        motion: layer name -> `(2, 3)` map from the first frame's pixels to this frame's.
    """

    image: np.ndarray
    mask: np.ndarray
    motion: dict[str, np.ndarray]


def _warp(picture: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Samples a float picture through a `(3, 3)` map; a shrinking one averages over areas first."""
    shrink = float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
    if shrink < 0.75:  # warpAffine has no prefilter
        width, height = (max(round(n * shrink), 1) for n in picture.shape[1::-1])
        fx, fy = picture.shape[1] / width, picture.shape[0] / height
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        matrix = matrix @ np.array([[fx, 0, (fx - 1) / 2], [0, fy, (fy - 1) / 2], [0, 0, 1]])
    return cv2.warpAffine(picture, matrix[:2], size, flags=cv2.INTER_CUBIC).clip(0, 1)


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """X and y in frame pixels of each pixel of the large picture, to be broadcast."""
    height, width = SIZE
    x = (np.arange(width * FINENESS, dtype=np.float32) - (FINENESS - 1) / 2) / FINENESS
    y = (np.arange(height * FINENESS, dtype=np.float32) - (FINENESS - 1) / 2) / FINENESS
    return x[None, :], y[:, None]


def _shadow(actor: Actor, rgba: np.ndarray, move: np.ndarray) -> np.ndarray:
    """`(height, width, 1)` in [0, 1]: a soft ellipse on the ground below an actor's picture."""
    half = 0.42 * actor.height * rgba.shape[1] / rgba.shape[0]
    x, y = move[:2] @ (*actor.ground, 1)
    across, down = _grid()
    away = ((across - x - 0.12 * half) / (half * 1.15)) ** 2 + ((down - y) / (half * 0.3)) ** 2
    return np.exp(-1.6 * away)[..., None]


def _sunlight(u: float, camera: np.ndarray) -> np.ndarray:
    """`(height, width, 3)` gain: the shadow of a thin cloud leaves the meadow, and it gets warmer."""
    back = np.linalg.inv(camera)
    across, down = _grid()
    x, y = (back[i, 0] * across + back[i, 1] * down + back[i, 2] for i in range(2))
    warmth = np.array([1 + 0.012 * u, 1, 1 - 0.02 * u], dtype=np.float32)
    wave = np.sin((x + 0.5 * y) / 330 - 1.2 - 1.1 * u)
    return (0.99 + 0.035 * u + 0.06 * wave)[..., None] * warmth


def _smaller(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, SIZE[::-1], interpolation=cv2.INTER_AREA)


def _draw(layers: list[Layer], u: float) -> tuple[np.ndarray, np.ndarray]:
    """The noiseless picture `(height, width, 3)` in [0, 1] and the mask at time `u`."""
    moves = motion(u)
    size = (SIZE[1] * FINENESS, SIZE[0] * FINENESS)
    canvas = np.zeros((size[1], size[0], 3), dtype=np.float32)
    coverage = np.zeros((len(ACTORS), size[1], size[0]), dtype=np.float32)
    shadow: np.ndarray | None = None
    for layer in layers:
        move = moves["background" if layer.actor is None else str(layer.actor + 1)]
        rgba = _warp(layer.rgba, finer() @ move @ layer.place, size)
        if layer.actor is not None:
            shadow = _shadow(ACTORS[layer.actor], layer.rgba, move)
            canvas *= 1 - 0.42 * shadow
        canvas = rgba[..., :3] + canvas * (1 - rgba[..., 3:])
        coverage *= 1 - rgba[..., 3]
        if layer.actor is not None:
            coverage[layer.actor] = rgba[..., 3]
        elif shadow is not None:  # the blades before an actor's feet lie in its shadow too
            canvas *= 1 - 0.22 * shadow
    picture = _smaller(canvas * _sunlight(u, moves["background"]))
    return picture, _mask(np.stack([_smaller(part) for part in coverage]))


def _mask(coverage: np.ndarray) -> np.ndarray:
    """Ids of `(objects, height, width)` visible coverage; at most one object can cover over a half."""
    best = coverage.argmax(axis=0).astype(np.uint8) + np.uint8(1)
    return np.where(coverage.max(axis=0) >= 0.5, best, np.uint8(0))


def _expose(picture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A sensor's noise, stronger in the lights, and rounding to uint8."""
    noise = cv2.GaussianBlur(random.normal(0, 1, picture.shape).astype(np.float32), (0, 0), 0.55)
    noisy = picture + _NOISE * noise * (0.6 + np.sqrt(np.clip(picture, 0, 1)))
    return np.clip(noisy * 255 + 0.5, 0, 255).astype(np.uint8)


def render(root: Path, *, frames: int = 30, seed: int = 0) -> Iterator[Frame]:
    """Renders the clip: reads the pictures at once, then draws a frame whenever one is asked for.

    Args:
        root: a system's root, or a folder of unpacked Debian packages.
        frames: how many frames the same motion is divided into, at least 2.
        seed: of the rows' places and of the noise.

    Raises:
        InputError: a picture is missing; the message names the packages to install.
    """
    cutouts, meadow, garden = _pictures(root)
    return _frames(build_layers(cutouts, meadow, garden, seed), frames, seed)


def _pictures(root: Path) -> tuple[dict[str, Cutout], np.ndarray, np.ndarray]:
    """The actors by name, and the photographs of the meadow and of the garden in [0, 1]."""
    cutouts = {cutout.name: cutout for cutout in find_cutouts(root, held_out=True, max_side=4096)}
    backgrounds = find_backgrounds(root, held_out=True, max_side=4096)
    missing = [actor.name for actor in ACTORS if actor.name not in cutouts]
    if missing or len(backgrounds) != 2:
        wanted = ", ".join(missing) or "GreenMeadow.jpg or Garden.jpg"
        raise InputError(
            f"{root}: no picture of {wanted}; install or unpack the Debian packages "
            "tuxpaint-stamps-default and mate-backgrounds there"
        )
    garden, meadow = (picture.astype(np.float32) / 255 for picture in backgrounds)  # sorted by name
    return cutouts, meadow, garden


def _frames(layers: list[Layer], count: int, seed: int) -> Iterator[Frame]:
    for index in range(count):
        u = index / (count - 1)
        picture, mask = _draw(layers, u)
        image = _expose(picture, np.random.default_rng((seed, 1, index)))
        yield Frame(image, mask, {name: move[:2] for name, move in motion(u).items()})
