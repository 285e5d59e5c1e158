"""The data sets' layouts, and what is said of one that lacks something."""

from __future__ import annotations

import numpy as np
import pytest
from examples import moving_square, write_davis

from datamodules.davis import Davis2016, Davis2017
from datamodules.sample import Sample
from drift.errors import InputError, OptionError

CLIPS = {name: moving_square(4, name=name) for name in ("ant", "bee")}


@pytest.mark.parametrize(("kind", "binary"), [(Davis2017, False), (Davis2016, True)])
def test_clips_are_read_as_they_were_written(tmp_path, kind, binary):
    data = kind(write_davis(tmp_path, CLIPS, binary=binary))
    assert data.sequences == ["ant", "bee"]
    clips = list(data.predict_dataloader())
    assert [clip.name for clip in clips] == ["ant", "bee"]
    for clip in clips:
        assert len(clip) == 4
        assert list(clip.given) == [0]
        assert list(clip.truth) == [0, 1, 2, 3]
        assert list(clip.frame_names) == ["00000", "00001", "00002", "00003"]
        for t in range(4):
            assert np.array_equal(clip.true_mask(t, (48, 64)), CLIPS[clip.name].truth[t])
            assert np.abs(clip.frames[t].astype(int) - CLIPS[clip.name].frames[t]).mean() < 20


def test_the_real_clips_are_all_there(davis_root):
    data = Davis2016(davis_root)
    clips = list(data.predict_dataloader())
    assert len(clips) == 10
    assert sum(len(clip) for clip in clips) == 643
    frame, mask = clips[0].frames[0], clips[0].given[0]
    assert frame.shape == (480, 854, 3)
    assert set(np.unique(mask)) == {0, 1}


def test_the_sample_clip_needs_no_root():
    (clip,) = Sample().predict_dataloader()
    assert len(clip) >= 24
    assert len(np.unique(clip.given[0])) >= 3


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path):
    root = write_davis(tmp_path, CLIPS)
    (root / "JPEGImages" / "480p" / "ant" / "00002.jpg").write_text("broken")
    ant = next(iter(Davis2017(root).predict_dataloader()))
    assert ant.frames[1].shape == (48, 64, 3)
    with pytest.raises(InputError, match=r"ant/00002.jpg"):
        ant.frames[2]


def test_sequences_are_chosen_by_name(tmp_path):
    root = write_davis(tmp_path, CLIPS)
    assert [clip.name for clip in Davis2017(root, sequences=["bee"]).predict_dataloader()] == ["bee"]
    with pytest.raises(OptionError, match=r"sequences=cow: allowed is among ant, bee"):
        Davis2017(root, sequences=["cow"]).setup()
    with pytest.raises(OptionError, match="a list of names"):
        Davis2017(root, sequences="ant")


def test_a_root_that_is_missing_or_has_another_layout_is_named(tmp_path):
    with pytest.raises(OptionError, match=r"root=null.*data\.root=FOLDER"):
        Davis2017(None)
    with pytest.raises(OptionError, match="a folder that exists"):
        Davis2017(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"ImageSets/2017/val.txt: no such list"):
        Davis2017(tmp_path).setup()


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("JPEGImages/480p/ant", r"JPEGImages/480p/ant: no such folder of frames"),
        ("Annotations/480p/ant/00000.png", r"ant/00000.png: no such file; the first frame needs a mask"),
        ("Annotations/480p/ant/00002.png", r"ant/00002.png: no such file \(1 masks of ant are missing\)"),
    ],
)
def test_what_is_missing_is_named_before_the_work_begins(tmp_path, lost, message):
    path = write_davis(tmp_path, CLIPS) / lost
    if path.is_dir():
        path.rename(tmp_path / "elsewhere")
    else:
        path.unlink()
    with pytest.raises(InputError, match=message):
        Davis2017(tmp_path).setup()


def test_an_empty_clip_is_named(tmp_path):
    root = write_davis(tmp_path, CLIPS)
    for path in (root / "JPEGImages" / "480p" / "bee").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"bee: the clip is empty"):
        Davis2017(root).setup()


def test_a_test_set_with_first_masks_alone_is_not_scored(tmp_path):
    root = write_davis(tmp_path, CLIPS)
    for path in (root / "Annotations" / "480p" / "ant").iterdir():
        if path.stem != "00000":
            path.unlink()
    ant, bee = Davis2017(root).predict_dataloader()
    assert not ant.truth
    assert len(bee.truth) == 4
