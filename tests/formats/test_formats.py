"""Output formats: valid after every frame, and readable by independent libraries."""

from __future__ import annotations

import csv
import json
import os

import av
import cv2
import numpy as np
import pytest
from examples import noise, write_sound, write_video
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from scipy import ndimage

from drift.clip import Clip, Keypoint
from drift.errors import InputError
from drift.formats import FORMATS, SegmentedFrame, make_writers
from drift.formats.coco import CocoWriter
from drift.formats.overlay import OverlayWriter, draw_overlay, draw_points
from drift.formats.tables import BoxTable, ContourTable, KeypointTable, points_by_frame
from drift.image_files import DAVIS_PALETTE
from drift.propagation.keypoints import TrackedPoint


def segmented(index: int, mask: np.ndarray, *, objects=(1, 2), time: float | None = None, points=()):
    frame = np.full((*mask.shape, 3), 20 + 7 * (index % 30), np.uint8)
    time = index / 24 if time is None else time
    return SegmentedFrame(index, f"{index:05d}", time, frame, mask, objects, points)


def two_objects(index: int = 0, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[4:20, 5 + index : 25 + index] = 1
    mask[8:12, 10 + index : 16 + index] = 0  # a hole
    mask[30:44, 40:60] = 2
    return mask


def video_frames(path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


class TestCoco:
    @settings(max_examples=25, deadline=None)
    @given(
        seed=st.integers(0, 2**32 - 1),
        frames=st.integers(1, 6),
        height=st.integers(1, 40),
        width=st.integers(1, 40),
    )
    def test_masks_round_trip_through_pycocotools(self, tmp_path_factory, seed, frames, height, width):
        random = np.random.default_rng(seed)
        masks = random.integers(0, 3, (frames, height, width), dtype=np.uint8)
        path = tmp_path_factory.mktemp("coco") / "clip.json"
        writer = CocoWriter(path, [f"{i:05d}" for i in range(frames)])
        for index, mask in enumerate(masks):
            writer.add(segmented(index, mask))
        writer.close()
        coco = COCO(str(path))
        for index, mask in enumerate(masks):
            (image,) = coco.loadImgs(index + 1)
            assert (image["file_name"], image["width"]) == (f"{index:05d}.png", width)
            found = np.zeros_like(mask)
            for annotation in coco.loadAnns(coco.getAnnIds(imgIds=index + 1)):
                found[coco.annToMask(annotation) > 0] = annotation["track_id"]
                assert annotation["area"] == (mask == annotation["track_id"]).sum()
            assert np.array_equal(found, mask)

    def test_the_json_is_valid_after_every_frame(self, tmp_path):
        path = tmp_path / "clip.json"
        writer = CocoWriter(path, [f'a "quoted" é {i}' for i in range(4)])
        for index in range(3):
            mask = two_objects(index) if index != 1 else np.zeros((48, 64), np.uint8)
            writer.add(segmented(index, mask))
            content = json.loads(path.read_text())
            assert [image["id"] for image in content["images"]] == list(range(1, index + 2))
        assert [annotation["image_id"] for annotation in content["annotations"]] == [1, 1, 3, 3]

    def test_the_cost_per_frame_is_constant(self, tmp_path):
        path = tmp_path / "clip.json"
        writer = CocoWriter(path, [f"{i:05d}" for i in range(2000)])
        writer.add(segmented(0, two_objects()))
        first = path.stat().st_size
        sizes = []
        for index in range(1, 40):
            before = path.stat().st_size
            writer.add(segmented(index, two_objects()))
            sizes.append(path.stat().st_size - before)
        assert max(sizes) - min(sizes) <= 4  # numbers gain digits
        assert first < 400_000

    def test_a_full_disk_keeps_earlier_frames(self, tmp_path, monkeypatch):
        path = tmp_path / "clip.json"
        writer = CocoWriter(path, [f"{i:05d}" for i in range(4)])
        writer.add(segmented(0, two_objects()))
        capacity = path.stat().st_size + 30
        original_pwrite = os.pwrite

        def pwrite(file, content, offset):
            if capacity <= offset:
                raise OSError(28, "No space left on device")
            return original_pwrite(file, content[: capacity - offset], offset)

        monkeypatch.setattr(os, "pwrite", pwrite)
        with pytest.raises(OSError, match="No space left") as raised:
            writer.add(segmented(1, two_objects()))
        assert raised.value.filename == str(path)
        content = json.loads(path.read_text())
        assert [len(content[key]) for key in ("images", "annotations")] == [1, 2]


class TestTables:
    def test_boxes(self, tmp_path):
        table = BoxTable(tmp_path / "boxes" / "clip.csv")
        table.add(segmented(3, two_objects()))
        (first, second) = csv.DictReader(table.path.open())
        assert (first["frame"], first["name"], first["object"]) == ("3", "00003", "1")
        assert [int(first[c]) for c in ("x", "y", "width", "height", "area")] == [5, 4, 20, 16, 296]
        assert [int(second[c]) for c in ("x", "y", "width", "height")] == [40, 30, 20, 14]

    def test_contours_fill_to_the_mask(self, tmp_path):
        mask = two_objects()
        table = ContourTable(tmp_path / "clip.csv")
        table.add(segmented(0, mask))
        found = np.zeros_like(mask)
        rows = list(csv.DictReader(table.path.open()))
        for row in sorted(rows, key=lambda row: int(row["is_hole"])):
            contour = np.array([int(v) for v in row["points"].split()]).reshape(-1, 1, 2)
            if row["is_hole"] == "1":
                inside = cv2.drawContours(np.zeros_like(mask), [contour], -1, 1, -1)
                edge = cv2.drawContours(np.zeros_like(mask), [contour], -1, 1, 1)
                found[(inside > 0) & (edge == 0)] = 0  # the contour of a hole lies on the object
            else:
                cv2.drawContours(found, [contour], -1, int(row["object"]), -1)
        assert np.array_equal(found, mask)

    def test_invisible_objects_have_no_row(self, tmp_path):
        table = BoxTable(tmp_path / "clip.csv")
        table.add(segmented(0, np.zeros((8, 8), np.uint8)))
        assert list(csv.DictReader(table.path.open())) == []

    def test_keypoint_table_resumes_and_rejects_partial_rows(self, tmp_path):
        path = tmp_path / "clip.csv"
        table = KeypointTable(path)
        for index in range(4):
            point = TrackedPoint("a", index, 2, 0.5)
            table.add(segmented(index, two_objects(), points=(point,)))
        lines = path.read_text().splitlines()
        resumed = KeypointTable(path, done=2)
        assert path.read_text().splitlines() == lines[:3]
        resumed.add(segmented(2, two_objects(), points=(TrackedPoint("a", 2, 2, 0.5),)))
        assert path.read_text().splitlines() == lines[:4]
        assert [(frame, points[0].x) for frame, points in points_by_frame(path)] == [(0, 0), (1, 1), (2, 2)]
        path.write_text("\n".join([*lines[:3], "2,000"]))
        with pytest.raises(InputError, match=r"clip\.csv: cannot resume"):
            list(points_by_frame(path))

    def test_keypoint_columns(self, tmp_path):
        table = KeypointTable(tmp_path / "clip.csv")
        table.add(segmented(0, two_objects(), points=(TrackedPoint("nose", 3.25, 7.5, 0.5),)))
        (row,) = csv.DictReader(table.path.open())
        assert (row["point"], row["x"], row["y"], row["confidence"]) == ("nose", "3.25", "7.50", "0.5000")


class TestOverlay:
    def test_objects_are_tinted_and_the_background_is_unchanged(self):
        frame = np.full((60, 80, 3), 100, np.uint8)
        mask = np.zeros((60, 80), np.uint8)
        mask[10:30, 10:40] = 1
        mask[35:55, 50:70] = 2
        drawn = draw_overlay(frame, mask, opacity=0.5)
        around = ndimage.binary_dilation(mask > 0, np.ones((3, 3))) & (mask == 0)
        ground = (mask == 0) & ~around
        assert np.array_equal(drawn[ground], frame[ground])
        assert not drawn[around].any(), "a black line, as the ground may have the colour of an object"
        for object_id, (row, column) in {1: (20, 25), 2: (45, 60)}.items():
            expected = (frame[0, 0].astype(int) + DAVIS_PALETTE[object_id]) / 2
            assert np.abs(drawn[row, column] - expected).max() <= 1
        assert np.array_equal(frame, np.full((60, 80, 3), 100, np.uint8)), "the argument is not modified"

    def test_points_and_trajectories_are_drawn(self):
        black = np.zeros((60, 80, 3), np.uint8)
        drawn = draw_points(black, [[TrackedPoint("a", 20, 30, 1.0)], [TrackedPoint("a", 40, 30, 1.0)]])
        assert drawn[30, 40].max() > 150
        assert drawn[30, 30].max() > 100, "trajectory"
        assert not drawn[30, 60].any()
        assert not black.any()

    @pytest.mark.parametrize("size", [(48, 64), (47, 63)])
    def test_frame_timestamps(self, tmp_path, size):
        times = [0.0, 0.04, 0.1, 0.5, 0.52]
        writer = OverlayWriter(tmp_path / "overlay.mp4")
        for index, time in enumerate(times):
            writer.add(segmented(index, np.zeros(size, np.uint8), time=time))
        writer.close()
        with av.open(str(tmp_path / "overlay.mp4")) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            frames = list(container.decode(stream))
        assert [frame.time for frame in frames] == pytest.approx(times, abs=1e-3)
        assert [round(frame.to_ndarray(format="rgb24").mean()) for frame in frames] == pytest.approx(
            [20 + 7 * i for i in range(5)], abs=2
        )
        assert (frames[0].height, frames[0].width) == (size[0] + size[0] % 2, size[1] + size[1] % 2)

    def test_a_video_that_was_not_closed_is_playable(self, tmp_path):
        writer = OverlayWriter(tmp_path / "overlay.mp4")
        for index in range(60):
            writer.add(segmented(index, two_objects()))
        (tmp_path / "killed.mp4").write_bytes((tmp_path / "overlay.mp4").read_bytes())
        assert len(video_frames(tmp_path / "killed.mp4")) >= 24

    @pytest.mark.parametrize(("codec", "expected"), [("aac", "aac"), ("pcm_s16le", "aac")])
    def test_audio_is_added(self, tmp_path, codec, expected):
        source = write_sound(tmp_path / ("sound.mp4" if codec == "aac" else "sound.mov"), codec, seconds=3)
        writer = OverlayWriter(tmp_path / "overlay.mp4", audio=source)
        for index in range(24):
            writer.add(segmented(index, two_objects()))
        writer.close()
        with av.open(str(tmp_path / "overlay.mp4")) as container:
            assert container.streams.audio[0].codec_context.name == expected
            samples = sum(frame.samples for frame in container.decode(audio=0))
            rate = container.streams.audio[0].codec_context.sample_rate
        assert samples / rate == pytest.approx(1.0, abs=0.1), "cut to the duration of the video"
        assert len(video_frames(tmp_path / "overlay.mp4")) == 24

    def test_audio_is_shifted_by_a_late_video_start(self, tmp_path):
        source = tmp_path / "late.mkv"
        frames = [two_objects()[..., None].repeat(3, 2)] * 24
        with (
            av.open(str(write_sound(tmp_path / "sound.mp4", "aac", seconds=4))) as sound,
            av.open(str(write_video(tmp_path / "v.mp4", frames, options={"bf": "0"}))) as video,
            av.open(str(source), "w") as target,
        ):
            templates = (video.streams.video[0], sound.streams.audio[0])
            streams = [target.add_stream_from_template(template) for template in templates]
            for origin, stream in zip((video, sound), streams, strict=True):
                for packet in origin.demux():
                    if packet.dts is None:
                        continue
                    if origin is video:  # one second later than the audio
                        shift = round(1 / packet.time_base)
                        packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = stream
                    target.mux(packet)
        writer = OverlayWriter(tmp_path / "overlay.mp4", audio=source)
        for index in range(24):
            writer.add(segmented(index, two_objects()))
        writer.close()
        with av.open(str(tmp_path / "overlay.mp4")) as container:
            times = [frame.time for frame in container.decode(audio=0)]
        assert times[0] == pytest.approx(0, abs=0.1)
        assert times[-1] == pytest.approx(1, abs=0.15)


def test_all_formats_of_one_clip(tmp_path):
    frames = [noise(48, 64, 3, seed=i) for i in range(3)]
    clip = Clip(
        "clip",
        frames,
        [f"{i:05d}" for i in range(3)],
        given={0: two_objects()},
        keypoints={0: [Keypoint("a", 3, 4)]},
    )
    writers = make_writers(FORMATS, clip, tmp_path)
    for index, frame in enumerate(frames):
        points = (TrackedPoint("a", 3, 4, 1.0),)
        mask = two_objects(index)
        for writer in writers:
            writer.add(SegmentedFrame(index, f"{index:05d}", index / 24, frame, mask, (1, 2), points))
    for writer in writers:
        writer.close()
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        *(f"masks/clip/{i:05d}.png" for i in range(3)),
        *(f"cutouts/clip/{i:05d}.png" for i in range(3)),
        "cutouts/clip.webm",
        "overlays/clip.mp4",
        "coco/clip.json",
        "boxes/clip.csv",
        "contours/clip.csv",
        "keypoints/clip.csv",
    }
    cutout = np.asarray(Image.open(tmp_path / "cutouts" / "clip" / "00002.png"))
    inside = two_objects(2) > 0
    assert np.array_equal(cutout[..., 3] > 0, inside)
    assert np.array_equal(cutout[inside][:, :3], frames[2][inside])
    with av.open(str(tmp_path / "cutouts" / "clip.webm")) as container:
        stream = container.streams.video[0]
        assert stream.metadata["alpha_mode"] == "1"
        decoder = av.CodecContext.create("libvpx-vp9", "r")  # FFmpeg's native decoder ignores alpha
        packets = [packet for packet in container.demux(stream) if packet.dts is not None]
        decoded = [frame for packet in packets for frame in decoder.decode(packet)]
    alpha = decoded[2].to_ndarray(format="rgba")[..., 3] > 127
    assert (alpha != inside).mean() < 0.02
