"""A clip of one's own: what is to be followed in it, and every way to get that wrong."""

from __future__ import annotations

import numpy as np
import pytest
from examples import moving_square, write_video
from PIL import Image

from datamodules.video import Video, object_prompts, read_keypoints
from drift.errors import InputError, OptionError
from drift.image_files import write_mask

CLIP = moving_square(6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    write_video(folder / "clip.mp4", CLIP.frames)
    write_mask(folder / "ids.png", CLIP.truth[0])
    Image.fromarray(CLIP.truth[0] * 255).save(folder / "binary.png")
    Image.fromarray(np.dstack([CLIP.truth[0] * 255] * 3)).save(folder / "drawn.png")
    write_mask(folder / "large.png", np.ones((96, 128), np.uint8))
    write_mask(folder / "later.png", CLIP.truth[4] * 3)
    (folder / "frames").mkdir()
    for index, frame in enumerate(CLIP.frames):
        Image.fromarray(frame).save(folder / "frames" / f"{index}.png")
    return folder


@pytest.mark.parametrize("mask", ["ids.png", "binary.png", "drawn.png"])
@pytest.mark.parametrize("path", ["clip.mp4", "frames"])
def test_a_mask_as_people_have_them(folder, path, mask):
    (clip,) = Video(folder / path, mask=folder / mask).predict_dataloader()
    assert (clip.name, len(clip), clip.start) == (path.removesuffix(".mp4"), 6, 0)
    assert np.array_equal(clip.given[0], CLIP.truth[0])


def test_masks_on_several_frames(folder):
    data = Video(folder / "clip.mp4", masks={2: str(folder / "ids.png"), 4: str(folder / "later.png")})
    (clip,) = data.predict_dataloader()
    assert clip.start == 2
    assert [set(np.unique(clip.given[i])) for i in (2, 4)] == [{0, 1}, {0, 3}]


def test_a_box_clicks_and_keypoints(folder, tmp_path):
    (tmp_path / "points.csv").write_text("point,x,y,frame\nnose,3,4,0\ntail,5.5,6,2\n")
    data = Video(
        folder / "clip.mp4",
        box=[[2, 3, 30, 40], [31, 3, 60, 40]],
        points=[[10, 10], [40, 10], [1, 1]],
        labels=[1, 2, 0],
        keypoints=tmp_path / "points.csv",
    )
    (clip,) = data.predict_dataloader()
    first, second = clip.prompts[0]
    assert (first.object_id, first.box, first.inside) == (1, (2, 3, 30, 40), (True, False, False))
    assert (second.object_id, second.box, second.inside) == (2, (31, 3, 60, 40), (False, True, False))
    assert [(one.name, one.x) for one in clip.keypoints[0]] == [("nose", 3)]
    assert clip.keypoints[2][0].x == 5.5


def test_objects_in_boxes_are_numbered_behind_those_of_masks(folder):
    (clip,) = Video(
        folder / "clip.mp4", masks={4: str(folder / "later.png")}, box=[2, 3, 30, 40]
    ).predict_dataloader()
    assert [one.object_id for one in clip.prompts[0]] == [4]


def test_frames_are_taken_in_the_order_of_their_numbers(tmp_path, folder):
    for number in (2, 10, 1):
        Image.fromarray(CLIP.frames[0]).save(tmp_path / f"frame{number}.png")
    (clip,) = Video(tmp_path, box=[2, 3, 30, 40]).predict_dataloader()
    assert clip.frame_names == ["frame1", "frame2", "frame10"]
    Image.fromarray(CLIP.frames[0]).save(tmp_path / "frame2.jpg")
    with pytest.raises(InputError, match=r"two pictures of this name"):
        Video(tmp_path, box=[2, 3, 30, 40]).setup()


def test_one_box_and_clicks_without_labels():
    (prompt,) = object_prompts([1, 2, 3, 4], [[2, 3]], None)
    assert (prompt.object_id, prompt.box, prompt.inside) == (1, (1, 2, 3, 4), (True,))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, r"mask=null: allowed is a PNG of what is to be followed"),
        ({"mask": "none.png"}, r"none\.png: no such mask"),
        ({"mask": "large.png"}, r"large\.png: the mask is 128 x 96, but its frame is 64 x 48"),
        ({"masks": {9: "ids.png"}}, r"given for frame 9, but the clip's frames are 0 to 5"),
        ({"masks": {-1: "ids.png"}}, r"masks=-1: allowed is a whole number"),
        ({"box": [0, 0, 70, 40]}, r"inside the frame of 64 x 48 pixels"),
        ({"box": [5, 5, 5, 40]}, r"x0 < x1"),
        ({"box": [5, 5, 8]}, r"\[x0,y0,x1,y1\], in pixels"),
        ({"points": [[64, 5]]}, r"points=\[64,5\]: allowed is inside the frame"),
        ({"points": [5, 5]}, r"\[\[x,y\],...\], in pixels"),
        ({"points": [[5, 5]], "labels": [1, 2]}, r"one for each of the 1 points"),
        ({"points": [[5, 5]], "labels": [0]}, r"for at least one point"),
        ({"keypoints": "none.csv"}, r"none\.csv: no such file of keypoints"),
        ({"mask": "ids.png", "masks": {0: "ids.png"}}, r"null where data.masks has one for frame 0"),
        ({"mask": "ids.png", "max_side": 3}, r"max_side=3"),
    ],
)
def test_bad_input_is_named(folder, options, said):
    files = {"mask", "keypoints"}
    placed = {k: str(folder / v) if k in files else v for k, v in options.items()}
    if "masks" in placed:
        placed["masks"] = {k: str(folder / v) for k, v in placed["masks"].items()}
    with pytest.raises((InputError, OptionError), match=said):
        Video(folder / "clip.mp4", **placed).setup()


@pytest.mark.parametrize("path", [None, "none.mp4"])
def test_a_path_is_needed(path):
    with pytest.raises(OptionError, match="path="):
        Video(path, box=[0, 0, 1, 1])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "must name the columns"),
        ("x,y\n1,2\nthree,4\n", "line 3: is no point: three,4"),
        ("x,y\n", "holds no point"),
        ("", "must name the columns"),
        ("point,x,y\na,1,2\na,3,4\n", "two points of one name"),
    ],
)
def test_a_table_of_points_that_is_none(tmp_path, text, said):
    (tmp_path / "points.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        read_keypoints(tmp_path / "points.csv")
