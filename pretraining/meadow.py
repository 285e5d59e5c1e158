"""The sample clip's meadow: its layers, from far to near, and how each of them moves.

The meadow is built from one photograph of grass, in rows that grow towards the camera; the animals
stand between the rows, so that blades hide their feet. A camera follows the rooster, which passes in
front of the fox and ends before the zebra. Every layer moves by one affine map per frame.

Coordinates are pixels `(x, y)` of the first frame, with the pixels' centres at integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pretraining.pictures import Cutout

__all__ = ["ACTORS", "FINENESS", "SIZE", "Actor", "Layer", "build_layers", "finer", "motion"]

SIZE = (480, 854)
"""Height and width of a frame in pixels: DAVIS at 480p."""
FINENESS = 2
"""How many times as large as the frames the meadow is drawn, before it is averaged down."""

_PLATE = (-24, -24, 1010, 536)
"""Left, top, right and bottom of what the camera may see of the meadow."""


@dataclass(frozen=True)
class Actor:
    """One object: which cut-out, where it stands in the first frame, and how it moves.

    Attributes:
        name: the cut-out's name in `pretraining.pictures`.
        ground: `(x, y)` of the middle of its lower edge in the first frame.
        height: in pixels, in the first frame.
        row: the first row of grass in front of it.
        gain: `(3,)` RGB gain that brings its colours into the meadow's light.
        walk: `(dx, dy)` that its ground point moves in the clip, not counting the camera.
        growth: its scale in the last frame over that in the first.
        steps: how many steps it takes; each lifts and turns it a little.
        sway: degrees that a step turns it.
    """

    name: str
    ground: tuple[float, float]
    height: float
    row: int
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    walk: tuple[float, float] = (0.0, 0.0)
    growth: float = 1.0
    steps: float = 0.0
    sway: float = 0.0


ACTORS = (
    Actor("colorful rooster", (128, 462), 262, 8, (1.03, 1.0, 0.9), (535, 6), 1.07, 3.0, 2.2),
    Actor("fox", (440, 386), 250, 7, (1.12, 1.0, 0.85), (0, 0), 1.0, 1.0, 0.8),
    Actor("zebra", (716, 300), 196, 5, (1.06, 1.02, 0.93), (-34, 4), 1.04, 1.5, 0.9),
)
"""Object `i + 1` is actor `i`; the nearest comes first."""

_ROWS = (
    (148, 0.10, 5.0),
    (168, 0.13, 2.5),
    (192, 0.17, 1.4),
    (222, 0.22, 0.6),
    (258, 0.28, 0.0),
    (302, 0.36, 0.0),
    (342, 0.44, 0.0),
    (380, 0.54, 0.0),
    (436, 0.70, 1.4),
)
"""Rows of grass from far to near: y of the highest tips, scale of the photograph, blur in pixels."""


@dataclass(frozen=True)
class Layer:
    """A picture and its place in the first frame.

    Attributes:
        rgba: `(height, width, 4)` float32 in [0, 1], RGB multiplied by alpha.
        place: `(3, 3)`, from the picture's pixels to the first frame's.
        actor: its index in `ACTORS`, or None for a part of the meadow.
    """

    rgba: np.ndarray
    place: np.ndarray
    actor: int | None = None


def _shift(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=np.float64)


def _similarity(about: tuple[float, float], scale: float, degrees: float = 0.0) -> np.ndarray:
    """Scales and turns (counter-clockwise as seen) about a point that stays where it is."""
    turn = np.vstack([cv2.getRotationMatrix2D(about, degrees, scale), (0, 0, 1)])
    return np.asarray(turn, dtype=np.float64)


def _plate_size() -> tuple[int, int]:
    left, top, right, bottom = _PLATE
    return (right - left) * FINENESS, (bottom - top) * FINENESS


def _plate_map() -> np.ndarray:
    """From the first frame's pixels to the plate's, which are `FINENESS` times as fine."""
    return finer() @ _shift(-_PLATE[0], -_PLATE[1])


def finer() -> np.ndarray:
    """From a picture's pixels to those of the same picture drawn `FINENESS` times as large."""
    return np.array(
        [[FINENESS, 0, (FINENESS - 1) / 2], [0, FINENESS, (FINENESS - 1) / 2], [0, 0, 1]], dtype=np.float64
    )


def _ease(u: float) -> float:
    """From 0 to 1, a little slower at both ends."""
    return u - 0.25 * np.sin(2 * np.pi * u) / (2 * np.pi)


def _camera(u: float) -> np.ndarray:
    """The pan and the slight zoom at time `u` in [0, 1]; the identity at 0."""
    height, width = SIZE
    tilt = 1.5 * np.sin(2 * np.pi * u)
    return _similarity((width / 2, height * 0.6), 1 + 0.05 * _ease(u)) @ _shift(-112 * _ease(u), tilt)


def _own_motion(actor: Actor, u: float) -> np.ndarray:
    """How the actor moves in the meadow, in the first frame's pixels; the identity at 0."""
    phase = np.pi * actor.steps * u
    lift = 0.018 * actor.height * np.sin(phase) ** 2 if actor.walk != (0.0, 0.0) else 0.0
    way = _shift(actor.walk[0] * _ease(u), actor.walk[1] * _ease(u) - lift)
    return way @ _similarity(actor.ground, 1 + (actor.growth - 1) * u, actor.sway * np.sin(2 * phase))


def motion(u: float) -> dict[str, np.ndarray]:
    """Layer name -> `(3, 3)` map of the first frame's pixels to those at time `u` in [0, 1].

    The layers are "background" and the actors' ids, "1" and on.
    """
    camera = _camera(u)
    moves = {"background": camera}
    for index, actor in enumerate(ACTORS):
        moves[str(index + 1)] = camera @ _own_motion(actor, u)
    return moves


def _smoothstep(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _blurred(picture: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(picture, (0, 0), sigma) if sigma > 0 else picture


def _grass_strip(meadow: np.ndarray) -> np.ndarray:
    """The photograph's lower part with its blades cut free: premultiplied RGBA.

    Blades are brighter than the gaps between them, and the more so the nearer: a threshold on the
    local contrast that falls from the strip's top downwards leaves the tips of the near blades.
    """
    height, width = meadow.shape[:2]
    top, ramp = round(0.29 * height), 0.215 * height
    grey = cv2.cvtColor(meadow, cv2.COLOR_RGB2GRAY)
    contrast = _blurred(grey - _blurred(grey, width / 43), width / 1070)[top:]
    depth = np.arange(height - top, dtype=np.float32)[:, None] / ramp
    alpha = _smoothstep((depth + 7 * contrast - 0.45) / 0.35) * np.clip(6 * depth, 0, 1)
    alpha = np.maximum(alpha, _smoothstep((depth - 0.75) / 0.5)).astype(np.float32)
    alpha *= _rooted(alpha)
    return np.dstack([meadow[top:] * alpha[..., None], alpha])


def _rooted(alpha: np.ndarray) -> np.ndarray:
    """1 where the alpha hangs together with the lower edge, 0 at what floats in the air."""
    _, labels = cv2.connectedComponents((alpha > 0.2).astype(np.uint8))
    kept = (labels == labels[-1, 0]) & (labels > 0)
    return cv2.GaussianBlur(cv2.dilate(kept.astype(np.float32), np.ones((3, 3))), (0, 0), 0.8)


def _over(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """`upper` laid over `lower`, both premultiplied RGBA."""
    return upper + lower * (1 - upper[..., 3:])


def _backdrop(garden: np.ndarray) -> np.ndarray:
    """What lies behind the meadow: the photograph's out-of-focus upper edge. Opaque."""
    height, width = garden.shape[:2]
    part = garden[: round(0.175 * height), round(0.16 * width) :]
    part = _blurred(cv2.resize(part, (240, 40), interpolation=cv2.INTER_AREA), 2)
    horizon = (_ROWS[1][0] - _PLATE[1]) * FINENESS
    across, down = _plate_size()
    wide = cv2.resize(part, (across, horizon), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    wide = cv2.copyMakeBorder(wide, 0, down - horizon, 0, 0, cv2.BORDER_REPLICATE)
    return np.dstack([wide, np.ones((down, across), np.float32)])


def _row(strip: np.ndarray, index: int, random: np.random.Generator) -> np.ndarray:
    """One row of grass across the whole plate, darker where its blades leave the ground."""
    tips, scale, blur = _ROWS[index]
    size = tuple(round(n * scale * FINENESS) for n in strip.shape[1::-1])
    blades = cv2.resize(strip, size, interpolation=cv2.INTER_AREA if scale < 0.5 else cv2.INTER_LINEAR)
    width, height = _plate_size()
    pair = np.hstack([blades, blades[:, ::-1]])
    wide = np.tile(np.roll(pair, random.integers(pair.shape[1]), axis=1), (1, width // pair.shape[1] + 1, 1))
    depth = np.arange(len(blades), dtype=np.float32) / len(blades)
    wide[..., :3] *= (1.04 - 0.5 * _smoothstep(depth * 1.6))[:, None, None]
    first = (tips - _PLATE[1]) * FINENESS
    rows = np.zeros((height, width, 4), dtype=np.float32)
    rows[first : first + len(wide)] = wide[: height - first, :width]
    return _blurred(rows, blur * FINENESS)


def _ground(
    meadow: np.ndarray, garden: np.ndarray, random: np.random.Generator
) -> list[tuple[int, np.ndarray]]:
    """The meadow as (first row, premultiplied RGBA), far to near, cut where an actor stands."""
    strip = _grass_strip(meadow)
    slices = [(0, _backdrop(garden))]
    for index in range(len(_ROWS)):
        row = _haze(_row(strip, index, random), index)
        if any(actor.row == index for actor in ACTORS):
            slices.append((index, row))
        else:
            slices[-1] = (slices[-1][0], _over(slices[-1][1], row))
    return slices


def _haze(row: np.ndarray, index: int) -> np.ndarray:
    """Far rows take on some of the warm light behind them."""
    share = 0.42 * max(1 - index / 5, 0) ** 1.5
    warm = np.array([0.93, 0.80, 0.32], dtype=np.float32)
    return np.dstack([row[..., :3] * (1 - share) + warm * share * row[..., 3:], row[..., 3]])


def _body(rgba: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The largest part of a cut-out, as some hold stray lines, and its left, top, width and height."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((rgba[..., 3] > 0.1).astype(np.uint8))
    body = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    alpha = rgba[..., 3] * cv2.dilate((labels == body).astype(np.float32), np.ones((3, 3)))
    left, top, width, height = (float(n) for n in stats[body, :4])
    return np.dstack([rgba[..., :3], alpha]), (left, top, width, height)


def _cut_out(actor: Actor, index: int, cutout: Cutout) -> Layer:
    """The actor's picture, lit from above, with its lower edge's middle on the actor's ground point."""
    rgba, (left, top, width, height) = _body(cutout.rgba.astype(np.float32) / 255)
    depth = ((np.arange(rgba.shape[0], dtype=np.float32) - top) / height)[:, None, None]
    light = 1.08 - 0.22 * _smoothstep(depth) * np.array([1.15, 0.8, 1.3], dtype=np.float32)
    colour = np.clip(rgba[..., :3] * light * np.array(actor.gain, dtype=np.float32), 0, 1)
    lit = np.dstack([colour * rgba[..., 3:], rgba[..., 3]])
    lit = cv2.copyMakeBorder(lit, 2, 2, 2, 2, cv2.BORDER_CONSTANT)  # so that edges fade out
    scale = actor.height / height
    place = (
        _shift(*actor.ground) @ np.diag([scale, scale, 1]) @ _shift(-left - width / 2 - 2, -top - height - 2)
    )
    return Layer(lit, place, index)


def build_layers(
    cutouts: dict[str, Cutout], meadow: np.ndarray, garden: np.ndarray, seed: int
) -> list[Layer]:
    """All layers from far to near."""
    to_frame = np.linalg.inv(_plate_map())
    actors = sorted(enumerate(ACTORS), key=lambda item: item[1].row)
    layers: list[Layer] = []
    for first, rgba in _ground(meadow, garden, np.random.default_rng((seed, 0))):
        layers += [_cut_out(a, i, cutouts[a.name]) for i, a in actors if first and a.row == first]
        layers.append(Layer(rgba, to_frame))
    return layers
