"""The sample clip that ships with the project: three animals in a meadow, with exact masks and motion.

It is rendered from pictures that the embedded model never saw (`drift.pretrain.pictures.HELD_OUT`):

    python -m drift.pretrain.sample_clip --pictures ROOT --output drift/assets/sample

A meadow is built from one photograph of grass, in rows that grow towards the camera; the animals
stand between the rows, so that blades hide their feet. A camera follows the rooster, which passes in
front of the fox and ends before the zebra. Every layer moves by one affine map per frame, which is
written down: the clip has true masks, and its points can be followed.

Coordinates are pixels `(x, y)` of the first frame, with the pixels' centres at integers. The picture
is drawn `_SUPER` times as large and averaged down, which gives soft edges and exact coverage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from drift.errors import DriftError, InputError
from drift.image_files import write_mask
from drift.pretrain.pictures import Cutout, find_backgrounds, find_cutouts

__all__ = ["ACTORS", "FRAMES_PER_SECOND", "SEQUENCE", "SIZE", "Frame", "main", "render", "write_clip"]

SEQUENCE = "meadow"
SIZE = (480, 854)
"""Height and width of a frame in pixels: DAVIS at 480p."""
FRAMES_PER_SECOND = 24

_SUPER = 2
_JPEG_QUALITY = 89
_NOISE = 0.008
_PLATE = (-24, -24, 1010, 536)
"""Left, top, right and bottom of what the camera may see of the meadow."""


@dataclass(frozen=True)
class Actor:
    """One object: which cut-out, where it stands in the first frame, and how it moves.

    Attributes:
        name: the cut-out's name in `drift.pretrain.pictures`.
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
    Actor("colorful rooster", (122, 456), 238, 7, (1.03, 1.0, 0.9), (535, 6), 1.07, 3.0, 2.2),
    Actor("fox", (440, 368), 214, 5, (1.12, 1.0, 0.85), (0, 0), 1.0, 1.0, 0.8),
    Actor("zebra", (722, 282), 168, 3, (1.06, 1.02, 0.93), (-34, 4), 1.04, 1.5, 0.9),
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

_CHILDSPLAY = (
    "Stas Zytkiewicz (Childsplay, 2002-2005), adapted for Tux Paint by Pere Pujal i Carabantes; "
    "collection (c) 2002-2022 Bill Kendrick"
)
_ROOSTER = "John O'Sullivan (2002) or Childsplay, as below: the changelog names both for this file"
_STAMPS = "usr/share/tuxpaint/stamps/animals"
_NATURE = "usr/share/backgrounds/mate/nature"

_CREDITS = (
    ("rooster", "tuxpaint-stamps-default", f"{_STAMPS}/birds/rooster.png", _ROOSTER, "GPL-2"),
    ("fox", "tuxpaint-stamps-default", f"{_STAMPS}/mammals/dogs/fox.png", _CHILDSPLAY, "GPL-2"),
    ("zebra", "tuxpaint-stamps-default", f"{_STAMPS}/mammals/equines/zebra.png", _CHILDSPLAY, "GPL-2"),
    (
        "grass",
        "mate-backgrounds",
        f"{_NATURE}/GreenMeadow.jpg",
        "(c) 2005 Timothy Schellhase, 2008 Lapo Calamandrei",
        "GPL-2 or later",
    ),
    ("backdrop", "mate-backgrounds", f"{_NATURE}/Garden.jpg", "(c) 2008 Charles Barbin", "GPL-2 or later"),
)
"""What a picture shows, its Debian package, its path there, its authors, its licence."""


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


# --- maps -----------------------------------------------------------------------------------------


def _shift(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], dtype=np.float64)


def _similarity(about: tuple[float, float], scale: float, degrees: float = 0.0) -> np.ndarray:
    """Scales and turns (counter-clockwise as seen) about a point that stays where it is."""
    turn = np.vstack([cv2.getRotationMatrix2D(about, degrees, scale), (0, 0, 1)])
    return np.asarray(turn, dtype=np.float64)


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


def _motion(u: float) -> dict[str, np.ndarray]:
    camera = _camera(u)
    moves = {"background": camera}
    for index, actor in enumerate(ACTORS):
        moves[str(index + 1)] = camera @ _own_motion(actor, u)
    return moves


# --- layers ---------------------------------------------------------------------------------------


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


def _plate_size() -> tuple[int, int]:
    left, top, right, bottom = _PLATE
    return (right - left) * _SUPER, (bottom - top) * _SUPER


def _plate_map() -> np.ndarray:
    """From the first frame's pixels to the plate's, which are `_SUPER` times as fine."""
    return _finer() @ _shift(-_PLATE[0], -_PLATE[1])


def _finer() -> np.ndarray:
    """From a picture's pixels to those of the same picture drawn `_SUPER` times as large."""
    return np.array(
        [[_SUPER, 0, (_SUPER - 1) / 2], [0, _SUPER, (_SUPER - 1) / 2], [0, 0, 1]], dtype=np.float64
    )


def _warp(picture: np.ndarray, matrix: np.ndarray, size: tuple[int, int], border: int) -> np.ndarray:
    """Samples a float picture through a `(3, 3)` map; a shrinking one averages over areas first."""
    shrink = float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))
    if shrink < 0.75:  # warpAffine has no prefilter
        width, height = (max(round(n * shrink), 1) for n in picture.shape[1::-1])
        fx, fy = picture.shape[1] / width, picture.shape[0] / height
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        matrix = matrix @ np.array([[fx, 0, (fx - 1) / 2], [0, fy, (fy - 1) / 2], [0, 0, 1]])
    return cv2.warpAffine(picture, matrix[:2], size, flags=cv2.INTER_CUBIC, borderMode=border).clip(0, 1)


def _over(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """`upper` laid over `lower`, both premultiplied RGBA."""
    return upper + lower * (1 - upper[..., 3:])


def _backdrop(garden: np.ndarray) -> np.ndarray:
    """What lies behind the meadow: the photograph's out-of-focus upper edge. Opaque."""
    height, width = garden.shape[:2]
    part = garden[: round(0.175 * height), round(0.16 * width) :]
    part = _blurred(cv2.resize(part, (240, 40), interpolation=cv2.INTER_AREA), 2)
    horizon = (_ROWS[1][0] - _PLATE[1]) * _SUPER
    across, down = _plate_size()
    wide = cv2.resize(part, (across, horizon), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    wide = cv2.copyMakeBorder(wide, 0, down - horizon, 0, 0, cv2.BORDER_REPLICATE)
    return np.dstack([wide, np.ones((down, across), np.float32)])


def _row(strip: np.ndarray, index: int, random: np.random.Generator) -> np.ndarray:
    """One row of grass across the whole plate, darker where its blades leave the ground."""
    tips, scale, blur = _ROWS[index]
    size = tuple(round(n * scale * _SUPER) for n in strip.shape[1::-1])
    blades = cv2.resize(strip, size, interpolation=cv2.INTER_AREA if scale < 0.5 else cv2.INTER_LINEAR)
    width, height = _plate_size()
    pair = np.hstack([blades, blades[:, ::-1]])
    wide = np.tile(np.roll(pair, random.integers(pair.shape[1]), axis=1), (1, width // pair.shape[1] + 1, 1))
    depth = np.arange(len(blades), dtype=np.float32) / len(blades)
    wide[..., :3] *= (1.04 - 0.5 * _smoothstep(depth * 1.6))[:, None, None]
    first = (tips - _PLATE[1]) * _SUPER
    rows = np.zeros((height, width, 4), dtype=np.float32)
    rows[first : first + len(wide)] = wide[: height - first, :width]
    return _blurred(rows, blur * _SUPER)


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
    warm = np.float32([0.93, 0.80, 0.32])
    return np.dstack([row[..., :3] * (1 - share) + warm * share * row[..., 3:], row[..., 3]])


def _cut_out(actor: Actor, index: int, cutout: Cutout) -> Layer:
    """The actor's picture, lit from above, with its lower edge's middle on the actor's ground point."""
    rgba = cutout.rgba.astype(np.float32) / 255
    _, labels, stats, _ = cv2.connectedComponentsWithStats((rgba[..., 3] > 0.1).astype(np.uint8))
    body = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))  # some cut-outs hold stray lines
    rgba[..., 3] *= cv2.dilate((labels == body).astype(np.float32), np.ones((3, 3)))
    left, top, width, height = (float(n) for n in stats[body, :4])
    depth = ((np.arange(rgba.shape[0], dtype=np.float32) - top) / height)[:, None, None]
    light = 1.08 - 0.22 * _smoothstep(depth) * np.float32([1.15, 0.8, 1.3])
    colour = np.clip(rgba[..., :3] * light * np.float32(actor.gain), 0, 1)
    rgba = np.dstack([colour * rgba[..., 3:], rgba[..., 3]])
    rgba = cv2.copyMakeBorder(rgba, 2, 2, 2, 2, cv2.BORDER_CONSTANT)  # so that edges fade out
    scale = actor.height / height
    place = (
        _shift(*actor.ground) @ np.diag([scale, scale, 1]) @ _shift(-left - width / 2 - 2, -top - height - 2)
    )
    return Layer(rgba, place, index)


def _layers(cutouts: dict[str, Cutout], meadow: np.ndarray, garden: np.ndarray, seed: int) -> list[Layer]:
    """All layers from far to near."""
    to_frame = np.linalg.inv(_plate_map())
    actors = sorted(enumerate(ACTORS), key=lambda item: item[1].row)
    layers: list[Layer] = []
    for first, rgba in _ground(meadow, garden, np.random.default_rng((seed, 0))):
        layers += [_cut_out(a, i, cutouts[a.name]) for i, a in actors if first and a.row == first]
        layers.append(Layer(rgba, to_frame))
    return layers


# --- frames ---------------------------------------------------------------------------------------


def _grid() -> tuple[np.ndarray, np.ndarray]:
    """X and y in frame pixels of each pixel of the large picture, to be broadcast."""
    height, width = SIZE
    x = (np.arange(width * _SUPER, dtype=np.float32) - (_SUPER - 1) / 2) / _SUPER
    y = (np.arange(height * _SUPER, dtype=np.float32) - (_SUPER - 1) / 2) / _SUPER
    return x[None, :], y[:, None]


def _shadow(layer: Layer, move: np.ndarray, strength: float) -> np.ndarray:
    """`(height, width, 1)` gain: a soft ellipse on the ground below an actor."""
    actor = ACTORS[layer.actor]
    half = 0.42 * actor.height * layer.rgba.shape[1] / layer.rgba.shape[0]
    x, y = move[:2] @ (*actor.ground, 1)
    across, down = _grid()
    away = ((across - x - 0.12 * half) / (half * 1.15)) ** 2 + ((down - y) / (half * 0.3)) ** 2
    return 1 - strength * np.exp(-1.6 * away)[..., None]


def _sunlight(u: float, camera: np.ndarray) -> np.ndarray:
    """`(height, width, 3)` gain: the shadow of a thin cloud leaves the meadow, and it gets warmer."""
    back = np.linalg.inv(camera)
    across, down = _grid()
    x, y = (back[i, 0] * across + back[i, 1] * down + back[i, 2] for i in range(2))
    wave = np.sin((x + 0.5 * y) / 330 - 1.2 - 1.1 * u)
    return (0.99 + 0.035 * u + 0.06 * wave)[..., None] * np.float32([1 + 0.012 * u, 1, 1 - 0.02 * u])


def _smaller(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, SIZE[::-1], interpolation=cv2.INTER_AREA)


def _draw(layers: list[Layer], u: float) -> tuple[np.ndarray, np.ndarray]:
    """The noiseless picture `(height, width, 3)` in [0, 1] and the mask at time `u`."""
    moves = _motion(u)
    size = (SIZE[1] * _SUPER, SIZE[0] * _SUPER)
    canvas = np.zeros((size[1], size[0], 3), dtype=np.float32)
    coverage = np.zeros((len(ACTORS), size[1], size[0]), dtype=np.float32)
    standing: Layer | None = None
    for layer in layers:
        key = "background" if layer.actor is None else str(layer.actor + 1)
        rgba = _warp(layer.rgba, _finer() @ moves[key] @ layer.place, size, cv2.BORDER_CONSTANT)
        if layer.actor is not None:
            canvas *= _shadow(layer, moves[key], 0.42)
        canvas = rgba[..., :3] + canvas * (1 - rgba[..., 3:])
        coverage *= 1 - rgba[..., 3]
        if layer.actor is not None:
            coverage[layer.actor] = rgba[..., 3]
            standing = layer
        elif standing is not None:  # the blades before an actor's feet lie in its shadow too
            canvas *= _shadow(standing, moves[str(standing.actor + 1)], 0.22)
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
    return _frames(_layers(cutouts, meadow, garden, seed), frames, seed)


def _frames(layers: list[Layer], count: int, seed: int) -> Iterator[Frame]:
    for index in range(count):
        u = index / (count - 1)
        picture, mask = _draw(layers, u)
        image = _expose(picture, np.random.default_rng((seed, 1, index)))
        yield Frame(image, mask, {name: move[:2] for name, move in _motion(u).items()})


# --- files ----------------------------------------------------------------------------------------


def _attribution() -> str:
    rows = "\n".join(
        f"| {what} | `/{path}` | `{package}` | {authors} | {licence} |"
        for what, package, path, authors, licence in _CREDITS
    )
    return _ATTRIBUTION.format(rows=rows)


_ATTRIBUTION = """# Where the sample clip's pictures come from

The frames are composed from the pictures below by `drift/pretrain/sample_clip.py`, which scales, turns,
relights, blurs and layers them. None of them was used to train the models that ship with `drift`.

| shows | file | Debian package | authors | licence |
| --- | --- | --- | --- | --- |
{rows}

Authors and licences are those that the packages name: `/usr/share/doc/*/copyright`, and for the stamps
(version 2022.06.04) also their changelog, entries of 2002-11-12, 2007-07-01 and 2008-06-27.

This folder (frames, masks and motion) is therefore distributed under the GNU General Public License,
version 2; its text is in `COPYING` beside this file and at
<https://www.gnu.org/licenses/old-licenses/gpl-2.0.html>. It comes without any warranty. Its source is the
script named above together with the two Debian packages: `apt-get download tuxpaint-stamps-default
mate-backgrounds`, unpack both with `dpkg -x` and run
`python -m drift.pretrain.sample_clip --pictures ROOT --output FOLDER`. The licence of the program `drift`
is not affected: the clip is data beside it.
"""


def _fresh_folder(folder: Path) -> Path:
    """Makes a folder and empties it of an earlier clip's numbered files, which may be more than ours."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("[0-9][0-9][0-9][0-9][0-9].*"):
        old.unlink()
    return folder


def _motion_file(motion: Sequence[dict[str, np.ndarray]]) -> str:
    """The maps as JSON, a line per frame and layer, so that differences can be read."""
    names = {"background": "meadow"} | {str(i + 1): actor.name for i, actor in enumerate(ACTORS)}
    lines = ",\n".join(
        f'  "{layer}": [\n'
        + ",\n".join(f"   {json.dumps(maps[layer].round(7).tolist())}" for maps in motion)
        + "\n  ]"
        for layer in names
    )
    head = {
        "description": "2 x 3 maps of frame 0's pixels (x, y, 1) to each frame's; centres are integers",
        "size": {"height": SIZE[0], "width": SIZE[1]},
        "frames_per_second": FRAMES_PER_SECOND,
        "layers": names,
    }
    return json.dumps(head, indent=1)[:-2] + ',\n "affine": {\n' + lines + "\n }\n}\n"


def write_clip(frames: Iterator[Frame], output: Path) -> int:
    """Writes frames, masks, the sequence list, the motion and the credits in DAVIS's layout.

    Returns:
        How many frames were written.

    Raises:
        InputError: the folder cannot be written.
    """
    motion = []
    try:
        images = _fresh_folder(output / "JPEGImages" / "480p" / SEQUENCE)
        masks = _fresh_folder(output / "Annotations" / "480p" / SEQUENCE)
        for index, frame in enumerate(frames):
            Image.fromarray(frame.image).save(
                images / f"{index:05d}.jpg", quality=_JPEG_QUALITY, optimize=True
            )
            write_mask(masks / f"{index:05d}.png", frame.mask)
            motion.append(frame.motion)
        (output / "ImageSets" / "2017").mkdir(parents=True, exist_ok=True)
        (output / "ImageSets" / "2017" / "val.txt").write_text(f"{SEQUENCE}\n", encoding="utf-8")
        (output / "motion.json").write_text(_motion_file(motion), encoding="utf-8")
        (output / "ATTRIBUTION.md").write_text(_attribution(), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror or error})") from None
    return len(motion)


def _whole_number(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: allowed is a whole number of at least {least}")
        return int(text)

    return read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m drift.pretrain.sample_clip",
        description="Render the sample clip: three animals in a meadow, with exact masks and motion.",
        epilog="The pictures come from the Debian packages tuxpaint-stamps-default and mate-backgrounds; "
        "unpack them with dpkg -x into ROOT or into ROOT/<package>.",
    )
    parser.add_argument(
        "--pictures", type=Path, required=True, metavar="ROOT", help="folder with the unpacked packages, or /"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="where the clip goes, in DAVIS's layout"
    )
    parser.add_argument(
        "--frames", type=_whole_number(2), default=30, metavar="N", help="frames in the clip (default: 30)"
    )
    parser.add_argument(
        "--seed",
        type=_whole_number(0),
        default=0,
        metavar="N",
        help="of the grass's places and the noise (default: 0)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 2 with one line on the error."""
    options = _parser().parse_args(arguments)
    try:
        count = write_clip(render(options.pictures, frames=options.frames, seed=options.seed), options.output)
    except DriftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.output}: {count} frames of {SEQUENCE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
