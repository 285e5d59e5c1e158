"""Video files: every container, random access, rotation, variable frame rate, and broken or truncated files."""

from __future__ import annotations

import struct

import av
import numpy as np
import pytest
from examples import CODECS, moving_square, write_sound, write_video
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drift.errors import InputError
from drift.video_files import VideoFrames, index_video

CLIP = moving_square(20)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {suffix: write_video(folder / f"clip{suffix}", CLIP.frames) for suffix in CODECS}


@pytest.mark.parametrize("suffix", CODECS)
def test_every_container_yields_all_frames(videos, suffix):
    video = index_video(videos[suffix])
    frames = VideoFrames(video)
    assert (len(frames), video.size, video.defect, video.has_audio) == (20, (48, 64), None, False)
    decoded = list(frames)
    assert len(decoded) == 20
    tolerance = 40 if suffix == ".gif" else 20  # GIF has 256 colours
    for frame, expected in zip(decoded, CLIP.frames, strict=True):
        assert frame.dtype == np.uint8
        assert np.abs(frame.astype(int) - expected).mean() < tolerance


@pytest.mark.parametrize("suffix", CODECS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_access_and_slices_equal_iteration(videos, suffix, data):
    frames = VideoFrames(index_video(videos[suffix]))
    decoded = list(frames)
    number = data.draw(st.integers(-20, 19))
    assert np.array_equal(frames[number], decoded[number])
    first, last = sorted(data.draw(st.tuples(st.integers(0, 20), st.integers(0, 20))))
    part = frames[first:last]
    assert len(part) == last - first
    assert all(np.array_equal(a, b) for a, b in zip(part, decoded[first:last], strict=True))


def test_a_variable_frame_rate_is_kept(tmp_path):
    times = [0.0, 0.04, 0.08, 0.5, 0.54, 1.2]
    video = index_video(write_video(tmp_path / "clip.mp4", CLIP.frames[:6], times=times))
    assert list(video.times) == pytest.approx(times, abs=2e-3)


@pytest.mark.parametrize(("turns", "size"), [(0, (48, 64)), (1, (64, 48)), (2, (48, 64)), (3, (64, 48))])
def test_frames_are_rotated_upright(tmp_path, turns, size):
    path = write_video(tmp_path / "clip.mp4", CLIP.frames[:3])
    path.write_bytes(rotated(path.read_bytes(), turns))
    video = index_video(path)
    assert video.size == size
    expected = np.rot90(CLIP.frames[0], -turns)  # clockwise, like the matrix in tkhd
    assert np.abs(VideoFrames(video)[0].astype(int) - expected).mean() < 20


def rotated(content: bytes, turns: int) -> bytes:
    """An mp4 whose track header requests clockwise quarter turns."""
    cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[turns]
    matrix = [cosine, sine, 0, -sine, cosine, 0, 0, 0, 0x4000]
    offset = content.index(b"tkhd") + 4 + 40  # version 0: the matrix starts 40 bytes after the name
    packed = b"".join(struct.pack(">i", value << 16) for value in matrix)
    return content[:offset] + packed + content[offset + 36 :]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".gif"])
def test_a_truncated_file_yields_its_frames_and_a_defect(videos, tmp_path, suffix):
    content = videos[suffix].read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(content[: int(len(content) * 0.6)])
    video = index_video(path)
    assert 0 < len(video.pts) < 20
    assert str(path) in video.defect
    assert len(list(VideoFrames(video))) == len(video.pts)


def test_the_cover_image_of_an_audio_file_is_not_a_video(tmp_path):
    path = tmp_path / "song.m4a"
    sound = write_sound(tmp_path / "sound.mp4", "aac", seconds=1)
    with av.open(str(sound)) as source, av.open(str(path), "w", format="mp4") as out:
        audio = out.add_stream_from_template(source.streams.audio[0])
        cover = out.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        out.mux(cover.encode(av.VideoFrame.from_ndarray(CLIP.frames[0], format="rgb24")))
        out.mux(cover.encode())
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = audio
                out.mux(packet)
    with pytest.raises(InputError, match="contains only audio"):
        index_video(path)


def test_files_that_are_not_videos_are_errors(tmp_path, videos):
    text = tmp_path / "clip.mp4"
    text.write_text("not a video")
    sound = write_sound(tmp_path / "sound.mp4", "aac", seconds=1)
    headless = tmp_path / "cut.mov"  # the index of a mov is at its end
    headless.write_bytes(videos[".mov"].read_bytes()[:2000])
    for path, message in (
        (text, "complete video file"),
        (sound, "contains only audio"),
        (headless, "complete video file"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            index_video(path)
        assert str(path) in str(raised.value)
    with pytest.raises(InputError, match="no such file"):
        index_video(tmp_path / "none.mp4")


def test_a_change_of_frame_size_is_an_error(tmp_path):
    large = [np.kron(frame, np.ones((2, 2, 1), np.uint8)) for frame in CLIP.frames[:4]]
    parts = [raw_h264(tmp_path / f"{n}.h264", frames) for n, frames in enumerate((CLIP.frames[:4], large))]
    path = tmp_path / "joined.h264"
    path.write_bytes(b"".join(parts))
    with pytest.raises(InputError, match=r"frame size changes from 64 x 48 to 128 x 96 at frame 4"):
        index_video(path)


def raw_h264(path, frames) -> bytes:
    with av.open(str(path), "w", format="h264") as out:
        stream = out.add_stream("libx264", rate=24)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    return path.read_bytes()
