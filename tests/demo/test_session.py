"""`Session`, without a browser: prompts, tracking, correction, resumption."""

from __future__ import annotations

import errno
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from demo_examples import CLIP, new_session
from PIL import Image

from drift.demo import pictures, tracking
from drift.demo.edits import MAX_OBJECTS, Edits, History, prompt_of_mask, with_box, with_click
from drift.demo.export import command, write_zip, zip_path
from drift.directions import BackwardMasks, backward_clip
from drift.errors import InputError
from drift.image_files import read_mask, write_mask
from drift.segmenting import segment_frame

RIGHT = CLIP.truth[5] > 0


@pytest.fixture
def session(tmp_path):
    return new_session(tmp_path)


def masks(session) -> np.ndarray:
    return np.stack([session.mask(index) for index in range(len(session))])


def uninterrupted(session, folder) -> np.ndarray:
    """Masks of the session's clip as `evaluate.py` tracks it: one tracker per direction, from start to end."""

    def tracked(clip):
        tracker = session.models.make_tracker(session.models.backbone, refiner=session.models.refiner)
        tracker.skip(clip.start)
        for index, frame in enumerate(clip.frames):
            yield segment_frame(tracker, clip, index, frame, clip.given_mask(index, frame.shape[:2]))[0]

    clip = session.clip()
    backward, reverse = BackwardMasks(clip, folder), backward_clip(clip)
    for segmented in tracked(reverse) if reverse else ():
        if segmented.index >= reverse.start:
            backward.add(len(clip) - 1 - segmented.index, segmented)
    return np.stack([backward.merged_with(one).mask for one in tracked(clip)])


def test_a_click_shows_an_object(session):
    session.click(0, 1, 12, 20)
    np.testing.assert_array_equal(session.mask(0), CLIP.truth[0])
    assert session.edits.names == {1: "object 1"}


def test_clicks_add_up_and_take_away(session):
    session.click(0, 1, 12, 20)
    session.click(0, 1, 40, 30, inside=False)
    prompt = session.models.refiner.proposer.prompts[-1]
    assert (prompt.points, prompt.inside) == (((12, 20), (40, 30)), (True, False))


def test_clicks_of_several_objects_are_drawn(session):
    session.click(0, 1, 12, 20)
    session.click(0, 1, 40, 30, inside=False)
    session.box(0, 2, (8, 12, 20, 24))
    drawn = pictures.picture(session, 0)
    assert drawn.shape == (48, 64, 3)
    assert (drawn != pictures.draw_overlay(session.frame(0), session.mask(0))).any()
    assert session.frame(0)[20, 12].tolist() == [250, 200, 30]  # not drawn on


def test_clicks_correct_a_tracked_mask_within_its_box(session):
    session.click(0, 1, 12, 20)
    list(session.track())
    box = prompt_of_mask(1, session.mask(5) == 1).box
    session.click(5, 1, box[2] + 4, box[1], inside=True)
    prompt = session.models.refiner.proposer.prompts[-1]
    assert prompt.box == (box[0], box[1], box[2] + 5, box[3])
    assert prompt.inside == (True, True)


def test_coordinates_are_those_of_the_frame_when_the_model_sees_a_smaller_one(tmp_path):
    session = new_session(tmp_path, max_side=32)
    session.box(0, 1, (40, 40, -5, 0))
    assert session.models.refiner.proposer.prompts[-1].box == (0, 0, 20, 20)
    iou = (session.mask(0) & CLIP.truth[0]).sum() / (session.mask(0) | CLIP.truth[0]).sum()
    assert iou > 0.8


@pytest.mark.parametrize(
    ("show", "message"),
    [
        (lambda s: s.click(0, 1, 64, 3), r"\(64, 3\) is outside the picture of 64 x 48"),
        (lambda s: s.click(0, 1, 3, -1), "outside the picture"),
        (lambda s: s.click(0, 1, 3, 3, inside=False), "nothing to take away"),
        (lambda s: s.box(0, 1, (5, 5, 5, 30)), "the box is too small"),
        (lambda s: s.box(0, 1, (50, 40, 60, 47)), "no object found there"),
        (lambda s: s.paint(0, 1, np.zeros((48, 64), bool)), "the painted mask is empty"),
        (lambda s: s.paint(0, 1, np.ones((4, 4), bool)), "the mask is 4 x 4, but the frame is 64 x 48"),
        (lambda s: list(s.track()), "no object has been shown yet"),
        (lambda s: s.clip(), "no object has been shown yet"),
        (lambda s: s.attention(0, 99, 0), "outside the picture"),
        (lambda s: list(write_zip(s, ["masks"], "")), "nothing is tracked yet"),
        (lambda s: command(s, []), "no object has been shown yet"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_changes_nothing(session, show, message):
    with pytest.raises(InputError, match=message) as error:
        show(session)
    assert "\n" not in str(error.value)
    assert not session.edits.masks
    assert not session.undo()


def test_undo_takes_back_one_change_at_a_time(session):
    session.click(0, 1, 12, 20)
    other = session.add_object("dog")
    session.paint(0, other, RIGHT)
    assert session.edits.names == {1: "object 1", 2: "dog"}
    assert session.undo()
    assert not (session.mask(0) == 2).any()
    assert session.undo()
    assert list(session.edits.names) == [1]
    assert session.undo()
    assert not session.mask(0).any()
    assert not session.undo()


def test_objects_are_named_and_removed(session):
    session.click(0, 1, 12, 20)
    other = session.add_object()
    session.rename(other, " cat ")
    session.paint(0, other, RIGHT)
    assert session.edits.names == {1: "object 1", 2: "cat"}
    session.remove_object(1)
    assert session.edits.names == {2: "cat"}
    assert set(np.unique(session.mask(0))) == {0, 2}
    assert session.add_object() == 1


def test_a_mask_file_brings_its_objects(session, tmp_path):
    write_mask(tmp_path / "mask.png", CLIP.truth[0] * 3)
    session.take_masks(0, tmp_path / "mask.png")
    assert session.edits.names == {3: "object 3"}
    np.testing.assert_array_equal(session.mask(0), CLIP.truth[0] * 3)
    for name, mask in (("small.png", CLIP.truth[0][:9]), ("empty.png", CLIP.truth[0] * 0)):
        write_mask(tmp_path / name, mask)
        with pytest.raises(InputError, match="resize the mask|contains no object"):
            session.take_masks(0, tmp_path / name)
    (tmp_path / "no.png").write_text("<b>")
    with pytest.raises(InputError, match="cannot be read as an image"):
        session.take_masks(0, tmp_path / "no.png")


def test_tracking_in_steps_gives_the_masks_of_one_run(session, tmp_path):
    session.click(0, 1, 12, 20)
    seen = []
    for progress in session.track():
        seen.append(progress.frame)
        if progress.frame == 4:
            session.pause()
    assert seen == [0, 1, 2, 3, 4]
    assert [session.is_current(index) for index in (0, 4, 5)] == [True, True, False]
    assert [progress.frame for progress in session.track()] == [5, 6, 7, 8, 9]
    assert (progress.done, progress.total) == (5, 10)
    np.testing.assert_array_equal(masks(session), uninterrupted(session, tmp_path))
    assert list(session.track()) == []


@pytest.mark.parametrize("memory_frames", [0, 2])
@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_corrections_give_the_masks_of_one_run_with_them(tmp_path, direction, memory_frames):
    """Attention of earlier frames is computed from the labels on disk."""
    session = new_session(tmp_path, memory_frames=memory_frames)
    session.direction = direction
    session.click(3, 1, 22, 20)
    list(session.track())
    session.paint(6, session.add_object(), np.roll(RIGHT, 20, axis=1))
    session.paint(6, 1, RIGHT)
    assert not session.is_current(6)
    list(session.track())
    assert session.current_frames() == list(range(10))
    folder = tmp_path / "backward"
    folder.mkdir()
    np.testing.assert_array_equal(masks(session), uninterrupted(session, folder))


def test_only_frames_from_the_correction_on_are_tracked_again(session):
    session.click(0, 1, 12, 20)
    list(session.track())
    before = masks(session)
    session.paint(6, 1, RIGHT)
    assert session.current_frames() == [0, 1, 2, 3, 4, 5]
    assert [progress.frame for progress in session.track()] == [6, 7, 8, 9]
    np.testing.assert_array_equal(masks(session)[:6], before[:6])


def test_undoing_a_correction_makes_the_masks_before_it_valid_again(session):
    session.click(0, 1, 12, 20)
    list(session.track())
    session.paint(6, 1, RIGHT)
    session.undo()
    assert session.current_frames() == list(range(10))
    assert list(session.track()) == []


def test_a_removed_object_is_gone_and_the_others_are_tracked_again(session, tmp_path):
    session.click(0, 1, 12, 20)
    session.paint(0, session.add_object(), np.roll(RIGHT, 20, axis=1))
    list(session.track())
    session.remove_object(2)
    assert set(np.unique(masks(session))) == {0, 1}
    assert not session.is_current(0)
    list(session.track())
    np.testing.assert_array_equal(masks(session), uninterrupted(session, tmp_path))


def test_one_frame_cannot_be_tracked(tmp_path):
    session = new_session(tmp_path, frames=CLIP.frames[:1])
    session.click(0, 1, 12, 20)
    with pytest.raises(InputError, match="one frame only"):
        list(session.track())


def test_a_clip_is_tracked_once_at_a_time(session):
    session.click(0, 1, 12, 20)
    running = session.track()
    next(running)
    with pytest.raises(InputError, match="being tracked already"):
        list(session.track())
    running.close()  # the page was closed
    assert session.current_frames() == [0]
    assert [progress.frame for progress in session.track()] == list(range(1, 10))


def test_a_full_disk_keeps_what_was_tracked(session, tmp_path, monkeypatch):
    session.click(0, 1, 12, 20)
    kept = tracking.write_mask

    def full(path, mask):
        if path.name == "000004.png":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        kept(path, mask)

    monkeypatch.setattr(tracking, "write_mask", full)
    with pytest.raises(OSError, match="No space"):
        list(session.track())
    assert session.current_frames() == [0, 1, 2, 3]
    monkeypatch.undo()
    assert [progress.frame for progress in session.track()] == [4, 5, 6, 7, 8, 9]
    np.testing.assert_array_equal(masks(session), uninterrupted(session, tmp_path))


def test_attention_of_a_tracked_frame(session, tmp_path):
    session.click(0, 1, 12, 20)
    list(session.track())
    for frame in (9, 4, 4):
        indices, maps = session.attention(frame, 8 + 3 * frame + 4, 20)
        assert indices == [0, frame - 2, frame - 1]
        assert list(maps) == ["0", "1"]
        assert maps["0"].sum() == pytest.approx(1)
        looked_at = np.unravel_index(maps["0"][0].argmax(), maps["0"][0].shape)
        assert CLIP.truth[0][looked_at[0] * 4 + 2, looked_at[1] * 4 + 2]
    pictures.attention_figure(session, 4, 30, 20, tmp_path / "attention.png")
    assert Image.open(tmp_path / "attention.png").width > 500
    with pytest.raises(InputError, match="tracking starts at this frame"):
        session.attention(0, 30, 20)
    session.paint(4, 1, RIGHT)
    with pytest.raises(InputError, match="frame 4 is not tracked"):
        session.attention(4, 30, 20)


def test_charts_mark_lost_frames_and_escape_names(session):
    assert "once frames are tracked" in pictures.charts(session)
    session.click(0, 1, 12, 20)
    session.rename(1, "<script>")
    list(session.track())
    for index, one in session._forward.frames.items():
        session._forward.frames[index] = replace(one, areas={1: 0 if index == 7 else 200 + index})
    drawn = pictures.charts(session)
    assert drawn.count("lost in frame 7") == 2
    assert "&lt;script&gt;: lost in 1 frame" in drawn
    assert "<script>" not in drawn
    rows = pictures.series(session)[1]
    assert [frame for frame, *_ in rows] == list(range(10))
    assert rows[2][1] == 202
    assert 0.5 < rows[0][2] <= 1


def test_head_weights_sum_to_one(session):
    weights = session.head_weights()
    assert {layer: len(row) for layer, row in weights.items()} == {"0": 2, "1": 2}
    assert sum(map(sum, weights.values())) == pytest.approx(1)


def test_the_zip_holds_masks_and_the_command(session, tmp_path):
    session.click(0, 1, 12, 20)
    list(session.track())
    line = command(session, ["backbone=sd21", "seed=3"])
    assert line == (
        "python evaluate.py data=video 'data.path=my clip.mp4' 'data.masks={0: given/00000.png}' backbone=sd21 seed=3"
    )
    assert list(write_zip(session, ["masks", "overlay", "coco", "cutout_png"], line))[-1] == (10, 10)
    with zipfile.ZipFile(zip_path(session)) as archive:
        archive.extractall(tmp_path / "home")
    home = tmp_path / "home"
    written = np.stack([read_mask(path) for path in sorted((home / "masks" / "clip").iterdir())])
    np.testing.assert_array_equal(written, masks(session))
    np.testing.assert_array_equal(read_mask(home / "given" / "00000.png"), CLIP.truth[0])
    assert (home / "command.txt").read_text() == line + "\n"
    assert (home / "overlays" / "clip.mp4").stat().st_size > 500
    assert len(list((home / "cutouts" / "clip").iterdir())) == 10
    assert (
        len(json.loads((home / "coco" / "clip.json").read_text())["annotations"])
        == masks(session).any((1, 2)).sum()
    )


def test_a_zip_of_a_part_is_valid(session, tmp_path):
    session.direction = "backward"
    session.click(5, 1, 30, 20)
    for progress in session.track():
        if progress.frame == 3:
            session.pause()
    list(write_zip(session, ["masks", "coco"], ""))
    with zipfile.ZipFile(zip_path(session)) as archive:
        names = [name for name in archive.namelist() if name.startswith("masks/")]
        images = json.loads(archive.read("coco/clip.json"))["images"]
    assert names == [f"masks/clip/{index:05d}.png" for index in (3, 4, 5, 6, 7, 8, 9)]
    assert [image["file_name"] for image in images] == [f"{index:05d}.png" for index in (3, 4, 5, 6, 7, 8, 9)]


def test_closing_deletes_the_files(session):
    session.click(0, 1, 12, 20)
    session.close()
    assert not session.folder.exists()


def test_edits_are_snapshots():
    history = History()
    edits, first = Edits().with_new_object()
    history.change(edits)
    history.change(edits.with_new_object("b")[0])
    assert list(history.now.names) == [first, 2]
    assert history.undo()
    assert history.now is edits
    full = Edits(names={i: str(i) for i in range(1, MAX_OBJECTS + 1)})
    with pytest.raises(InputError, match="at most 254 objects"):
        full.with_new_object()


def test_prompts():
    prompt = prompt_of_mask(1, CLIP.truth[0] > 0)
    assert prompt.box == (8, 12, 24, 28)
    widened = with_click(prompt, 40, 20, inside=True)
    assert widened.box == (8, 12, 41, 28)
    assert with_click(prompt, 40, 20, inside=False).box == prompt.box
    assert with_box(prompt, (30, 5, 10, 25)).box == (10, 5, 30, 25)
