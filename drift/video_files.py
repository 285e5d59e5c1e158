"""Reading videos frame by frame through PyAV: whole, in parts, turned upright, with each frame's own time."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

from drift.errors import InputError

__all__ = ["VideoFrames", "VideoIndex", "index_video"]

_SLACK = 0.5  # seconds by which sound may make a container longer than its last packet says


@dataclass(frozen=True)
class VideoIndex:
    """What going through a video once has found.

    Attributes:
        path: of the file.
        stamps: each frame's presentation time in ticks of the file, as it says; -1 where it says none.
        times: when each frame is shown, in seconds from the first one.
        size: height and width of all frames, upright.
        frames_per_second: the mean rate.
        has_audio: whether there is sound.
        defect: why frames are missing at the end, or None.
    """

    path: Path
    stamps: Sequence[int]
    times: Sequence[float]
    size: tuple[int, int]
    frames_per_second: float
    has_audio: bool
    defect: str | None


class VideoFrames(Sequence[np.ndarray]):
    """The frames of a video: item `t` is `(height, width, 3)` uint8 RGB, upright.

    Iterating decodes each frame once and holds one; a slice is again such a sequence. Every iteration and every
    access opens the file for itself, so that several threads may read.

    Args:
        video: what going through it once has found.
        part: which of its frames, consecutive ones; None for all.
    """

    def __init__(self, video: VideoIndex, part: range | None = None) -> None:
        self.video = video
        self.part = range(len(video.stamps)) if part is None else part

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, place):  # type: ignore[no-untyped-def]
        if isinstance(place, slice):
            part = self.part[place]
            if part.step != 1:
                raise ValueError("a part of a video holds consecutive frames")
            return VideoFrames(self.video, part)
        return next(_decoded(self.video, self.part[place]))

    def identity(self) -> str:
        """What tells the video from others: its content."""
        with self.video.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def __iter__(self) -> Iterator[np.ndarray]:
        frames = _decoded(self.video, self.part.start) if len(self.part) else iter(())
        for _, frame in zip(self.part, frames, strict=False):
            yield frame


def index_video(path: Path) -> VideoIndex:
    """Goes through a video once, so that what is wrong with it is known before the work begins.

    Raises:
        InputError: it is missing, is no video, has no picture, or its frames change size; names the file.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with av.open(str(path)) as container:
            if _pictures(container) is None:
                what = "holds sound alone" if container.streams.audio else "holds no video"
                raise InputError(f"{path}: {what}; give a file with pictures")
            return _indexed(path, container)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as a video ({_reason(error)}); is it whole, and is it one?"
        ) from None


def _indexed(path: Path, container: av.container.InputContainer) -> VideoIndex:
    stream = _pictures(container)
    assert stream is not None
    stream.thread_type = "AUTO"
    stamps, size, defect, end, packets = array("q"), (0, 0), None, 0.0, 0
    try:
        for packet in container.demux():
            if packet.pts is not None and packet.time_base is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is not stream:
                continue
            packets += packet.size > 0
            for frame in stream.decode(packet):
                if frame.is_corrupt:
                    raise av.error.InvalidDataError(0, "a broken frame")
                seen = _upright_size(frame)
                if stamps and seen != size:
                    raise InputError(
                        f"{path}: its frames change size, from {size[1]} x {size[0]} to {seen[1]} x {seen[0]} at "
                        f"frame {len(stamps)}; cut it there, or scale it to one size"
                    )
                size = seen
                stamps.append(-1 if frame.pts is None else frame.pts)
    except av.error.FFmpegError as error:
        defect = f"broken after frame {len(stamps) - 1} ({_reason(error)})"
    if not stamps:
        raise InputError(f"{path}: no frame of it can be decoded ({defect or 'it is empty'})")
    if defect is None:
        defect = _missing(container, stream, packets, end)
    rate = float(stream.average_rate or stream.guessed_rate or 24)
    return VideoIndex(
        path=path,
        stamps=stamps,
        times=_times(stamps, stream.time_base, rate),
        size=size,
        frames_per_second=rate,
        has_audio=bool(container.streams.audio),
        defect=None if defect is None else f"{path}: {defect}; the frames before are done",
    )


def _missing(
    container: av.container.InputContainer, stream: av.VideoStream, frames: int, end: float
) -> str | None:
    """Whether the file promises more than it holds: what is left of a transfer that broke off.

    Args:
        container, stream: of the file.
        frames: how many were there, those that an edit list hides among them.
        end: in the file's own time, of what was there.
    """
    if container.format.name == "gif" and not _ends_with(container.name, b";"):
        return f"cut off: {frames} frames are there"
    if stream.frames > frames:
        return f"cut off: {frames} of {stream.frames} frames are there"
    promised = float((container.duration or 0) / av.time_base)
    slack = _SLACK if container.streams.audio else 1.5 / float(stream.average_rate or 24)
    if promised > end + slack:
        return f"cut off: {end:.1f} of {promised:.1f} seconds are there"
    return None


def _pictures(container: av.container.InputContainer) -> av.VideoStream | None:
    """The stream of the video; the cover of a record is none."""
    covers = av.stream.Disposition.attached_pic
    return next((one for one in container.streams.video if not one.disposition & covers), None)


def _ends_with(path: str, tail: bytes) -> bool:
    with open(path, "rb") as file:
        file.seek(-len(tail), os.SEEK_END)
        return file.read() == tail


def _times(stamps: Sequence[int], tick: object, rate: float) -> Sequence[float]:
    """Seconds from the first frame; even steps where the file's own times do not grow."""
    grow = all(earlier < later for earlier, later in pairwise(stamps))
    if tick is None or stamps[0] < 0 or not grow:
        return array("d", (place / rate for place in range(len(stamps))))
    return array("d", (float((stamp - stamps[0]) * tick) for stamp in stamps))  # type: ignore[operator]


def _decoded(index: VideoIndex, first: int) -> Iterator[np.ndarray]:
    """The frames from `first` on; the last one is that of the index, whatever the file holds beyond."""
    with av.open(str(index.path)) as container:
        stream = _pictures(container)
        assert stream is not None
        stamp = index.stamps[first]
        at, frames = 0, container.decode(stream)
        if first and stamp >= 0:
            container.seek(stamp, stream=stream)
            frames = container.decode(stream)
            head = next(frames, None)
            if head is not None and head.pts in index.stamps[: first + 1]:
                at = index.stamps.index(head.pts)
                frames = _chain(head, frames)
            else:  # a file that cannot be searched
                container.seek(0)
                frames = container.decode(stream)
        for place, frame in enumerate(frames, start=at):
            if place >= first:
                yield _upright(frame)


def _chain(head: av.VideoFrame, rest: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    yield head
    yield from rest


def _turns(frame: av.VideoFrame) -> int:
    """Quarter turns, counterclockwise, that set a frame upright."""
    return round(frame.rotation / 90) % 4


def _upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    return (frame.width, frame.height) if _turns(frame) % 2 else (frame.height, frame.width)


def _upright(frame: av.VideoFrame) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), _turns(frame)))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
