"""Renders clips that are hard to track, with exact masks: `python -m benchmarks.hard_clips FOLDER`.

Composed from the sample clip and written in DAVIS-2017's layout, for `python evaluate.py data=davis data.root=FOLDER`:

- fast_pan: the camera swings, and everything moves by up to 105 pixels per frame;
- occlusion: an object passes behind a tree and is hidden for about ten frames;
- return: an object leaves on the left and comes back on the right, at another height, after ten frames;
- growth: an object comes near, its area grows sixfold;
- twins: two objects of the same look pass each other and overlap.

`python -m benchmarks.hard_clips FOLDER --davis ROOT` instead writes the clips of DAVIS-2016 reversed ("NAME-reversed"),
and every third of their frames in both directions ("NAME-third", "NAME-reversed-third"), as links to the files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

import drift
from benchmarks.measuring import arguments
from drift.image_files import read_mask, write_mask

__all__ = ["CASES", "Scene", "main", "reordered", "sample_scene", "write_cases", "write_variants"]

FRAMES = 36
_FOX = 2
_FILES = (("JPEGImages", "jpg"), ("Annotations", "png"))
_SAMPLE = Path(drift.__file__).parent / "assets" / "sample"
Picture = UInt8[np.ndarray, "height width 3"]
Mask = UInt8[np.ndarray, "height width"]


@dataclass(frozen=True)
class Scene:
    """Pictures that clips are composed of.

    Attributes:
        meadow: the background; what lies beside it is its mirror image.
        fox: RGB and opacity in [0, 255], cut out closely.
    """

    meadow: Picture
    fox: UInt8[np.ndarray, "rows columns 4"]

    def background(self, left: float = 0.0) -> Picture:
        """The background seen by a camera that has moved `left` pixels to the left."""
        height, width = self.meadow.shape[:2]
        move = np.array([[1, 0, left], [0, 1, 0]], np.float32)
        return cv2.warpAffine(self.meadow, move, (width, height), borderMode=cv2.BORDER_REFLECT)

    def draw(
        self, frame: Picture, mask: Mask, object_id: int, centre: tuple[float, float], scale: float
    ) -> None:
        """Draws a fox onto a frame and its mask, over what is there.

        Args:
            frame, mask: changed in place.
            object_id: of the fox in the mask.
            centre: column and row.
            scale: relative to the sample clip.
        """
        rows, columns = self.fox.shape[:2]
        x, y = centre[0] - scale * columns / 2, centre[1] - scale * rows / 2
        move = np.array([[scale, 0, x], [0, scale, y]], np.float32)
        size = frame.shape[1], frame.shape[0]
        smooth = cv2.GaussianBlur(self.fox, (0, 0), 0.35 / scale) if scale < 0.9 else self.fox  # no aliasing
        moved = cv2.warpAffine(smooth, move, size, flags=cv2.INTER_LINEAR)
        opacity = moved[..., 3:] / 255
        frame[:] = (frame * (1 - opacity) + moved[..., :3] * opacity).round()
        mask[opacity[..., 0] > 0.5] = object_id


def sample_scene() -> Scene:
    """The meadow without its animals, and the fox, from the first frame of the sample clip."""
    name = "480p/meadow/00000"
    frame = np.array(Image.open(_SAMPLE / "JPEGImages" / f"{name}.jpg").convert("RGB"))
    mask = read_mask(_SAMPLE / "Annotations" / f"{name}.png")
    animals = cv2.dilate((mask > 0).astype(np.uint8), np.ones((25, 25)))
    meadow: np.ndarray = frame.astype(np.float32)
    left: np.ndarray = animals.astype(np.float32)
    for shift in (300, -300, 560, -560, 140, -140):  # grass from beside each animal
        source, covered = np.roll(frame, shift, 1), np.roll(animals, shift, 1)
        weight = cv2.GaussianBlur(left * (1 - covered), (0, 0), 4)[..., None]
        meadow, left = meadow * (1 - weight) + source * weight, left * covered
    rows, columns = np.nonzero(mask == _FOX)
    cut = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
    opacity = cv2.GaussianBlur((mask == _FOX).astype(np.float32), (0, 0), 1.0)
    opacity = np.clip(2 * opacity - 0.9, 0, 1) * 255  # inside the edge, which has the colours of the grass
    fox = np.dstack([frame, opacity.astype(np.uint8)])[cut]
    return Scene(np.clip(meadow, 0, 255).astype(np.uint8), fox)


def _fast_pan(scene: Scene, t: int) -> tuple[Picture, Mask]:
    left = 300 * math.sin(2 * math.pi * t / 18)
    frame, mask = _empty(scene, left)
    scene.draw(frame, mask, 1, (427 + left, 300), 0.7)
    return frame, mask


def _occlusion(scene: Scene, t: int) -> tuple[Picture, Mask]:
    frame, mask = _empty(scene)
    scene.draw(frame, mask, 1, (60 + 21 * t, 320), 0.5)
    tree = slice(330, 660)
    frame[:, tree] = _bark(frame.shape[0], tree.stop - tree.start)
    mask[:, tree] = 0
    return frame, mask


def _return(scene: Scene, t: int) -> tuple[Picture, Mask]:
    frame, mask = _empty(scene)
    centre = (230 - 32 * t, 330) if t < 18 else (1590 - 32 * t, 230)
    scene.draw(frame, mask, 1, centre, 0.6)
    return frame, mask


def _growth(scene: Scene, t: int) -> tuple[Picture, Mask]:
    frame, mask = _empty(scene)
    scale = 0.5 * 6 ** (t / (FRAMES - 1) / 2)
    scene.draw(frame, mask, 1, (300 + 4 * t, 230 + 1.5 * t), scale)
    return frame, mask


def _twins(scene: Scene, t: int) -> tuple[Picture, Mask]:
    frame, mask = _empty(scene)
    scene.draw(frame, mask, 1, (130 + 17 * t, 260), 0.55)
    scene.draw(frame, mask, 2, (724 - 17 * t, 330), 0.55)
    return frame, mask


CASES: Mapping[str, Callable[[Scene, int], tuple[Picture, Mask]]] = {
    "fast_pan": _fast_pan,
    "occlusion": _occlusion,
    "return": _return,
    "growth": _growth,
    "twins": _twins,
}
"""Frame and mask of each clip at a frame's index."""


def _empty(scene: Scene, left: float = 0.0) -> tuple[Picture, Mask]:
    frame = scene.background(left)
    return frame, np.zeros(frame.shape[:2], np.uint8)


def _bark(rows: int, columns: int) -> Picture:
    """A tree trunk: brown, streaked, and darker towards its sides."""
    random = np.random.default_rng(0)
    noise = random.normal(size=(rows, columns)).astype(np.float32)
    streaks = cv2.GaussianBlur(noise, (0, 0), sigmaX=1.5, sigmaY=14)
    light = np.sin(np.linspace(0.25, math.pi - 0.25, columns)) * (1 + 0.25 * streaks / streaks.std())
    return np.clip(light[..., None] * (104, 80, 58), 0, 255).astype(np.uint8)


def write_cases(folder: Path) -> None:
    """Writes all cases in DAVIS-2017's layout."""
    scene = sample_scene()
    for name, case in CASES.items():
        for t in range(FRAMES):
            frame, mask = case(scene, t)
            image, annotation = (folder / kind / "480p" / name for kind in ("JPEGImages", "Annotations"))
            for parent in (image, annotation):
                parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(image / f"{t:05d}.jpg", quality=92)
            write_mask(annotation / f"{t:05d}.png", mask)
    _write_list(folder / "ImageSets" / "2017" / "val.txt", CASES)


def write_variants(davis: Path, folder: Path) -> list[str]:
    """Links the reversed and thinned clips of DAVIS-2016 in `davis` into `folder`, in the same layout; their names."""
    steps = {"-reversed": -1, "-third": 3, "-reversed-third": -3}
    return reordered(davis, folder, lambda count: {name: range(count)[::n] for name, n in steps.items()})


def reordered(davis: Path, folder: Path, orders: Callable[[int], Mapping[str, Sequence[int]]]) -> list[str]:
    """Links the clips of DAVIS-2016 in `davis` into `folder`, in the same layout, with their frames in other orders.

    Args:
        davis: folder in DAVIS-2016's layout.
        folder: created if it does not exist.
        orders: maps the number of frames of a clip to frame indices, by the suffix of the new clip's name.

    Returns:
        Names of the new clips.
    """
    names, lines = [], []
    for images in sorted((davis / "JPEGImages" / "480p").iterdir()):
        frames = [path.stem for path in sorted(images.glob("*.jpg"))]
        for suffix, order in orders(len(frames)).items():
            names.append(images.name + suffix)
            for t, index in enumerate(order):
                lines.append(" ".join(f"/{kind}/480p/{names[-1]}/{t:05d}.{end}" for kind, end in _FILES))
                for kind, ending in _FILES:
                    link = folder / kind / "480p" / names[-1] / f"{t:05d}.{ending}"
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.unlink(missing_ok=True)
                    source = davis / kind / "480p" / images.name / f"{frames[index]}.{ending}"
                    link.symlink_to(source.resolve())
    _write_list(folder / "ImageSets" / "480p" / "val.txt", lines)
    return names


def _write_list(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--davis", type=Path, help="write variants of the clips of this folder instead")
    options = parser.parse_args()
    if options.davis:
        write_variants(options.davis, options.folder)
    else:
        write_cases(options.folder)


if __name__ == "__main__":
    main()
