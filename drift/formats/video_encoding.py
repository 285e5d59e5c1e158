"""Video encoding frame by frame with explicit timestamps, and muxing of an audio track."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from drift.formats.writer import atomic_path

__all__ = ["VideoEncoder", "with_audio"]

_TICKS = 90_000  # per second, the usual time base of video
_COPIED = {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"}  # audio codecs that MP4 supports


class VideoEncoder:
    """Encodes a video; the frames added so far stay playable if the process is killed.

    Args:
        path: path of the file; its suffix selects the container.
        codec: FFmpeg encoder, e.g. `libx264`.
        pixels: FFmpeg pixel format, e.g. `yuv420p`.
        options: FFmpeg options of the encoder.
        container_options: FFmpeg options of the container.
    """

    def __init__(
        self,
        path: Path,
        *,
        codec: str,
        pixels: str,
        options: Mapping[str, str],
        container_options: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self._codec, self._pixels, self._options = codec, pixels, dict(options)
        # Writes every packet to disk immediately.
        self._container_options = {"flush_packets": "1", **(container_options or {})}
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None

    def add(self, image: np.ndarray, time: float) -> None:
        """Appends a frame. Odd sizes are padded by one row or column, as most codecs require even sizes.

        Args:
            image: `(height, width, 3)` RGB or `(height, width, 4)` RGBA, uint8; the same size for all frames.
            time: presentation time in seconds, strictly increasing.
        """
        height, width, channels = image.shape
        if height % 2 or width % 2:
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._container is None:
            self._open(image.shape[1], image.shape[0])
        assert self._container is not None
        assert self._stream is not None
        image = np.ascontiguousarray(image)
        frame = av.VideoFrame.from_ndarray(image, format="rgba" if channels == 4 else "rgb24")
        frame.pts, frame.time_base = round(time * _TICKS), Fraction(1, _TICKS)
        with _os_errors(self.path):
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Flushes the encoder and closes the file."""
        if self._container is None or self._stream is None:
            return
        container, self._container = self._container, None
        with _os_errors(self.path):
            try:
                container.mux(self._stream.encode())
            finally:
                container.close()

    def _open(self, width: int, height: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _os_errors(self.path):
            self._container = av.open(str(self.path), mode="w", options=self._container_options)
        stream = self._container.add_stream(self._codec)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = width, height
        stream.pix_fmt = self._pixels
        stream.time_base = stream.codec_context.time_base = Fraction(1, _TICKS)
        # One thread: the encoder runs concurrently with the model and must not compete for its cores.
        stream.options = {**self._options, "threads": "1"}
        self._stream = stream


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    """Converts FFmpeg errors to `OSError` with the file name."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def with_audio(video: Path, audio: Path | None) -> None:
    """Remuxes a fragmented MP4 to a seekable one with the audio track of `audio`, without re-encoding the video.

    Args:
        video: path of the MP4 file, replaced atomically.
        audio: file with an audio track, cut to the duration of the video; None for a video without audio.
    """
    with ExitStack() as stack:
        partial = stack.enter_context(atomic_path(video))
        source = stack.enter_context(av.open(str(video)))
        target = stack.enter_context(av.open(str(partial), "w", options={"movflags": "+faststart"}))
        source_stream = source.streams.video[0]
        target_stream = target.add_stream_from_template(source_stream)
        sound = None if audio is None else stack.enter_context(av.open(str(audio)))
        track = _AudioTrack(sound, target) if sound is not None and sound.streams.audio else None
        end = 0.0
        for packet in source.demux(source_stream):
            if packet.dts is None:
                continue
            if packet.pts is not None and packet.time_base is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            packet.stream = target_stream
            target.mux(packet)
        if track is not None:
            track.copy(until=end)


class _AudioTrack:
    """Copies the first audio stream of `source` to an MP4; codecs that MP4 does not support become AAC."""

    def __init__(self, source: av.container.InputContainer, target: av.container.OutputContainer) -> None:
        self._source, self._target = source, target
        self._from = source.streams.audio[0]
        # The video of the target starts at 0, so audio is shifted by the start time of the source's video.
        self._start = next((_start_time(stream) for stream in source.streams.video), 0.0)
        self._copied = self._from.codec_context.name in _COPIED
        if self._copied:
            self._to = target.add_stream_from_template(self._from)
        else:
            self._to = target.add_stream("aac", rate=self._from.codec_context.sample_rate)

    def copy(self, *, until: float) -> None:
        """Copies all packets before `until` seconds."""
        for packet in self._source.demux(self._from):
            if packet.dts is None or packet.pts is None or packet.time_base is None:
                continue
            time = float(packet.pts * packet.time_base) - self._start
            if time >= until:
                break
            if time < 0:
                continue
            if self._copied:
                shift = round(self._start / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = self._to
                self._target.mux(packet)
            else:
                for frame in self._from.decode(packet):
                    if frame.pts is not None and frame.time_base is not None:
                        frame.pts -= round(self._start / frame.time_base)
                    self._target.mux(self._to.encode(frame))
        if not self._copied:
            self._target.mux(self._to.encode())


def _start_time(stream: av.VideoStream) -> float:
    """Presentation time of a stream's first frame, in seconds."""
    time_base = stream.time_base
    return 0.0 if stream.start_time is None or time_base is None else float(stream.start_time * time_base)
