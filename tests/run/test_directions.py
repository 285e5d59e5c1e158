"""`data.direction`: equals runs on the reversed clip, with the masks of both directions merged."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from examples import few_steps, moving_square, write_checkpoint, write_video
from PIL import Image

import evaluate
from drift.command_line import run
from drift.directions import ReversedFrames, backward_clip, first_frames, merged
from drift.image_files import read_mask, write_mask
from drift.video_files import VideoFrames, index_video

CLIP = moving_square(9, size=(48, 64))
LAST = len(CLIP) - 1
OTHER = slice(32, 48), slice(40, 64)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint whose random weights track both objects for a few frames."""
    return write_checkpoint(tmp_path_factory.mktemp("sd21"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Lossless frames in both orders, and masks with one object and with both."""
    root = tmp_path_factory.mktemp("clip")
    frames = [frame.copy() for frame in CLIP.frames]
    for frame in frames:
        frame[OTHER] = 20, 60, 250
    for name, ordered in (("clip", frames), ("reversed", frames[::-1])):
        (root / name).mkdir()
        for index, frame in enumerate(ordered):
            Image.fromarray(frame).save(root / name / f"{index:05d}.png")
    for index, mask in CLIP.truth.items():
        write_mask(root / f"{index}.png", mask)
        other = np.zeros_like(mask)
        other[OTHER] = 2
        write_mask(root / f"both{index}.png", np.where(mask > 0, mask, other))
    return root


@pytest.fixture
def track(checkpoint, folders, tmp_path, monkeypatch, capsys):
    def call(*overrides: str, clip: str = "clip", out: str = "out", status: int = 0):
        words = [
            *("evaluate.py", "data=video", f"data.path={folders / clip}", "logger=none", "refinement=none"),
            *(f"backbone.checkpoint={checkpoint}", "backbone.layers=[up_blocks.2.attentions.0]"),
            *("propagation.affinity=cosine", "propagation.temperature=0.02", "output.attention=false"),
            *("output.report=false", "output.sampled_frames=0", f"output.dir={tmp_path / out}", *overrides),
        ]
        monkeypatch.setattr(sys, "argv", few_steps(words))
        assert run(evaluate.evaluate, config_dir=evaluate.CONFIGS, config_name="evaluate") == status
        if status:
            return capsys.readouterr().err
        return [read_mask(path) for path in sorted((tmp_path / out / "masks" / clip).glob("*.png"))]

    return call


def test_backward_is_forward_on_the_reversed_clip(track, folders):
    mask = f"data.mask={folders / 'both5.png'}"
    backward = track(mask, "data.frame=5", "data.direction=backward")
    reference = track(mask, f"data.frame={LAST - 5}", clip="reversed", out="reference")
    assert not any(m.any() for m in backward[6:])
    np.testing.assert_array_equal(np.stack(backward), np.stack(reference[::-1]))
    assert backward[3].any()


def test_both_directions_meet_at_the_given_frame(track, folders):
    mask = f"data.mask={folders / '4.png'}"
    both = track(mask, "data.frame=4", "data.direction=both")
    forward = track(mask, "data.frame=4", out="forward")
    backward = track(mask, "data.frame=4", "data.direction=backward", out="backward")
    np.testing.assert_array_equal(np.stack(both), np.stack(backward[:4] + forward[4:]))


def test_each_object_is_tracked_both_ways_from_where_it_was_first_given(track, folders):
    masks = f"data.masks={{2: {folders / '2.png'}, 6: {folders / 'both6.png'}}}"
    both = track(masks, "data.direction=both")
    forward = track(masks, out="forward")
    backward = track(masks, "data.direction=backward", out="backward")
    for index, mask in enumerate(both):
        later = [1, 2] if index < 2 else [2] if index < 6 else []
        np.testing.assert_array_equal(mask, merged(forward[index], backward[index], later))
        np.testing.assert_array_equal(
            (mask == 1), (forward[index] == 1) if index >= 2 else backward[index] == 1
        )
    assert (both[5] == 2).any()


def test_a_run_that_goes_on_has_the_same_masks(track, folders, tmp_path):
    masks = f"data.masks={{6: {folders / 'both6.png'}}}"
    whole = track(masks, "data.direction=both")
    again = track(masks, "data.direction=both", "output.resume=true", "output.formats=[masks,coco]")
    np.testing.assert_array_equal(np.stack(whole), np.stack(again))
    assert (tmp_path / "out" / "coco" / "clip.json").read_text().count('"track_id": 2') > 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.direction=sideways"], "data.direction=sideways: allowed is forward, backward, both"),
        (
            ["data.direction=both", "data.keypoints=p.csv"],
            "data.direction=both: allowed is forward with data.keypoints",
        ),
        (
            ["data.direction=both", "adaptation=drift", "adaptation.checkpoints=x"],
            "data.direction=both: allowed is forward with adaptation.checkpoints",
        ),
    ],
)
def test_directions_that_are_refused(track, folders, words, message):
    assert track(f"data.mask={folders / '5.png'}", *words, status=2) == f"error: {message}\n"


def test_reversed_frames_are_those_of_the_video(tmp_path):
    frames = moving_square(40, size=(32, 48)).frames
    video = VideoFrames(index_video(write_video(tmp_path / "clip.mp4", frames)))
    backwards = ReversedFrames(video)
    expected = list(video)[::-1]
    np.testing.assert_array_equal(np.stack(list(backwards)), np.stack(expected))
    np.testing.assert_array_equal(backwards[3], expected[3])
    np.testing.assert_array_equal(np.stack(list(backwards[30:])), np.stack(expected[30:]))
    assert len(backwards[30:]) == 10


def test_nothing_is_tracked_backwards_from_the_first_frame():
    assert backward_clip(replace(CLIP, direction="both")) is None
    assert backward_clip(CLIP) is None
    assert first_frames({4: CLIP.truth[4], 2: CLIP.truth[2] * 3}) == {3: 2, 1: 4}
