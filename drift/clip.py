"""`Clip`: the one type that crosses from the data to the model.

Frames and masks are decoded when they are asked for, one at a time: no step holds a whole clip.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from drift.errors import InputError
from drift.image_files import read_frame, read_mask
from drift.masks import reduced_mask
from drift.resizing import reduced_frame, reduced_size

__all__ = ["Clip", "FrameFiles", "Keypoint", "MaskFiles", "ObjectPrompt"]


class FrameFiles(Sequence[np.ndarray]):
    """Frames in files: item `t` is `(height, width, 3)` uint8 RGB, decoded anew at each access."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return FrameFiles(self.paths[index])
        return read_frame(self.paths[index])

    def identity(self) -> str:
        """What tells these frames from others: the names, sizes and times of their files."""
        told = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.paths]
        return hashlib.sha256(repr(told).encode()).hexdigest()


class MaskFiles(Mapping[int, np.ndarray]):
    """Masks in files, by frame index: `(height, width)` uint8 object ids, decoded at each access.

    Args:
        paths: by frame index.
        binary: see `read_mask`.
        objects: by frame index, the ids that count, the others being background; all where a frame is not named.
    """

    def __init__(
        self,
        paths: Mapping[int, Path],
        *,
        binary: bool | None = False,
        objects: Mapping[int, Collection[int]] | None = None,
    ) -> None:
        self.paths = dict(sorted(paths.items()))
        self.binary, self.objects = binary, objects or {}

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[int]:
        return iter(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        mask = read_mask(self.paths[index], binary=self.binary)
        if index not in self.objects:
            return mask
        return np.where(np.isin(mask, list(self.objects[index])), mask, np.uint8(0))


@dataclass(frozen=True)
class ObjectPrompt:
    """An object shown by a box, by clicks or by both, in place of a mask.

    Attributes:
        object_id: from 1 to 255.
        box: left, top, right and bottom in pixels, or None.
        points: x and y of each click in pixels.
        inside: of each click, whether it is on the object.
    """

    object_id: int
    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()
    inside: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Keypoint:
    """A point to follow.

    Attributes:
        name: by which it is told.
        x, y: in pixels, a pixel's centre at whole numbers.
    """

    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Clip:
    """A video and what is known of its objects.

    Attributes:
        name: the sequence's name, also that of its output folder.
        frames: `(height, width, 3)` uint8 RGB, one per time step. Going through them in order is cheap, a single
            one may have to be searched for.
        frame_names: one per frame, without suffix ("00000"); outputs are named after them.
        given: frame index -> mask that the tracker may see, `(height, width)` uint8 object ids.
        truth: frame index -> mask to score against, likewise; empty where nothing is scored.
        frames_per_second: the rate at which an overlay is played.
        times: when each frame is shown, in seconds; None for even steps of that rate.
        prompts: frame index -> objects that are shown there by boxes and clicks.
        keypoints: frame index -> points that are to be followed from there.
        max_side: to which longer side frames are reduced before the model sees them, in pixels; None for as they are.
        audio: a file whose sound goes with the overlay, or None.
        defect: why the clip ends before its source does, to be told when all its frames are done; or None.

    Raises:
        InputError: the clip has no frame, or nothing is given to follow.
    """

    name: str
    frames: Sequence[np.ndarray]
    frame_names: Sequence[str]
    given: Mapping[int, np.ndarray]
    truth: Mapping[int, np.ndarray] = field(default_factory=dict)
    frames_per_second: float = 24.0
    times: Sequence[float] | None = None
    prompts: Mapping[int, Sequence[ObjectPrompt]] = field(default_factory=dict)
    keypoints: Mapping[int, Sequence[Keypoint]] = field(default_factory=dict)
    max_side: int | None = None
    audio: Path | None = None
    defect: str | None = None

    def __post_init__(self) -> None:
        if not len(self.frames):
            raise InputError(f"{self.name}: the clip has no frame")
        if len(self.frame_names) != len(self.frames):
            raise InputError(f"{self.name}: {len(self.frames)} frames, but {len(self.frame_names)} names")
        if not (self.given or self.prompts or self.keypoints):
            raise InputError(f"{self.name}: no mask is given, on no frame: nothing is to be followed")
        beyond = [i for i in (*self.given, *self.prompts, *self.keypoints) if not 0 <= i < len(self.frames)]
        if beyond:
            raise InputError(
                f"{self.name}: something is given for frame {beyond[0]}, but the clip's frames are 0 to "
                f"{len(self.frames) - 1}"
            )

    @property
    def start(self) -> int:
        """The first frame for which something is given: before it there is nothing to follow."""
        return min((*self.given, *self.prompts, *self.keypoints))

    def __len__(self) -> int:
        return len(self.frames)

    def time(self, index: int) -> float:
        """When frame `index` is shown, in seconds."""
        return index / self.frames_per_second if self.times is None else self.times[index]

    def reduced_frame(self, frame: np.ndarray) -> np.ndarray:
        """A frame of the clip as the model is to see it: no side longer than `max_side`."""
        return reduced_frame(frame, self.max_side)

    def reduced_mask(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the clip at the size of `reduced_frame`."""
        return reduced_mask(mask, self.max_side)

    def reduced_points(self, index: int, size: tuple[int, int]) -> list[Keypoint]:
        """The points that are to be followed from frame `index` on, in pixels of `reduced_frame`.

        Args:
            index: of the frame.
            size: height and width of the clip's frames.
        """
        down, across = self._reduction(size)
        return [
            Keypoint(one.name, *_scaled(one.x, one.y, down, across)) for one in self.keypoints.get(index, ())
        ]

    def reduced_prompts(self, index: int, size: tuple[int, int]) -> list[ObjectPrompt]:
        """The objects that are shown on frame `index`, likewise."""
        down, across = self._reduction(size)
        return [
            replace(
                one,
                box=None
                if one.box is None
                else tuple(  # type: ignore[arg-type]
                    side * (down if place % 2 else across) for place, side in enumerate(one.box)
                ),
                points=tuple(_scaled(x, y, down, across) for x, y in one.points),
            )
            for one in self.prompts.get(index, ())
        ]

    def identity(self) -> str:
        """What tells the clip from others: its frames, and what is given of it."""
        told = hashlib.sha256(f"{len(self)} {self.prompts} {self.keypoints}".encode())
        known = getattr(self.frames, "identity", None)
        told.update(known().encode() if known else np.ascontiguousarray(self.frames[self.start]).tobytes())
        for index in self.given:
            told.update(index.to_bytes(4, "big") + np.ascontiguousarray(self.given[index]).tobytes())
        return told.hexdigest()

    def _reduction(self, size: tuple[int, int]) -> tuple[float, float]:
        rows, columns = reduced_size(size, self.max_side)
        return rows / size[0], columns / size[1]

    def given_mask(self, index: int, size: tuple[int, int]) -> np.ndarray | None:
        """The mask given for frame `index`, checked against the frame's `(height, width)`, or None.

        Raises:
            InputError: the mask is of another size than the frame; names the file.
        """
        return self._mask(self.given, index, size)

    def true_mask(self, index: int, size: tuple[int, int]) -> np.ndarray | None:
        """The mask to score frame `index` against, likewise."""
        return self._mask(self.truth, index, size)

    def _mask(self, masks: Mapping[int, np.ndarray], index: int, size: tuple[int, int]) -> np.ndarray | None:
        if index not in masks:
            return None
        mask = masks[index]
        if mask.shape != size:
            where = (
                masks.paths[index]
                if isinstance(masks, MaskFiles)
                else f"{self.name}/{self.frame_names[index]}"
            )
            raise InputError(
                f"{where}: the mask is {mask.shape[1]} x {mask.shape[0]}, "
                f"but its frame is {size[1]} x {size[0]}; they must be equal"
            )
        return mask


def _scaled(x: float, y: float, down: float, across: float) -> tuple[float, float]:
    """A place in pixels, whose centres are whole numbers, in a picture made smaller."""
    return (x + 0.5) * across - 0.5, (y + 0.5) * down - 0.5
