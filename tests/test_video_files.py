"""Videos as they come: every container, searched and sliced, turned, of uneven rate, cut off, or no video at all."""

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
def test_every_container_gives_all_its_frames(videos, suffix):
    video = index_video(videos[suffix])
    frames = VideoFrames(video)
    assert (len(frames), video.size, video.defect, video.has_audio) == (20, (48, 64), None, False)
    shown = list(frames)
    assert len(shown) == 20
    tolerance = 40 if suffix == ".gif" else 20  # a gif has 256 colours
    for found, true in zip(shown, CLIP.frames, strict=True):
        assert found.dtype == np.uint8
        assert np.abs(found.astype(int) - true).mean() < tolerance


@pytest.mark.parametrize("suffix", CODECS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_frame_and_any_part_is_as_in_going_through(videos, suffix, data):
    frames = VideoFrames(index_video(videos[suffix]))
    whole = list(frames)
    place = data.draw(st.integers(-20, 19))
    assert np.array_equal(frames[place], whole[place])
    first, last = sorted(data.draw(st.tuples(st.integers(0, 20), st.integers(0, 20))))
    part = frames[first:last]
    assert len(part) == last - first
    assert all(np.array_equal(a, b) for a, b in zip(part, whole[first:last], strict=True))


def test_a_rate_that_varies_is_kept(tmp_path):
    times = [0.0, 0.04, 0.08, 0.5, 0.54, 1.2]
    video = index_video(write_video(tmp_path / "clip.mp4", CLIP.frames[:6], times=times))
    assert list(video.times) == pytest.approx(times, abs=2e-3)


@pytest.mark.parametrize(("turns", "size"), [(0, (48, 64)), (1, (64, 48)), (2, (48, 64)), (3, (64, 48))])
def test_a_phones_rotation_is_honoured(tmp_path, turns, size):
    path = write_video(tmp_path / "clip.mp4", CLIP.frames[:3])
    path.write_bytes(turned(path.read_bytes(), turns))
    video = index_video(path)
    assert video.size == size
    expected = np.rot90(CLIP.frames[0], -turns)  # clockwise, as tkhd's matrix has it
    assert np.abs(VideoFrames(video)[0].astype(int) - expected).mean() < 20


def turned(content: bytes, turns: int) -> bytes:
    """An mp4 whose track header says to show it turned clockwise."""
    cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[turns]
    matrix = [cosine, sine, 0, -sine, cosine, 0, 0, 0, 0x4000]
    place = content.index(b"tkhd") + 4 + 40  # version 0: the matrix lies 40 bytes behind the name
    packed = b"".join(struct.pack(">i", value << 16) for value in matrix)
    return content[:place] + packed + content[place + 36 :]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".gif"])
def test_a_file_cut_in_half_gives_what_it_holds_and_says_so(videos, tmp_path, suffix):
    content = videos[suffix].read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(content[: int(len(content) * 0.6)])
    video = index_video(path)
    assert 0 < len(video.stamps) < 20
    assert str(path) in video.defect
    assert len(list(VideoFrames(video))) == len(video.stamps)


def test_a_records_cover_is_no_video(tmp_path):
    path = tmp_path / "song.m4a"
    sound = write_sound(tmp_path / "sound.mp4", "aac", seconds=1)
    with av.open(str(sound)) as heard, av.open(str(path), "w", format="mp4") as out:
        tone = out.add_stream_from_template(heard.streams.audio[0])
        cover = out.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        out.mux(cover.encode(av.VideoFrame.from_ndarray(CLIP.frames[0], format="rgb24")))
        out.mux(cover.encode())
        for packet in heard.demux():
            if packet.dts is not None:
                packet.stream = tone
                out.mux(packet)
    with pytest.raises(InputError, match="sound alone"):
        index_video(path)


def test_files_that_are_no_videos_are_named(tmp_path, videos):
    text = tmp_path / "clip.mp4"
    text.write_text("no video")
    sound = write_sound(tmp_path / "sound.mp4", "aac", seconds=1)
    headless = tmp_path / "cut.mov"  # its list of frames lay at its end
    headless.write_bytes(videos[".mov"].read_bytes()[:2000])
    for path, said in ((text, "is it one"), (sound, "sound alone"), (headless, "is it whole")):
        with pytest.raises(InputError, match=said) as raised:
            index_video(path)
        assert str(path) in str(raised.value)
    with pytest.raises(InputError, match="no such file"):
        index_video(tmp_path / "none.mp4")


def test_frames_that_change_size_are_told_with_their_place(tmp_path):
    large = [np.kron(frame, np.ones((2, 2, 1), np.uint8)) for frame in CLIP.frames[:4]]
    parts = [raw_h264(tmp_path / f"{n}.h264", frames) for n, frames in enumerate((CLIP.frames[:4], large))]
    path = tmp_path / "joined.h264"
    path.write_bytes(b"".join(parts))
    with pytest.raises(InputError, match=r"change size, from 64 x 48 to 128 x 96 at frame 4"):
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
