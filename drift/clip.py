"""`Clip`: the one type that crosses from the data to the model.

Frames and masks are decoded when they are asked for, one at a time: no step holds a whole clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from drift.errors import InputError
from drift.image_files import read_frame, read_mask

__all__ = ["Clip", "FrameFiles", "MaskFiles"]


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


class MaskFiles(Mapping[int, np.ndarray]):
    """Masks in files, by frame index: `(height, width)` uint8 object ids, decoded at each access."""

    def __init__(self, paths: Mapping[int, Path], *, binary: bool = False) -> None:
        self.paths = dict(sorted(paths.items()))
        self.binary = binary

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[int]:
        return iter(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return read_mask(self.paths[index], binary=self.binary)


@dataclass(frozen=True)
class Clip:
    """A video and what is known of its objects.

    Attributes:
        name: the sequence's name, also that of its output folder.
        frames: `(height, width, 3)` uint8 RGB, one per time step.
        frame_names: one per frame, without suffix ("00000"); outputs are named after them.
        given: frame index -> mask that the tracker may see, `(height, width)` uint8 object ids.
        truth: frame index -> mask to score against, likewise; empty where nothing is scored.
        frames_per_second: the rate at which an overlay is played.

    Raises:
        InputError: the clip has no frame, or no mask is given for its first frame.
    """

    name: str
    frames: Sequence[np.ndarray]
    frame_names: Sequence[str]
    given: Mapping[int, np.ndarray]
    truth: Mapping[int, np.ndarray] = field(default_factory=dict)
    frames_per_second: float = 24.0

    def __post_init__(self) -> None:
        if not len(self.frames):
            raise InputError(f"{self.name}: the clip has no frame")
        if len(self.frame_names) != len(self.frames):
            raise InputError(f"{self.name}: {len(self.frames)} frames, but {len(self.frame_names)} names")
        if 0 not in self.given:
            raise InputError(f"{self.name}: no mask is given for the first frame ({self.frame_names[0]})")

    def __len__(self) -> int:
        return len(self.frames)

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
