"""One's own clip from the command line: every way in, every way out, stopped and gone on with."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from examples import few_steps, moving_square, replaced, write_davis, write_sound, write_video
from PIL import Image
from pycocotools.coco import COCO

import evaluate
from drift.command_line import run
from drift.image_files import read_mask, write_mask

CLIP = moving_square(12, size=(64, 96))
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    write_video(folder / "clip.mp4", CLIP.frames)
    write_mask(folder / "mask.png", CLIP.truth[0])
    return folder


def words(checkpoint, own, out, *overrides: str) -> list[str]:
    defaults = [
        "data=video",
        f"data.path={own / 'clip.mp4'}",
        f"backbone.checkpoint={checkpoint}",
        "backbone.layers=[up_blocks.2.attentions.0]",
        "logger=none",
        "refinement=none",
        f"output.dir={out}",
    ]
    return few_steps(replaced(defaults, overrides))


@pytest.fixture
def command(checkpoint, own, tmp_path, monkeypatch, capsys):
    def call(*overrides: str, out: str = "out", own_clip: bool = True) -> tuple[int, str, str]:
        arguments = words(checkpoint, own, tmp_path / out, *overrides)
        arguments = (
            arguments if own_clip else [word for word in arguments if not word.startswith("data.path=")]
        )
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
        status = run(evaluate.evaluate, config_dir=evaluate.CONFIGS, config_name="evaluate")
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


def masks(folder: Path) -> list[np.ndarray]:
    return [read_mask(path) for path in sorted(folder.glob("*.png"))]


def test_a_video_and_a_mask_give_masks_and_an_overlay(command, own, tmp_path):
    status, printed, errors = command(f"data.mask={own / 'mask.png'}")
    assert (status, errors) == (0, "")
    assert "12 frames" in printed
    assert "scored" not in printed, "nobody asked"
    out = tmp_path / "out"
    found = masks(out / "masks" / "clip")
    assert len(found) == 12
    assert np.array_equal(found[0], CLIP.truth[0])
    with av.open(str(out / "overlays" / "clip.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 12
    assert json.loads((out / "results.json").read_text())["J&F"] is None


def test_a_box_is_made_a_mask_and_shown(command, tmp_path):
    status, _, errors = command("data.box=[6,14,26,34]", "refinement=grabcut")
    assert (status, errors) == (0, "")
    shown = np.asarray(Image.open(tmp_path / "out" / "shown" / "clip.png"))
    assert shown.shape == (64, 96, 3)
    first = masks(tmp_path / "out" / "masks" / "clip")[0] > 0
    assert (first & (CLIP.truth[0] > 0)).sum() / (first | (CLIP.truth[0] > 0)).sum() > 0.8


def test_a_box_without_a_refinement_is_refused(command):
    status, _, errors = command("data.box=[6,14,26,34]")
    assert status == 2
    assert "refinement=sam_tiny" in errors


def test_masks_from_a_later_frame_on(command, own, tmp_path):
    write_mask(tmp_path / "later.png", CLIP.truth[4])
    status, _, errors = command(f"data.masks={{4: {tmp_path / 'later.png'}}}")
    assert (status, errors) == (0, "")
    found = masks(tmp_path / "out" / "masks" / "clip")
    assert not any(mask.any() for mask in found[:4])
    assert np.array_equal(found[4], CLIP.truth[4])


def test_a_nearly_empty_object_is_warned_of_with_its_frame_and_pixels(command, tmp_path):
    mask = CLIP.truth[0].copy()
    mask[60, 40:43] = 2
    write_mask(tmp_path / "mask.png", mask)
    status, printed, errors = command(f"data.mask={tmp_path / 'mask.png'}", "output.report=true")
    assert (status, errors) == (0, "")
    warning = json.loads((tmp_path / "out" / "results.json").read_text())["sequences"]["clip"]["warning"]
    assert "object 2: 3 pixels on frame 00000" in warning
    assert "object 1" not in warning
    assert f"warning: clip: {warning}" in " ".join(printed.split())
    assert "3 pixels on frame 00000" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(("max_side", "few"), [(None, False), (96, False), (24, True)])
def test_pixels_of_an_object_are_counted_as_the_model_sees_them(max_side, few):
    clip = replace(CLIP, max_side=max_side)
    said = f"object 1: 256 pixels on frame 00000, 16 with data.max_side={max_side}"
    assert (said in (clip.warning() or "")) is few
    later = {0: CLIP.truth[0], 3: np.pad([[1]], ((0, 63), (0, 95))).astype(np.uint8)}
    assert replace(CLIP, given=later).warning() is None, "only where an object is first given"


def test_larger_frames_are_reduced_and_masks_are_not(command, own, tmp_path):
    status, _, errors = command(f"data.mask={own / 'mask.png'}", "data.max_side=48")
    assert (status, errors) == (0, "")
    found = masks(tmp_path / "out" / "masks" / "clip")
    assert {mask.shape for mask in found} == {(64, 96)}
    assert np.array_equal(found[0], CLIP.truth[0]), "what was given comes back to the pixel"


def test_keypoints_alone(command, tmp_path):
    (tmp_path / "points.csv").write_text("point,x,y\nleft,10,20\nright,20,28\n")
    status, _, errors = command(f"data.keypoints={tmp_path / 'points.csv'}", "output.formats=[overlay]")
    assert (status, errors) == (0, "")
    rows = list(csv.DictReader((tmp_path / "out" / "keypoints" / "clip.csv").open()))
    assert [row["point"] for row in rows] == ["left", "right"] * 12
    assert float(rows[0]["x"]) == pytest.approx(10, abs=8), "to the token, of 16 pixels"
    assert not (tmp_path / "out" / "masks").exists()


def test_every_format_at_once_with_the_clips_sound(command, own, tmp_path):
    with_sound(own / "clip.mp4", tmp_path / "loud.mp4")
    formats = "output.formats=[masks,overlay,cutout_png,cutout_webm,coco,boxes,contours]"
    status, _, errors = command(
        f"data.path={tmp_path / 'loud.mp4'}", f"data.mask={own / 'mask.png'}", formats
    )
    assert (status, errors) == (0, "")
    out = tmp_path / "out"
    coco = COCO(str(out / "coco" / "loud.json"))
    assert len(coco.getImgIds()) == 12
    assert {one["track_id"] for one in coco.loadAnns(coco.getAnnIds())} == {1}
    with av.open(str(out / "overlays" / "loud.mp4")) as video:
        assert video.streams.audio


def with_sound(video: Path, path: Path) -> None:
    sound = write_sound(path.with_suffix(".m4a"), "aac", seconds=1)
    with av.open(str(video)) as shown, av.open(str(sound)) as heard, av.open(str(path), "w") as out:
        streams = [
            out.add_stream_from_template(one) for one in (shown.streams.video[0], heard.streams.audio[0])
        ]
        for source, stream in zip((shown, heard), streams, strict=True):
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = stream
                    out.mux(packet)


def test_a_video_cut_in_half_is_done_as_far_as_it_goes_then_told(command, own, tmp_path):
    content = (own / "clip.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: int(len(content) * 0.7)])
    status, printed, errors = command(f"data.path={tmp_path / 'cut.mp4'}", f"data.mask={own / 'mask.png'}")
    assert status == 2
    assert errors.count("\n") == 1
    assert "cut.mp4: cut off" in errors
    done = len(masks(tmp_path / "out" / "masks" / "cut"))
    assert 0 < done < 12
    assert json.loads((tmp_path / "out" / "results.json").read_text())["frames"] == done
    assert "cut" in printed


def test_a_server_needs_masks_and_says_so_at_once(command, own, tmp_path):
    root = write_davis(tmp_path / "data", {"square": CLIP})
    (root / "ImageSets" / "2017" / "test-dev.txt").write_text("square\n")
    words = ("data=davis", f"data.root={root}", "data.split=test-dev")
    status, _, errors = command(*words, "output.formats=[overlay]", own_clip=False)
    assert status == 2
    assert "output.formats: must contain masks" in errors
    assert command(*words, own_clip=False)[0] == 0
    with zipfile.ZipFile(tmp_path / "out" / "submission.zip") as archive:
        assert archive.namelist() == [f"square/{n:05d}.png" for n in range(12)]


class TestStopped:
    """Of a run that is killed, what is there is whole; the same command goes on from it."""

    formats = "output.formats=[masks,overlay,coco,boxes]"

    def start(self, checkpoint, own, out, *overrides: str) -> subprocess.Popen:
        code = (
            "import sys, drift.reporting.clip_output as clip_output, evaluate\n"
            "from drift.command_line import run\n"
            "clip_output._SAVED_EVERY = 0.0\n"
            "import drift.module, time\n"
            "done = drift.module.TrackingModule._frame_done\n"
            "def slowly(self):\n    time.sleep(0.2)\n    done(self)\n"
            "drift.module.TrackingModule._frame_done = slowly\n"
            "sys.exit(run(evaluate.evaluate, config_dir=evaluate.CONFIGS, config_name='evaluate'))\n"
        )
        arguments = words(checkpoint, own, out, f"data.mask={own / 'mask.png'}", self.formats, *overrides)
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill_after(self, process: subprocess.Popen, folder: Path, frames: int) -> None:
        deadline = time.monotonic() + 120
        while len(list(folder.glob("[0-9]*.png"))) < frames and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def test_killed_and_gone_on_with(self, checkpoint, own, tmp_path, command):
        mask = f"data.mask={own / 'mask.png'}"
        assert command(mask, self.formats, out="whole")[0] == 0
        killed, whole = tmp_path / "killed", tmp_path / "whole"
        process = self.start(checkpoint, own, killed)
        self.kill_after(process, killed / "masks" / "clip", 5)
        written = sorted((killed / "masks" / "clip").glob("[0-9]*.png"))
        assert 5 <= len(written) < 12
        for path in written:
            assert np.array_equal(read_mask(path), read_mask(whole / "masks" / "clip" / path.name))
        told = json.loads((killed / "coco" / "clip.json").read_text())
        assert len(told["images"]) <= len(written)
        before = {path: path.stat().st_mtime_ns for path in written[:3]}
        status, _, errors = command(mask, self.formats, "output.resume=true", out="killed")
        assert (status, errors) == (0, "")
        assert {path: path.stat().st_mtime_ns for path in before} == before, "what was done is not done again"
        for one in sorted((whole / "masks" / "clip").glob("*.png")):
            assert np.array_equal(read_mask(one), read_mask(killed / "masks" / "clip" / one.name))
        for name in ("coco/clip.json", "boxes/clip.csv"):
            assert (killed / name).read_bytes() == (whole / name).read_bytes()
        with av.open(str(killed / "overlays" / "clip.mp4")) as video:
            assert sum(1 for _ in video.decode(video=0)) == 12

    def test_a_run_that_is_done_is_not_done_again(self, own, tmp_path, command):
        mask = f"data.mask={own / 'mask.png'}"
        assert command(mask)[0] == 0
        path = tmp_path / "out" / "masks" / "clip" / "00007.png"
        before = path.stat().st_mtime_ns
        assert command(mask, "output.resume=true")[0] == 0
        assert path.stat().st_mtime_ns == before
        assert json.loads((tmp_path / "out" / "results.json").read_text())["frames"] == 12

    def test_output_of_another_configuration_is_never_trusted(self, own, command):
        mask = f"data.mask={own / 'mask.png'}"
        assert command(mask)[0] == 0
        status, _, errors = command(mask, "output.resume=true", "propagation.top_k=7")
        assert status == 2
        assert "propagation.top_k was" in errors
        assert "is 7" in errors
        assert "output.resume=false" in errors


@pytest.fixture
def no_room():
    """Files of this process cannot grow over 1500 bytes."""
    action = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, action)


def test_a_disk_that_is_full_is_told_in_one_line(own, tmp_path, command, no_room):
    (tmp_path / "out").mkdir()
    status, _, errors = command(f"data.mask={own / 'mask.png'}", "output.formats=[masks,coco]")
    assert status == 2
    assert errors.count("\n") == 1, errors
    assert "File too large" in errors
