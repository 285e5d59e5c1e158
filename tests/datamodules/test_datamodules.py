"""DAVIS and the sample clip: layout, errors about missing files, and the assignment of clips to processes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from examples import moving_square, write_davis

from datamodules.davis import Davis2016, Davis2017
from datamodules.sample import Sample
from drift.errors import InputError, OptionError

CLIPS = {name: moving_square(4, name=name) for name in ("ant", "bee")}


@pytest.mark.parametrize(("datamodule", "binary"), [(Davis2017, False), (Davis2016, True)])
def test_clips_equal_the_written_ones(tmp_path, datamodule, binary):
    data = datamodule(write_davis(tmp_path, CLIPS, binary=binary))
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


def test_davis_2016_has_all_clips(davis_root):
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


def test_frames_are_decoded_on_access(tmp_path):
    root = write_davis(tmp_path, CLIPS)
    (root / "JPEGImages" / "480p" / "ant" / "00002.jpg").write_text("broken")
    ant = next(iter(Davis2017(root).predict_dataloader()))
    assert ant.frames[1].shape == (48, 64, 3)
    with pytest.raises(InputError, match=r"ant/00002.jpg"):
        ant.frames[2]


def test_sequences_are_selected_by_name(tmp_path):
    root = write_davis(tmp_path, CLIPS)
    assert [clip.name for clip in Davis2017(root, sequences=["bee"]).predict_dataloader()] == ["bee"]
    with pytest.raises(OptionError, match=r"sequences=cow: allowed is one of ant, bee"):
        Davis2017(root, sequences=["cow"]).setup()


def test_a_missing_root_or_wrong_layout_is_an_error(tmp_path):
    with pytest.raises(OptionError, match="a folder that exists"):
        Davis2017(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"ImageSets/2017/val.txt: no such list"):
        Davis2017(tmp_path).setup()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("JPEGImages/480p/ant", r"JPEGImages/480p/ant: no such folder of frames"),
        ("Annotations/480p/ant/00000.png", r"ant/00000.png: no such file; the first frame needs a mask"),
        ("Annotations/480p/ant/00002.png", r"ant/00002.png: no such file \(missing masks of ant: 1\)"),
    ],
)
def test_setup_reports_missing_files(tmp_path, missing, message):
    path = write_davis(tmp_path, CLIPS) / missing
    if path.is_dir():
        path.rename(tmp_path / "elsewhere")
    else:
        path.unlink()
    with pytest.raises(InputError, match=message):
        Davis2017(tmp_path).setup()


def test_a_clip_without_frames_is_an_error(tmp_path):
    root = write_davis(tmp_path, CLIPS)
    for path in (root / "JPEGImages" / "480p" / "bee").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"bee: contains no \.jpg or \.png frame"):
        Davis2017(root).setup()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"val\.txt: the list of sequences is empty"),
        (b"\xe4nt\n", r"val\.txt: not a text file in UTF-8"),
    ],
)
def test_an_invalid_list_of_sequences_is_an_error(tmp_path, content, message):
    root = write_davis(tmp_path, CLIPS)
    (root / "ImageSets" / "2017" / "val.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        Davis2017(root).setup()


def test_a_clip_with_only_the_first_mask_is_not_scored(tmp_path):
    root = write_davis(tmp_path, CLIPS)
    for path in (root / "Annotations" / "480p" / "ant").iterdir():
        if path.stem != "00000":
            path.unlink()
    ant, bee = Davis2017(root).predict_dataloader()
    assert not ant.truth
    assert len(bee.truth) == 4


class TestClipsOf:
    @pytest.fixture
    def data(self, tmp_path):
        lengths = {"ant": 2, "bee": 5, "cow": 3, "dog": 4}
        clips = {name: moving_square(length, name=name) for name, length in lengths.items()}
        return Davis2017(write_davis(tmp_path, clips))

    def test_every_clip_is_assigned_once_the_longest_first(self, data):
        assignment = [[clip.name for clip in data.clips_of(rank, 2)] for rank in range(2)]
        assert assignment == [["bee", "ant"], ["dog", "cow"]]

    def test_a_process_without_a_clip_gets_none(self, data):
        assert [clip.name for rank in range(4) for clip in data.clips_of(rank, 6)] == [
            "bee",
            "dog",
            "cow",
            "ant",
        ]
        assert data.clips_of(4, 6) == data.clips_of(5, 6) == [None]

    def test_a_single_process_gets_all_clips_starting_at_its_turn(self, data):
        names = []
        for data.turn in range(3):
            names.append([clip.name for clip in data.clips_of(0, 1)])
        assert names[0] == ["ant", "bee", "cow", "dog"]
        assert names[1] == ["cow", "dog", "ant", "bee"]
        assert len({order[0] for order in names}) == 2
        assert all(sorted(order) == names[0] for order in names)

    def test_several_processes_ignore_the_turn(self, data):
        clips = data.clips_of(0, 2)
        data.turn = 1
        assert data.clips_of(0, 2) == clips

    def test_the_dataloader_uses_the_rank_of_the_trainer(self, data):
        data.trainer = SimpleNamespace(global_rank=1, world_size=2)
        assert [clip.name for clip in data.predict_dataloader()] == ["dog", "cow"]
        data.trainer = None
        assert [clip.name for clip in data.predict_dataloader()] == ["ant", "bee", "cow", "dog"]
