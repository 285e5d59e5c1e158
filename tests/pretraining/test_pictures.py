"""Which pictures are found, which are left out, and what they are called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from examples import noise
from PIL import Image

from drift.errors import InputError
from pretraining.pictures import PHOTOGRAPHS, SOURCES, find_cutouts, find_photographs, load_pictures


def test_missing_pictures_are_an_error_that_names_every_package(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 cut-outs and 0 backgrounds") as raised:
        load_pictures(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert all(package in str(raised.value) for package in SOURCES)


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    """A root with two stamps of many colours, one of them held out, and two files that are no pictures."""
    folder = tmp_path / "usr/share/tuxpaint/stamps/animals"
    folder.mkdir(parents=True)
    for seed, stem in enumerate(("fox", "owl")):
        Image.fromarray(noise(64, 80, 4, seed=seed)).save(folder / f"{stem}.png")
    whole = (folder / "owl.png").read_bytes()
    (folder / "cut-off.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.png").write_text("no picture", encoding="utf-8")
    (folder / "owl.txt").write_text("A snowy owl. It hoots.\n", encoding="utf-8")
    return tmp_path


def test_unreadable_and_held_out_cut_outs_are_left_out(stamps: Path) -> None:
    (owl,) = find_cutouts(stamps)
    assert owl.name == "snowy owl"
    assert np.array_equal(owl.rgba, noise(64, 80, 4, seed=1))


def test_the_sample_clip_gets_the_held_out_cut_outs_only(stamps: Path) -> None:
    assert [cutout.name for cutout in find_cutouts(stamps, held_out=True)] == ["fox"]


def test_large_cut_outs_are_reduced_and_small_ones_refused(stamps: Path) -> None:
    assert find_cutouts(stamps, max_side=70)[0].rgba.shape == (56, 70, 4)
    assert find_cutouts(stamps, max_side=50) == [], "40 pixels are too few on the shorter side"


def test_drawings_are_no_cut_outs(stamps: Path) -> None:
    plain = np.full((64, 64, 4), 255, dtype=np.uint8)
    Image.fromarray(plain).save(stamps / "usr/share/tuxpaint/stamps/animals/drawing.png")
    assert [cutout.name for cutout in find_cutouts(stamps)] == ["snowy owl"]


def test_the_photographs_of_scikit_image_are_found() -> None:
    photographs = find_photographs(max_side=300)
    assert len(photographs) == len(PHOTOGRAPHS)
    for rgb in photographs:
        assert rgb.shape[2] == 3
        assert max(rgb.shape[:2]) <= 300
