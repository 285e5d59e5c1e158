"""What a run leaves of its progress, and what another run makes of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from examples import moving_square, write_video
from PIL import Image

from datamodules.video import Video
from drift.backbones import load_backbone
from drift.clip import Keypoint
from drift.errors import InputError
from drift.propagation import Tracker
from drift.resuming import ClipProgress, ProgressFolder, settings_that_count

CLIP = moving_square(9)
LAYERS = ["up_blocks.1.attentions.0", "up_blocks.2.attentions.0"]
POINT = (Keypoint("a", 15, 20),)


@pytest.fixture
def backbone(checkpoint):
    return load_backbone(str(checkpoint), layers=LAYERS, timestep=51)


def step(tracker, index):
    masks = {0: CLIP.truth[0], 3: CLIP.truth[3] * 5}
    return tracker.step(CLIP.frames[index], masks.get(index), POINT if index == 1 else ())


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_a_tracker_goes_on_as_if_it_had_never_stopped(backbone, tmp_path, stop):
    options = {"memory_frames": 2, "long_term_frames": 2, "long_term_interval": 2, "heads": "fused"}
    whole = Tracker(backbone, **options)
    expected = [step(whole, index) for index in range(9)]
    first = Tracker(backbone, **options)
    for index in range(stop):
        step(first, index)
    file = ProgressFolder(tmp_path, {"a": "1"}, resume=True).of(CLIP)
    file.save(ClipProgress(done=stop, seconds=2.5, tracker=first.state()))
    kept = file.earlier()
    assert (kept.done, kept.seconds) == (stop, 2.5)
    second = Tracker(backbone, **options)
    second.restore(kept.tracker, lambda index: CLIP.frames[index])
    for index in range(stop, 9):
        again = step(second, index)
        assert torch.allclose(again.probabilities, expected[index].probabilities, atol=1e-6)
        assert torch.allclose(again.points, expected[index].points, atol=1e-6)
        assert (again.object_ids, again.point_names) == (
            expected[index].object_ids,
            expected[index].point_names,
        )


class TestProgressFolder:
    def test_another_configuration_or_another_clip_is_refused_with_what_differs(self, tmp_path):
        ProgressFolder(tmp_path, {"propagation.top_k": "5"}).of(CLIP).save(ClipProgress(done=2))
        with pytest.raises(InputError, match=r"propagation\.top_k was 5, is 7"):
            ProgressFolder(tmp_path, {"propagation.top_k": "7"}, resume=True).of(CLIP).earlier()
        with pytest.raises(InputError, match=r"propagation\.top_k was 5, is 7"):
            ProgressFolder(tmp_path, {"propagation.top_k": "7"}, resume=True).check()
        other = replace(CLIP, given={0: np.ones((48, 64), np.uint8)})
        with pytest.raises(InputError, match=r"the clip was \w+, is \w+"):
            ProgressFolder(tmp_path, {"propagation.top_k": "5"}, resume=True).of(other).earlier()

    def test_without_resume_what_is_there_is_forgotten(self, tmp_path):
        file = ProgressFolder(tmp_path).of(CLIP)
        file.save(ClipProgress(done=2))
        assert file.earlier() == ClipProgress()
        assert not file.path.exists()

    @pytest.mark.parametrize("kind", ["video", "folder"])
    def test_a_source_that_has_changed_behind_its_first_frame_is_another_clip(self, tmp_path, kind):
        def clip(frames):
            if kind == "video":
                source = write_video(tmp_path / "clip.mp4", frames)
            else:
                source = tmp_path / "frames"
                source.mkdir(exist_ok=True)
                for index, frame in enumerate(frames):
                    Image.fromarray(frame).save(source / f"{index}.png")
            (found,) = Video(source, box=[0, 0, 9, 9]).predict_dataloader()
            return found

        before = clip(CLIP.frames).identity()
        assert clip(CLIP.frames[:5] + [255 - frame for frame in CLIP.frames[5:]]).identity() != before

    @pytest.mark.parametrize("content", [b"", b"half of", None])
    def test_what_cannot_be_read_is_done_again(self, tmp_path, content):
        folder = ProgressFolder(tmp_path, resume=True)
        file = folder.of(CLIP)
        if content is not None:
            file.path.parent.mkdir(parents=True)
            file.path.write_bytes(content)
        assert file.earlier() == ClipProgress()
        folder.check()


def test_settings_that_change_no_mask_do_not_count():
    config = {
        "output": {"dir": "a"},
        "logger": {"x": 1},
        "trainer": {"devices": 2, "precision": "32-true"},
        "data": {"root": "r", "sequences": None, "max_side": 400},
        "propagation": {"top_k": 3},
        "seed": 0,
    }
    assert set(settings_that_count(config)) == {
        "trainer.precision",
        "data.max_side",
        "propagation.top_k",
        "seed",
    }
