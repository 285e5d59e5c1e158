"""A clip from a video file or folder: masks, boxes, clicks, keypoints, and errors about each."""

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
    Image.fromarray(np.dstack([CLIP.truth[0] * 255] * 3)).save(folder / "rgb.png")
    write_mask(folder / "large.png", np.ones((96, 128), np.uint8))
    write_mask(folder / "later.png", CLIP.truth[4] * 3)
    (folder / "frames").mkdir()
    for index, frame in enumerate(CLIP.frames):
        Image.fromarray(frame).save(folder / "frames" / f"{index}.png")
    return folder


@pytest.mark.parametrize("mask", ["ids.png", "binary.png", "rgb.png"])
@pytest.mark.parametrize("path", ["clip.mp4", "frames"])
def test_a_mask_of_ids_or_in_black_and_white(folder, path, mask):
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
    assert [(point.name, point.x) for point in clip.keypoints[0]] == [("nose", 3)]
    assert clip.keypoints[2][0].x == 5.5


def test_boxes_are_numbered_after_the_objects_of_masks(folder):
    (clip,) = Video(
        folder / "clip.mp4", masks={4: str(folder / "later.png")}, box=[2, 3, 30, 40]
    ).predict_dataloader()
    assert [prompt.object_id for prompt in clip.prompts[0]] == [4]


def test_frames_are_in_natural_order(tmp_path, folder):
    for number in (2, 10, 1):
        Image.fromarray(CLIP.frames[0]).save(tmp_path / f"frame{number}.png")
    (clip,) = Video(tmp_path, box=[2, 3, 30, 40]).predict_dataloader()
    assert clip.frame_names == ["frame1", "frame2", "frame10"]
    Image.fromarray(CLIP.frames[0]).save(tmp_path / "frame2.jpg")
    with pytest.raises(InputError, match=r"frame2\.jpg: same frame name as frame2\.png"):
        Video(tmp_path, box=[2, 3, 30, 40]).setup()


def test_a_box_and_clicks_without_labels():
    (prompt,) = object_prompts([1, 2, 3, 4], [[2, 3]], None)
    assert (prompt.object_id, prompt.box, prompt.inside) == (1, (1, 2, 3, 4), (True,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "none.png"}, r"none\.png: no such mask"),
        ({"mask": "large.png"}, r"large\.png: the mask is 128 x 96, but its frame is 64 x 48"),
        ({"masks": {9: "ids.png"}}, r"ids\.png: given for frame 9, but the clip has frames 0 to 5"),
        ({"box": [0, 0, 70, 40]}, r"inside the frame of 64 x 48 pixels"),
        ({"points": [[64, 5]]}, r"points=\[64,5\]: allowed is inside the frame"),
        ({"points": [[3, 5]], "frame": 6}, r"frame=6: allowed is 0 to 5, the frames of clip\.mp4"),
        ({"mask": "black.png"}, r"black\.png: contains no object"),
        ({"keypoints": "none.csv"}, r"none\.csv: no such file of keypoints"),
        ({"keypoints": "late.csv"}, r"late\.csv: point a is on frame 6, but clip\.mp4 has frames 0 to 5"),
        (
            {"keypoints": "aside.csv"},
            r"aside\.csv: point a at \[nan,2\] is outside the frame of 64 x 48 pixels",
        ),
    ],
)
def test_invalid_options_are_errors(folder, options, message):
    write_mask(folder / "black.png", np.zeros((48, 64), np.uint8))
    (folder / "late.csv").write_text("point,x,y,frame\na,1,2,6\n")
    (folder / "aside.csv").write_text("point,x,y\na,nan,2\n")
    files = {"mask", "keypoints"}
    options = {k: str(folder / v) if k in files else v for k, v in options.items()}
    if "masks" in options:
        options["masks"] = {k: str(folder / v) for k, v in options["masks"].items()}
    with pytest.raises((InputError, OptionError), match=message) as raised:
        Video(folder / "clip.mp4", **options).setup()
    assert "\n" not in str(raised.value)


def test_an_image_is_no_video(folder):
    write_mask(folder / "black.png", np.zeros((48, 64), np.uint8))
    with pytest.raises(InputError, match=r"black\.png: an image, not a video; give the folder"):
        Video(folder / "black.png", box=[0, 0, 1, 1]).setup()


def test_a_path_exists():
    with pytest.raises(OptionError, match="path="):
        Video("none.mp4", box=[0, 0, 1, 1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n", "must name the columns"),
        (b"x,y\n1,2\nthree,4\n", "line 3: not a point: three,4"),
        (b"x,y\n", "contains no point"),
        (b"", "must name the columns"),
        (b"point,x,y\na,1,2\na,3,4\n", "two points with the same name"),
        ("point,x,y\nmüde,1,2\n".encode("latin-1"), "not a CSV file in UTF-8"),
        (bytes(range(256)), "not a CSV file in UTF-8"),
        (b"x,y\n1,2\n" + b"a" * 200_000 + b",3\n", "not a CSV file in UTF-8"),
    ],
)
def test_an_invalid_keypoint_file_is_an_error(tmp_path, content, message):
    (tmp_path / "points.csv").write_bytes(content)
    with pytest.raises(InputError, match=rf"points\.csv.*{message}") as raised:
        read_keypoints(tmp_path / "points.csv")
    assert "\n" not in str(raised.value)
