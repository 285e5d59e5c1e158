"""Reading video files frame by frame with PyAV: upright, with presentation times, sequentially or by index."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import av
import numpy as np

from drift.errors import InputError
from drift.image_files import MAX_PIXELS

__all__ = ["VideoFrames", "VideoIndex", "index_video"]

# Without formats that read other files or addresses, such as playlists.
_FORMATS = (
    *("mov", "mp4", "matroska", "webm", "gif", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "ivf", "apng"),
    *("h264", "hevc", "m4v", "obu", "mjpeg", "wav", "mp3", "flac", "aac"),
)
_AUDIO_TOLERANCE = 0.5  # seconds by which a container with audio may be longer than its packets


@dataclass(frozen=True)
class VideoIndex:
    """Properties of a video, found by decoding it once.

    Attributes:
        path: of the file.
        pts: presentation timestamp of each frame in units of the stream's time base; -1 if the file has none.
        times: presentation time of each frame in seconds after the first.
        size: (height, width) of all frames, upright.
        frames_per_second: mean frame rate.
        has_audio: whether the file has an audio stream.
        defect: message about frames missing at the end, or None.
    """

    path: Path
    pts: Sequence[int]
    times: Sequence[float]
    size: tuple[int, int]
    frames_per_second: float
    has_audio: bool
    defect: str | None


class VideoFrames(Sequence[np.ndarray]):
    """The frames of a video file; item `t` is `(height, width, 3)` uint8 RGB, upright.

    Iteration decodes each frame once and keeps one in memory. Random access seeks to a key frame. Every iteration and
    access opens the file anew, so that several threads can read. A slice with step 1 is again a `VideoFrames`.

    Args:
        video: see `index_video`.
        part: consecutive frame numbers; None for all.
    """

    def __init__(self, video: VideoIndex, part: range | None = None) -> None:
        self.video = video
        self.part = range(len(video.pts)) if part is None else part

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        if isinstance(number, slice):
            part = self.part[number]
            if part.step != 1:
                raise ValueError(f"a slice of a video must have step 1, not {part.step}")
            return VideoFrames(self.video, part)
        return next(_decode(self.video, self.part[number]))

    def identity(self) -> str:
        """SHA-256 digest of the file."""
        with self.video.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def __iter__(self) -> Iterator[np.ndarray]:
        frames = _decode(self.video, self.part.start) if len(self.part) else iter(())
        for _, frame in zip(self.part, frames, strict=False):
            yield frame


def index_video(path: Path) -> VideoIndex:
    """Decodes a video once to find its timestamps and defects.

    Raises:
        InputError: the file is missing, has no video stream or no frame that can be decoded, or its frames differ in
            size.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with _opened(path) as container:
            if _video_stream(container) is None:
                content = "only audio" if container.streams.audio else "no video"
                raise InputError(f"{path}: contains {content}; use a file with a video stream")
            return _index(path, container)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as a video ({_reason(error)}); check that it is a complete video file"
        ) from None


def _opened(path: Path) -> av.container.InputContainer:
    """Opens a file, and nothing that it refers to."""
    options = {"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "file"}
    return av.open(str(path.absolute()), options=options)  # absolute: a name with a colon is no protocol


def _index(path: Path, container: av.container.InputContainer) -> VideoIndex:
    stream = _video_stream(container)
    assert stream is not None
    stream.thread_type = "AUTO"
    _check_pixels(path, stream.width, stream.height)
    pts, size, defect, end, packets = array("q"), (0, 0), None, 0.0, 0
    try:
        for packet in container.demux():
            if packet.pts is not None and packet.time_base is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream is not stream:
                continue
            packets += packet.size > 0
            for frame in stream.decode(packet):
                if frame.is_corrupt:
                    raise av.error.InvalidDataError(0, "corrupt frame")
                _check_pixels(path, frame.width, frame.height)
                height, width = _upright_size(frame)
                if pts and (height, width) != size:
                    raise InputError(
                        f"{path}: the frame size changes from {size[1]} x {size[0]} to {width} x {height} at "
                        f"frame {len(pts)}; split the video there, or scale it to one size"
                    )
                size = height, width
                pts.append(-1 if frame.pts is None else frame.pts)
    except av.error.FFmpegError as error:
        defect = f"broken after frame {len(pts) - 1} ({_reason(error)})"
    if not pts:
        raise InputError(f"{path}: no frame can be decoded ({defect or 'the file is empty'})")
    if defect is None:
        defect = _truncation(container, stream, packets, end)
    rate = float(stream.average_rate or stream.guessed_rate or 24)
    return VideoIndex(
        path=path,
        pts=pts,
        times=_times(pts, stream.time_base, rate),
        size=size,
        frames_per_second=rate,
        has_audio=bool(container.streams.audio),
        defect=None if defect is None else f"{path}: {defect}; the frames before were processed",
    )


def _check_pixels(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{path}: frames of {width} x {height} pixels, more than {MAX_PIXELS}; scale the video down"
        )


def _truncation(
    container: av.container.InputContainer, stream: av.VideoStream, frames: int, end: float
) -> str | None:
    """Message about a file that is shorter than its header says, such as an incomplete download; or None.

    `frames` is the number of video packets, including hidden frames (edit lists); `end` that of the last, in seconds.
    """
    if container.format.name == "gif" and not _ends_with(container.name, b";"):
        return f"cut off after {frames} frames"
    if stream.frames > frames:
        return f"cut off after {frames} of {stream.frames} frames"
    duration = float((container.duration or 0) / av.time_base)
    tolerance = _AUDIO_TOLERANCE if container.streams.audio else 1.5 / float(stream.average_rate or 24)
    if duration > end + tolerance:
        return f"cut off after {end:.1f} of {duration:.1f} seconds"
    return None


def _video_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The first video stream that can be decoded and is not the cover image of an audio file."""
    cover = av.stream.Disposition.attached_pic
    streams = (stream for stream in container.streams.video if not stream.disposition & cover)
    return next((stream for stream in streams if stream.codec_context is not None), None)


def _ends_with(path: str, suffix: bytes) -> bool:
    with open(path, "rb") as file:
        file.seek(-len(suffix), os.SEEK_END)
        return file.read() == suffix


def _times(pts: Sequence[int], time_base: object, rate: float) -> Sequence[float]:
    """Seconds after the first frame; at a constant frame rate if the timestamps do not increase."""
    increasing = all(earlier < later for earlier, later in pairwise(pts))
    if time_base is None or pts[0] < 0 or not increasing:
        return array("d", (number / rate for number in range(len(pts))))
    return array("d", (float((value - pts[0]) * time_base) for value in pts))  # type: ignore[operator]


def _decode(index: VideoIndex, first: int) -> Iterator[np.ndarray]:
    """Frames from number `first` to the end of the file."""
    with _opened(index.path) as container:
        stream = _video_stream(container)
        assert stream is not None
        pts = index.pts[first]
        start, frames = 0, container.decode(stream)
        if first and pts >= 0:
            container.seek(pts, stream=stream)
            frames = container.decode(stream)
            key_frame = next(frames, None)
            if key_frame is not None and key_frame.pts in index.pts[: first + 1]:
                start = index.pts.index(key_frame.pts)
                frames = chain([key_frame], frames)
            else:  # the file does not support seeking
                container.seek(0)
                frames = container.decode(stream)
        for number, frame in enumerate(frames, start=start):
            if number >= first:
                yield _upright(frame)


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Counterclockwise quarter turns that bring a frame upright."""
    return round(frame.rotation / 90) % 4


def _upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    return (frame.width, frame.height) if _quarter_turns(frame) % 2 else (frame.height, frame.width)


def _upright(frame: av.VideoFrame) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), _quarter_turns(frame)))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
