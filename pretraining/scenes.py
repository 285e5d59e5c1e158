"""Generated scenes with captions, composed from cut-outs and backgrounds, with two views each.

The second view of a scene is what one might see of it a moment later: every object and the ground have
moved, turned, bent and changed their light. Scene `i` of a seed is always the same, so that a resumed
training goes on where it stood.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from pretraining.pictures import Cutout
from pretraining.warping import Bend, Placement, bend, similarity, warp

__all__ = [
    "EndlessScenes",
    "Light",
    "PlacedObject",
    "Scene",
    "SceneBatch",
    "SceneDataset",
    "caption",
    "imagine",
    "moved",
    "render",
    "vocabulary_captions",
]

Batch = TypeVar("Batch")

_COUNTS = {1: "a", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}


def caption(names: Sequence[str]) -> str:
    """Caption that counts the named objects, such as "a photo of a tiger and two apples"."""
    if not names:
        return "a photo of a landscape"
    parts = []
    for name in dict.fromkeys(names):
        count = list(names).count(name)
        article = "an" if count == 1 and name[0] in "aeiou" else _COUNTS[min(count, 6)]
        parts.append(f"{article} {name}{'s' if count > 1 else ''}")
    return "a photo of " + " and ".join(parts)


def vocabulary_captions(cutouts: Sequence[Cutout]) -> list[str]:
    """Captions that contain every word, for training the tokenizer."""
    names = sorted({cutout.name for cutout in cutouts})
    return [
        *(caption([name] * count) for name in names for count in (1, 2)),
        caption([]),
        caption(names[:3]),
    ]


@dataclass(frozen=True)
class Light:
    """A change of colours in [0, 1] RGB: contrast about middle grey, tint by channel, brightness."""

    gain: float
    tint: tuple[float, float, float]
    offset: float

    @staticmethod
    def drawn(random: np.random.Generator, strength: float) -> Light:
        """Random lighting; `strength` scales its range."""
        tint = 1 + strength * random.uniform(-0.15, 0.15, size=3)
        return Light(
            1 + strength * random.uniform(-0.5, 0.5),
            (float(tint[0]), float(tint[1]), float(tint[2])),
            strength * random.uniform(-0.15, 0.15),
        )

    def on(self, rgb: np.ndarray) -> np.ndarray:
        """Applies the lighting to an image `(height, width, 3)` float32 in [0, 1]."""
        return np.clip(
            (rgb - 0.5) * (self.gain * np.asarray(self.tint, np.float32)) + 0.5 + self.offset, 0, 1
        )


@dataclass(frozen=True)
class PlacedObject:
    """A cut-out in a scene; `placement.size` is the length of its longest side."""

    cutout: Cutout
    placement: Placement
    lights: tuple[Light, ...]
    bend: Bend | None = None
    shadow: tuple[float, float] | None = None


@dataclass(frozen=True)
class Scene:
    """Contents of a scene. Positions and sizes are fractions of the image side.

    Attributes:
        ground: RGB uint8 wallpaper.
        ground_placement: where the wallpaper's centre lies, and how long its shorter side is.
        objects: from the farthest to the nearest.
        blur: sigma in pixels; 0 for none.
        grain: standard deviation of the sensor's noise, colours being in [0, 1].
    """

    ground: np.ndarray
    ground_placement: Placement
    ground_lights: tuple[Light, ...]
    objects: tuple[PlacedObject, ...]
    blur: float
    grain: float

    @property
    def names(self) -> list[str]:
        """Names of the kinds of objects, sorted."""
        return sorted({placed.cutout.name for placed in self.objects})

    @property
    def caption(self) -> str:
        """Names and counts of the objects."""
        return caption([placed.cutout.name for placed in self.objects])


def imagine(
    cutouts: Sequence[Cutout],
    grounds: Sequence[np.ndarray],
    random: np.random.Generator,
    *,
    kinds: int | None = None,
) -> Scene:
    """Random scene with `kinds` kinds of objects (None: 0 to 5 at random), each one or several times."""
    if kinds is None:
        kinds = int(random.choice(6, p=(0.06, 0.2, 0.28, 0.22, 0.14, 0.1)))
    objects: list[PlacedObject] = []
    for _ in range(kinds):
        cutout = cutouts[int(random.integers(len(cutouts)))]
        copies = 1 if random.random() < 0.75 else int(random.integers(2, 4))
        size = float(np.exp(random.uniform(np.log(0.22), np.log(1.5)))) / np.sqrt(copies)
        objects.extend(_place(cutout, size, random) for _ in range(copies))
    ground, placement = _ground(grounds, random)
    return Scene(
        ground,
        placement,
        (Light.drawn(random, 1.0),),
        tuple(objects),
        blur=random.uniform(0.4, 1.3) if random.random() < 0.25 else 0.0,
        grain=random.uniform(0.005, 0.03) if random.random() < 0.3 else 0.0,
    )


def _place(cutout: Cutout, size: float, random: np.random.Generator) -> PlacedObject:
    placement = Placement(
        (float(random.uniform()), float(random.uniform())),
        size * random.uniform(0.85, 1.15),
        random.uniform(-25, 25),
        bool(random.random() < 0.5),
    )
    shadow = (random.uniform(-0.03, 0.03), random.uniform(0.01, 0.04)) if random.random() < 0.3 else None
    return PlacedObject(cutout, placement, (Light.drawn(random, 0.8),), shadow=shadow)


def _ground(grounds: Sequence[np.ndarray], random: np.random.Generator) -> tuple[np.ndarray, Placement]:
    """Random crop of a random background; retried up to twice if it has no texture."""
    for _ in range(3):
        picture = grounds[int(random.integers(len(grounds)))]
        size = float(np.exp(random.uniform(0.05, 1.2)))  # of the wallpaper's shorter side
        reach = np.array(picture.shape[1::-1]) / min(picture.shape[:2]) * size
        centre = 0.5 + (reach - 1) / 2 * random.uniform(-1, 1, size=2)
        placement = Placement(
            (float(centre[0]), float(centre[1])), size, random.uniform(-8, 8), bool(random.random() < 0.5)
        )
        if _texture(_shown(picture, placement, 64)) > 0.03:
            break
    return picture, placement


def _texture(rgb: np.ndarray) -> float:
    """Mean absolute Laplacian of a crop: about 0 for plain sky, more for foliage."""
    return float(np.abs(cv2.Laplacian(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.CV_32F)).mean())


def moved(scene: Scene, random: np.random.Generator) -> Scene:
    """Second view of the scene: camera and objects have moved, objects may be deformed, lighting changes."""
    camera = _Motion.drawn(random, shift=0.12, zoom=0.16, turn=8)
    objects = []
    for placed in scene.objects:
        own = _Motion.drawn(random, shift=0.12, zoom=0.2, turn=18)
        bent = Bend.drawn(random, 0.05) if random.random() < 0.6 else None
        lights = (*placed.lights, Light.drawn(random, 0.25))
        objects.append(
            replace(placed, placement=own.of(camera.of(placed.placement)), bend=bent, lights=lights)
        )
    return replace(
        scene,
        ground_placement=camera.of(scene.ground_placement),
        ground_lights=(*scene.ground_lights, Light.drawn(random, 0.2)),
        objects=tuple(objects),
        blur=random.uniform(0.4, 1.5) if random.random() < 0.25 else scene.blur,
    )


@dataclass(frozen=True)
class _Motion:
    """Shift as a fraction of the side, zoom factor, and rotation in degrees about the image centre."""

    shift: np.ndarray
    zoom: float
    turn: float

    @staticmethod
    def drawn(random: np.random.Generator, *, shift: float, zoom: float, turn: float) -> _Motion:
        return _Motion(
            random.uniform(-shift, shift, size=2),
            float(np.exp(random.uniform(-zoom, zoom))),
            random.uniform(-turn, turn),
        )

    def of(self, placement: Placement) -> Placement:
        centre = (np.asarray(placement.centre) - 0.5) * self.zoom + 0.5 + self.shift
        return replace(
            placement,
            centre=(float(centre[0]), float(centre[1])),
            size=placement.size * self.zoom,
            degrees=placement.degrees + self.turn,
        )


def render(scene: Scene, side: int, random: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """The picture of a scene, `(side, side, 3)` float32 RGB in [0, 1], and how much of each pixel each
    object covers, `(side, side)` float32 per object.

    `random` draws the sensor's noise only.
    """
    canvas = _lit(_shown(scene.ground, scene.ground_placement, side), scene.ground_lights)
    covers: list[np.ndarray] = []
    for placed in scene.objects:
        colour, alpha = _layer(placed, side)
        canvas = _shaded(canvas, alpha, placed.shadow)
        canvas = canvas * (1 - alpha) + colour * alpha
        covers = [cover * (1 - alpha[..., 0]) for cover in covers] + [alpha[..., 0]]
    if scene.blur:
        canvas = cv2.GaussianBlur(canvas, (0, 0), scene.blur)
    if scene.grain:
        canvas = canvas + random.normal(0, scene.grain, canvas.shape)
    return np.clip(canvas, 0, 1).astype(np.float32), covers


def _lit(rgb: np.ndarray, lights: Sequence[Light]) -> np.ndarray:
    for light in lights:
        rgb = light.on(rgb)
    return rgb


def _shown(ground: np.ndarray, placement: Placement, side: int) -> np.ndarray:
    matrix = similarity(ground.shape[:2], placement, side, longest=False)
    return warp(ground, matrix, side, cv2.BORDER_REFLECT_101).astype(np.float32) / 255


def _layer(placed: PlacedObject, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Colour `(side, side, 3)` and alpha `(side, side, 1)` of an object."""
    rgba = placed.cutout.rgba
    matrix = similarity(rgba.shape[:2], placed.placement, side, longest=True)
    premultiplied = rgba.astype(np.float32) / 255
    premultiplied[..., :3] *= premultiplied[..., 3:]
    layer = warp(premultiplied, matrix, side, cv2.BORDER_CONSTANT)
    if placed.bend is not None:
        layer = bend(layer, placed.bend)
    alpha = layer[..., 3:]
    return _lit(layer[..., :3] / np.maximum(alpha, 1e-3), placed.lights), alpha


def _shaded(canvas: np.ndarray, alpha: np.ndarray, shadow: tuple[float, float] | None) -> np.ndarray:
    if shadow is None:
        return canvas
    side = len(canvas)
    shift = np.array([[1, 0, shadow[0] * side], [0, 1, shadow[1] * side]], dtype=np.float32)
    dark = cv2.warpAffine(cv2.GaussianBlur(alpha, (0, 0), 0.018 * side), shift, (side, side))
    return canvas * (1 - 0.5 * dark[..., None] * (1 - alpha))


class SceneBatch(NamedTuple):
    """A batch of scenes with two views each.

    Attributes:
        views: RGB in [-1, 1], `(scenes, 2, 3, side, side)`.
        captions: one for each scene.
        names: of the kinds of objects in each scene, sorted.
        covers: fraction of each cell of 8 x 8 pixels that the visible objects of each kind cover, in the order of
            `names`, `(scenes, 2, kinds, side / 8, side / 8)`; 0 for kinds that a scene does not have.
    """

    views: torch.Tensor
    captions: list[str]
    names: list[list[str]]
    covers: torch.Tensor


class EndlessScenes(Dataset[Batch], ABC):
    """Batches `first` to `first + length - 1` of a seed, with `batch_size` scenes each.

    Args:
        cutouts, grounds: what scenes are composed of.
        side: of the pictures in pixels.
    """

    def __init__(
        self,
        cutouts: Sequence[Cutout],
        grounds: Sequence[np.ndarray],
        *,
        side: int,
        length: int,
        batch_size: int = 1,
        seed: int = 0,
        first: int = 0,
    ) -> None:
        self.cutouts, self.grounds = cutouts, grounds
        self.side, self.length, self.batch_size = side, length, batch_size
        self.seed, self.first = seed, first

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < self.length:
            raise IndexError(index)  # what ends a `for` loop over the batches
        return self.batch(self.first + index)

    @abstractmethod
    def batch(self, number: int) -> Batch:
        """Batch of the given number; deterministic for a seed."""


class SceneDataset(EndlessScenes[SceneBatch]):
    """Scenes with captions and two views each."""

    def batch(self, number: int) -> SceneBatch:
        """Scenes `number * batch_size` to `(number + 1) * batch_size - 1`."""
        numbers = range(number * self.batch_size, (number + 1) * self.batch_size)
        views, covers, scenes = zip(*map(self._scene, numbers), strict=True)
        return SceneBatch(
            torch.stack(views),
            [scene.caption for scene in scenes],
            [scene.names for scene in scenes],
            pad_sequence([cover.transpose(0, 1) for cover in covers], batch_first=True).transpose(1, 2),
        )

    def _scene(self, number: int) -> tuple[torch.Tensor, torch.Tensor, Scene]:
        random = np.random.default_rng((self.seed, number))
        scene = imagine(self.cutouts, self.grounds, random)
        pictures, covers = zip(
            *(render(view, self.side, random) for view in (scene, moved(scene, random))), strict=True
        )
        views = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) * 2 - 1
        cells = np.stack([_by_kind(scene, each, self.side // 8) for each in covers])
        return views, torch.from_numpy(cells), scene


def _by_kind(scene: Scene, covers: Sequence[np.ndarray], side: int) -> np.ndarray:
    """Covers of objects added up by kind and reduced, `(kinds, side, side)`; one kind at least."""
    names = scene.names
    cells = np.zeros((max(len(names), 1), side, side), np.float32)
    for placed, cover in zip(scene.objects, covers, strict=True):
        cells[names.index(placed.cutout.name)] += cv2.resize(
            cover, (side, side), interpolation=cv2.INTER_AREA
        )
    return cells
