"""`Clip`: the type that data modules pass to the model.

Frames and masks are decoded one at a time, on access: a clip is never in memory as a whole.
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

__all__ = ["DIRECTIONS", "Clip", "FrameFiles", "Keypoint", "MaskFiles", "ObjectPrompt"]

DIRECTIONS = ("forward", "backward", "both")
_TOKEN = 64  # pixels of a token of 8 x 8


class FrameFiles(Sequence[np.ndarray]):
    """Frames in image files; item `t` is `(height, width, 3)` uint8 RGB, decoded on every access."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return FrameFiles(self.paths[index])
        return read_frame(self.paths[index])

    def identity(self) -> str:
        """Hash of the names, sizes and modification times of the files."""
        files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.paths]
        return hashlib.sha256(repr(files).encode()).hexdigest()


class MaskFiles(Mapping[int, np.ndarray]):
    """Masks in image files by frame index: `(height, width)` uint8 object ids, decoded on every access.

    Args:
        paths: mask files by frame index.
        binary: see `read_mask`.
        objects: object ids to keep, by frame index; other ids become background. All ids are kept on frames without an
            entry.
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
    """A box, clicks or both that select an object instead of a mask.

    Attributes:
        object_id: in [1, 254].
        box: (x0, y0, x1, y1) in pixels, as pixel edges; or None.
        points: (x, y) of each click in pixels, with pixel centres at whole numbers.
        inside: whether each click is on the object.
    """

    object_id: int
    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float], ...] = ()
    inside: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Keypoint:
    """A point to track.

    Attributes:
        name: of the point in outputs.
        x, y: coordinates in pixels, with pixel centres at whole numbers.
    """

    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Clip:
    """A video with the masks, prompts and keypoints to track.

    Attributes:
        name: of the sequence and its output folder.
        frames: `(height, width, 3)` uint8 RGB frames. Iteration in order is cheap; random access may have to decode
            preceding frames.
        frame_names: one per frame, without suffix ("00000"); output files have these names.
        given: masks for the tracker by frame index, `(height, width)` uint8 object ids.
        truth: masks to score against by frame index, `(height, width)` uint8 object ids; empty if there are none.
        frames_per_second: frame rate of overlay videos.
        times: presentation time of each frame in seconds; None for a constant frame rate.
        prompts: boxes and clicks by frame index.
        keypoints: points to track by the index of their first frame.
        max_side: longer side, in pixels, to which frames are downscaled for the model; None for full size.
        direction: one of `DIRECTIONS`: whether objects are tracked to the end of the clip from the first given frame,
            to its start from the last, or each object both ways from the frame where it is first given.
        audio: file with the audio track of overlay videos, or None.
        defect: message about frames missing at the end of the source file, reported after tracking; or None.

    Raises:
        InputError: the clip has no frames, nothing to track, or a mask, prompt or keypoint on a frame it does not have.
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
    direction: str = "forward"
    audio: Path | None = None
    defect: str | None = None

    def __post_init__(self) -> None:
        if not len(self.frames):
            raise InputError(f"{self.name}: the clip has no frames")
        if len(self.frame_names) != len(self.frames):
            raise InputError(
                f"{self.name}: {len(self.frames)} frames, but {len(self.frame_names)} frame names"
            )
        if not (self.given or self.prompts or self.keypoints):
            raise InputError(f"{self.name}: nothing to track; give a mask, a box, a click or a keypoint")
        for inputs in (self.given, self.prompts, self.keypoints):
            for index in inputs:
                if not 0 <= index < len(self.frames):
                    raise InputError(
                        f"{self._source(inputs, index)}: given for frame {index}, but the clip has frames 0 to "
                        f"{len(self.frames) - 1}"
                    )

    @property
    def start(self) -> int:
        """Index of the first frame with a given mask, prompt or keypoint; forward tracking starts there."""
        return min((*self.given, *self.prompts, *self.keypoints))

    def __len__(self) -> int:
        return len(self.frames)

    def warning(self) -> str | None:
        """Names the objects with fewer pixels than a token on the frame where they are first given; or None."""
        small: dict[int, str] = {}
        known: set[int] = {0}
        for index in sorted(self.given):
            mask = self.given[index]
            pixels = dict(zip(*np.unique(mask, return_counts=True), strict=True))
            share = np.prod(reduced_size(mask.shape, self.max_side)) / mask.size
            for object_id in sorted(set(pixels) - known):
                if pixels[object_id] * share < _TOKEN:
                    where = f"on frame {self.frame_names[index]}"
                    if share < 1:
                        where += f", {round(pixels[object_id] * share)} with data.max_side={self.max_side}"
                    small[object_id] = f"object {object_id}: {pixels[object_id]} pixels {where}"
            known |= set(pixels)
        if not small:
            return None
        return f"nearly empty where given, likely to be lost ({'; '.join(small.values())}); give a larger mask or a box"

    def time(self, index: int) -> float:
        """Presentation time of frame `index` in seconds."""
        return index / self.frames_per_second if self.times is None else self.times[index]

    def reduced_frame(self, frame: np.ndarray) -> np.ndarray:
        """The frame downscaled so that its longer side is at most `max_side`."""
        return reduced_frame(frame, self.max_side)

    def reduced_mask(self, mask: np.ndarray) -> np.ndarray:
        """The mask downscaled to the size of `reduced_frame`; no object is lost."""
        return reduced_mask(mask, self.max_side)

    def reduced_points(self, index: int, size: tuple[int, int]) -> list[Keypoint]:
        """Keypoints that start on frame `index`, in pixels of `reduced_frame`; `size` is (height, width) of a frame."""
        scale = self._scale(size)
        return [
            Keypoint(point.name, *_scaled(point.x, point.y, scale)) for point in self.keypoints.get(index, ())
        ]

    def reduced_prompts(self, index: int, size: tuple[int, int]) -> list[ObjectPrompt]:
        """The prompts of frame `index`, in pixels of `reduced_frame`; see `reduced_points`."""
        scale = self._scale(size)
        return [
            replace(
                prompt,
                box=None
                if prompt.box is None
                else tuple(edge * factor for edge, factor in zip(prompt.box, scale * 2, strict=True)),  # type: ignore[arg-type]
                points=tuple(_scaled(x, y, scale) for x, y in prompt.points),
            )
            for prompt in self.prompts.get(index, ())
        ]

    def identity(self) -> str:
        """Hash of the frames, given masks, prompts and keypoints."""
        digest = hashlib.sha256(f"{len(self)} {self.prompts} {self.keypoints}".encode())
        identity = getattr(self.frames, "identity", None)
        content = identity().encode() if identity else np.ascontiguousarray(self.frames[self.start]).tobytes()
        digest.update(content)
        for index in self.given:
            digest.update(index.to_bytes(4, "big") + np.ascontiguousarray(self.given[index]).tobytes())
        return digest.hexdigest()

    def _scale(self, size: tuple[int, int]) -> tuple[float, float]:
        """Horizontal and vertical scale from full size to `reduced_frame`."""
        height, width = reduced_size(size, self.max_side)
        return width / size[1], height / size[0]

    def given_mask(self, index: int, size: tuple[int, int]) -> np.ndarray | None:
        """The given mask of frame `index`, or None.

        Raises:
            InputError: the mask does not have the `size`, (height, width), of the frame.
        """
        return self._mask(self.given, index, size)

    def given_frames(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """The frames whose mask is given, with the mask, downscaled as `reduced_frame`; by frame index.

        Raises:
            InputError: a mask cannot be used with its frame.
        """
        frames = {}
        for index in sorted(self.given):
            frame = self.frames[index]
            mask = self.given_mask(index, frame.shape[:2])
            assert mask is not None
            mask = reduced_mask(mask, self.max_side)
            frames[index] = reduced_frame(frame, self.max_side), mask
        return frames

    def true_mask(self, index: int, size: tuple[int, int]) -> np.ndarray | None:
        """The mask to score frame `index` against, or None; see `given_mask`."""
        return self._mask(self.truth, index, size)

    def _mask(self, masks: Mapping[int, np.ndarray], index: int, size: tuple[int, int]) -> np.ndarray | None:
        if index not in masks:
            return None
        mask = masks[index]
        if mask.shape != size:
            raise InputError(
                f"{self._source(masks, index)}: the mask is {mask.shape[1]} x {mask.shape[0]}, "
                f"but its frame is {size[1]} x {size[0]}; resize the mask"
            )
        return mask

    def _source(self, inputs: Mapping[int, object], index: int) -> str:
        """What error messages call the input of a frame: the mask file, or the clip and the frame."""
        if isinstance(inputs, MaskFiles):
            return str(inputs.paths[index])
        return f"{self.name}, frame {index}"


def _scaled(x: float, y: float, scale: tuple[float, float]) -> tuple[float, float]:
    return (x + 0.5) * scale[0] - 0.5, (y + 0.5) * scale[1] - 0.5  # pixel centres at whole numbers
