"""Encoding a video frame by frame, each with its own time, and the sound of another file beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

__all__ = ["VideoEncoder", "with_audio"]

_TICKS = 90_000  # a second: what video clocks usually count
_COPIED = {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"}  # sounds that an mp4 may hold as they are


class VideoEncoder:
    """A video of which everything encoded so far can be played, whatever ends the run.

    Args:
        path: of the file; its suffix says the container.
        codec, pixels, options: FFmpeg's names for them.
        container_options: likewise, of the container.
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
        # Packets are on the disk as soon as they are made, not when some buffer is full.
        self._container_options = {"flush_packets": "1", **(container_options or {})}
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None

    def add(self, picture: np.ndarray, time: float) -> None:
        """Appends a picture. Odd sides gain a row or a column, which most codecs need.

        Args:
            picture: `(height, width, 3)` RGB or `(height, width, 4)` RGBA, uint8; all of one size.
            time: when it is shown, in seconds; later than the one before.
        """
        height, width, channels = picture.shape
        if height % 2 or width % 2:
            picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._container is None:
            self._open(picture.shape[1], picture.shape[0])
        assert self._container is not None
        assert self._stream is not None
        frame = av.VideoFrame.from_ndarray(
            np.ascontiguousarray(picture), format="rgba" if channels == 4 else "rgb24"
        )
        frame.pts, frame.time_base = round(time * _TICKS), Fraction(1, _TICKS)
        with _named(self.path):
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Ends the file."""
        if self._container is None or self._stream is None:
            return
        container, self._container = self._container, None
        with _named(self.path):
            try:
                container.mux(self._stream.encode())
            finally:
                container.close()

    def _open(self, width: int, height: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _named(self.path):
            self._container = av.open(str(self.path), mode="w", options=self._container_options)
        stream = self._container.add_stream(self._codec)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = width, height
        stream.pix_fmt = self._pixels
        stream.time_base = stream.codec_context.time_base = Fraction(1, _TICKS)
        # One thread: the encoder runs beside the model, which needs the cores more.
        stream.options = {**self._options, "threads": "1"}
        self._stream = stream


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Within it, FFmpeg's errors become the system's, with the file's name."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def with_audio(video: Path, audio: Path | None) -> None:
    """Makes an mp4 that can be searched of one in fragments, with the sound of `audio`; encodes no picture anew.

    Args:
        video: an mp4, replaced when the new one is whole.
        audio: any file with sound, or None for none. Of its sound as much is taken as the video is long.
    """
    partial = video.with_name(f".{video.stem}.partial{video.suffix}")
    with av.open(str(video)) as shown, av.open(str(partial), "w", options={"movflags": "+faststart"}) as out:
        pictures = shown.streams.video[0]
        target = out.add_stream_from_template(pictures)
        heard = None if audio is None else av.open(str(audio))
        try:
            sound = _Sound(heard, out) if heard is not None and heard.streams.audio else None
            end = 0.0
            for packet in shown.demux(pictures):
                if packet.dts is None:
                    continue
                if packet.pts is not None and packet.time_base is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                packet.stream = target
                out.mux(packet)
            if sound is not None:
                sound.copy(until=end)
        finally:
            if heard is not None:
                heard.close()
    os.replace(partial, video)


class _Sound:
    """The first sound of a file on its way into an mp4: as it is where an mp4 may hold it, else as AAC."""

    def __init__(self, source: av.container.InputContainer, out: av.container.OutputContainer) -> None:
        self._source, self._out = source, out
        self._from = source.streams.audio[0]
        # Pictures begin at 0 in the new file, whenever they begin in theirs; the sound goes with them.
        self._start = next((_begin(one) for one in source.streams.video), 0.0)
        self._copied = self._from.codec_context.name in _COPIED
        if self._copied:
            self._to = out.add_stream_from_template(self._from)
        else:
            self._to = out.add_stream("aac", rate=self._from.codec_context.sample_rate)

    def copy(self, *, until: float) -> None:
        """Takes what is heard before `until` seconds."""
        for packet in self._source.demux(self._from):
            if packet.dts is None or packet.pts is None or packet.time_base is None:
                continue
            at = float(packet.pts * packet.time_base) - self._start
            if at >= until:
                break
            if at < 0:
                continue
            if self._copied:
                shift = round(self._start / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = self._to
                self._out.mux(packet)
            else:
                for frame in self._from.decode(packet):
                    if frame.pts is not None and frame.time_base is not None:
                        frame.pts -= round(self._start / frame.time_base)
                    self._out.mux(self._to.encode(frame))
        if not self._copied:
            self._out.mux(self._to.encode())


def _begin(stream: av.VideoStream) -> float:
    """When a stream's first picture is shown, in seconds."""
    tick = stream.time_base
    return 0.0 if stream.start_time is None or tick is None else float(stream.start_time * tick)
