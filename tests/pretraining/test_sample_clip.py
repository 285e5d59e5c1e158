"""The sample clip: what ships with the project, and how it is rendered."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import drift
from drift.image_files import read_frame, read_mask
from pretraining.meadow import ACTORS, SIZE
from pretraining.pictures import HELD_OUT
from pretraining.rendering import render
from pretraining.sample_clip import SEQUENCE, main

SAMPLE = Path(drift.__file__).parent / "assets" / "sample"
STAMPS = "tuxpaint-stamps-default/usr/share/tuxpaint/stamps/animals"
NATURE = "mate-backgrounds/usr/share/backgrounds/mate/nature"


def _files(folder: str, root: Path = SAMPLE) -> list[Path]:
    return sorted((root / folder / "480p" / SEQUENCE).iterdir())


@cache
def _masks() -> np.ndarray:
    return np.stack([read_mask(path) for path in _files("Annotations")])


@cache
def _motion() -> dict[str, np.ndarray]:
    affine = json.loads((SAMPLE / "motion.json").read_text(encoding="utf-8"))["affine"]
    return {layer: np.array(maps) for layer, maps in affine.items()}


def _moved(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return cv2.warpAffine(picture, matrix, SIZE[::-1], flags=cv2.INTER_LINEAR)


def _iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_the_sequence_is_listed_and_has_a_mask_for_each_frame() -> None:
    assert (SAMPLE / "ImageSets" / "2017" / "val.txt").read_text(encoding="utf-8").split() == [SEQUENCE]
    frames, masks = _files("JPEGImages"), _files("Annotations")
    assert len(frames) >= 24
    assert [path.name for path in frames] == [f"{i:05d}.jpg" for i in range(len(frames))]
    assert [path.stem for path in masks] == [path.stem for path in frames]


def test_frames_and_masks_are_480p() -> None:
    assert {read_frame(path).shape for path in _files("JPEGImages")} == {(*SIZE, 3)}
    assert _masks().shape[1:] == SIZE == (480, 854)
    assert {Image.open(path).mode for path in _files("Annotations")} == {"P"}


def test_every_frame_shows_the_same_objects() -> None:
    ids = np.arange(len(ACTORS) + 1)
    assert len(ACTORS) >= 2
    for mask in _masks():
        assert np.array_equal(np.unique(mask), ids)


def test_one_object_is_occluded_and_comes_out_again() -> None:
    visible = (_masks() == 2).sum(axis=(1, 2))
    low = int(visible.argmin())
    assert 0.3 * visible[0] < visible[low] < 0.7 * visible[0]
    assert visible[low:].max() > 0.95 * visible[0]
    behind = (_moved((_masks()[0] == 2).astype(np.uint8), _motion()["2"][low]) > 0) & (_masks()[low] != 2)
    assert (_masks()[low][behind] == 1).mean() > 0.7, "it is the first object that hides it"


def test_the_motion_starts_at_the_identity_and_covers_every_layer() -> None:
    assert set(_motion()) == {"background", *(str(i + 1) for i in range(len(ACTORS)))}
    for maps in _motion().values():
        assert maps.shape == (len(_masks()), 2, 3)
        assert np.allclose(maps[0], [[1, 0, 0], [0, 1, 0]])
        assert np.abs(maps[-1] - maps[0]).max() > 20


@pytest.mark.parametrize("layer", ["1", "2", "3"])
def test_the_motion_carries_a_mask_to_every_frame_where_the_object_is_free(layer: str) -> None:
    masks = _masks() == int(layer)
    for index, truth in enumerate(masks):
        expected = _moved(masks[0].astype(np.float32), _motion()[layer][index]) >= 0.5
        hidden = int(layer) > 1 and (_masks()[index][expected] == 1).mean() > 0.01
        if not hidden:
            assert _iou(expected, truth) > 0.9, f"frame {index}"


def test_the_motion_explains_the_background_better_than_standing_still() -> None:
    first, last = (read_frame(_files("JPEGImages")[i]).mean(axis=2).astype(np.float32) for i in (0, -1))
    inside = _moved(np.ones(SIZE, np.float32), _motion()["background"][-1]) > 0.99
    grass = inside & (_masks()[-1] == 0) & (np.arange(SIZE[0])[:, None] > 200)
    moved = _moved(first, _motion()["background"][-1])
    correlation = [np.corrcoef(picture[grass], last[grass])[0, 1] for picture in (first, moved)]
    assert correlation[1] > 0.7 > 0.3 > correlation[0]


def test_every_picture_is_credited_and_was_held_out_of_training() -> None:
    text = (SAMPLE / "ATTRIBUTION.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|") and "/usr/share/" in line]
    stems = {Path(row.split("`")[1]).stem for row in rows}
    assert stems == {"rooster", "fox", "zebra", "GreenMeadow", "Garden"} <= HELD_OUT
    assert all("GPL-2" in row for row in rows)
    assert "GNU GENERAL PUBLIC LICENSE" in (SAMPLE / "COPYING").read_text(encoding="utf-8")


def test_the_clip_is_small() -> None:
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) <= 4_000_000


def _synthetic_pictures(root: Path) -> Path:
    """Noise in place of every picture: the cut-outs are rectangles of many colours."""
    random = np.random.default_rng(0)
    for stamp in ("birds/rooster", "mammals/dogs/fox", "mammals/equines/zebra"):
        rgba = random.integers(0, 256, (64, 72, 4), dtype=np.uint8)
        rgba[..., 3] = 255
        path = root / STAMPS / f"{stamp}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgba).save(path)
    (root / STAMPS / "birds" / "rooster.txt").write_text("A colorful rooster.\n", encoding="utf-8")
    (root / NATURE).mkdir(parents=True)
    for name in ("Garden", "GreenMeadow"):
        rgb = random.integers(0, 256, (256, 320, 3), dtype=np.uint8)
        Image.fromarray(cv2.GaussianBlur(rgb, (0, 0), 3)).save(root / NATURE / f"{name}.jpg")
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _synthetic_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def rendered(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two frames of other pictures, in a folder that held a longer clip."""
    output = tmp_path_factory.mktemp("clip")
    stale = output / "JPEGImages" / "480p" / SEQUENCE / "00007.jpg"
    stale.parent.mkdir(parents=True)
    stale.touch()
    assert main(["--pictures", str(pictures), "--output", str(output), "--frames", "2"]) == 0
    return output


def test_other_pictures_render_into_the_same_layout(rendered: Path) -> None:
    assert [path.name for path in _files("JPEGImages", rendered)] == ["00000.jpg", "00001.jpg"]
    mask = read_mask(_files("Annotations", rendered)[0])
    assert mask.shape == SIZE
    assert set(np.unique(mask)) == {0, 1, 2, 3}
    assert {path.name for path in rendered.iterdir()} == {path.name for path in SAMPLE.iterdir()} - {
        "COPYING"
    }


def test_the_seed_decides_the_frames(pictures: Path, rendered: Path) -> None:
    again = next(render(pictures, frames=2))
    Image.fromarray(again.image).save(rendered / "again.jpg", quality=89, optimize=True)
    assert (rendered / "again.jpg").read_bytes() == _files("JPEGImages", rendered)[0].read_bytes()
    assert np.array_equal(again.mask, read_mask(_files("Annotations", rendered)[0]))
    (rendered / "again.jpg").unlink()


def test_missing_pictures_are_one_line_that_names_the_packages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--pictures", str(tmp_path / "none"), "--output", str(tmp_path / "clip")]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "tuxpaint-stamps-default" in printed
    assert not (tmp_path / "clip").exists()


def test_an_output_that_cannot_be_written_is_one_line(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["--pictures", str(pictures), "--output", str(tmp_path / "file")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_a_frame_count_below_two_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--pictures", "x", "--output", "y", "--frames", "1"])
    assert "at least 2" in capsys.readouterr().err
