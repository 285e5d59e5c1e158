"""`FrameSource`: frames of a video file or of a folder of images, with their metadata."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from drift.clip import Clip, FrameFiles
from drift.errors import InputError
from drift.image_files import read_frame
from drift.video_files import VideoFrames, index_video

__all__ = ["FrameSource", "frames_in", "open_frames"]

_FRAME_SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclass(frozen=True)
class FrameSource:
    """Frames on disk.

    Attributes:
        frames, frame_names, frames_per_second, times, audio, defect: see `Clip`.
        size: (height, width) of the first frame in pixels.
    """

    frames: Sequence[np.ndarray]
    frame_names: Sequence[str]
    size: tuple[int, int]
    frames_per_second: float
    times: Sequence[float] | None = None
    audio: Path | None = None
    defect: str | None = None

    def clip(self, name: str, **inputs: Any) -> Clip:
        """A clip of these frames; `inputs` are the other arguments of `Clip`."""
        return Clip(
            name=name,
            frames=self.frames,
            frame_names=self.frame_names,
            frames_per_second=self.frames_per_second,
            times=self.times,
            audio=self.audio,
            defect=self.defect,
            **inputs,
        )


def open_frames(path: Path, *, frames_per_second: float = 24.0) -> FrameSource:
    """Opens a video file, which is decoded once to validate it, or a folder of images.

    Args:
        path: file or folder.
        frames_per_second: frame rate of a folder; a video file has its own.

    Raises:
        InputError: no frame can be read.
    """
    if path.is_dir():
        files = frames_in(path)
        names = [file.stem for file in files]
        return FrameSource(FrameFiles(files), names, read_frame(files[0]).shape[:2], frames_per_second)
    if path.suffix.lower() in _FRAME_SUFFIXES and path.is_file():
        raise InputError(f"{path}: an image, not a video; give the folder of the images")
    index = index_video(path)
    frames = VideoFrames(index)
    return FrameSource(
        frames,
        [f"{number:05d}" for number in range(len(frames))],
        index.size,
        index.frames_per_second,
        times=index.times,
        audio=path if index.has_audio else None,
        defect=index.defect,
    )


def frames_in(folder: Path) -> list[Path]:
    """Image files of a sequence in natural order ("frame2" before "frame10").

    Raises:
        InputError: the folder is missing or contains no image, or two images have the same stem.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of frames")
    frames = sorted(
        (path for path in folder.iterdir() if path.suffix.lower() in _FRAME_SUFFIXES and path.name[0] != "."),
        key=_natural_key,
    )
    if not frames:
        raise InputError(f"{folder}: contains no .jpg or .png frame")
    for frame, following in pairwise(frames):
        if frame.stem == following.stem:
            raise InputError(
                f"{frame}: same frame name as {following.name}; move masks to a folder of their own"
            )
    return frames


def _natural_key(path: Path) -> tuple[list[tuple[int, str]], str]:
    parts = re.split(r"(\d+)", path.stem)
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts], path.name
