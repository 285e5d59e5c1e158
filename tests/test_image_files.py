"""Frames and masks from files of every kind, and one line for each that cannot be read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from drift.errors import InputError
from drift.image_files import DAVIS_PALETTE, read_frame, read_mask, write_mask


def test_the_palette_is_davis_own(davis_root):
    assert DAVIS_PALETTE[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    published = davis_root.parent / "osvos" / "camel" / "00000.png"
    palette = np.array(Image.open(published).getpalette("RGB")).reshape(-1, 3)
    assert np.array_equal(palette[:20], DAVIS_PALETTE[:20])


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "jpg"), ("L", "jpg"), ("RGBA", "png"), ("LA", "png"), ("P", "png")]
)
def test_frames_of_every_mode_become_rgb(tmp_path, mode, suffix):
    path = tmp_path / f"frame.{suffix}"
    picture = Image.new("RGB", (13, 7), (120, 120, 120))
    (picture.quantize() if mode == "P" else picture.convert(mode)).save(path)
    frame = read_frame(path)
    assert frame.shape == (7, 13, 3)
    assert frame.dtype == np.uint8
    assert np.abs(frame.astype(int) - 120).max() <= 3


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 99))
def test_masks_come_back_as_they_were_written(tmp_path_factory, height, width, seed):
    mask = np.random.default_rng(seed).integers(0, 255, (height, width), dtype=np.uint8)
    path = tmp_path_factory.mktemp("masks") / "mask.png"
    write_mask(path, mask)
    assert Image.open(path).mode == "P"
    assert np.array_equal(read_mask(path), mask)
    assert [p.name for p in path.parent.iterdir()] == ["mask.png"]


def test_ids_are_indices_and_never_colours(tmp_path):
    mask = np.array([[0, 5], [9, 5]], dtype=np.uint8)
    image = Image.fromarray(mask, mode="P")
    image.putpalette(bytes(range(255, -1, -1)) * 3)
    image.save(tmp_path / "odd-palette.png")
    assert read_mask(tmp_path / "odd-palette.png").tolist() == mask.tolist()


def test_void_is_background_and_binary_masks_have_one_object(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 255, 3]], dtype=np.uint8)).save(path)
    assert read_mask(path).tolist() == [[0, 0, 3]]
    assert read_mask(path, binary=True).tolist() == [[0, 1, 1]]


def test_a_black_and_white_rgb_mask_is_a_binary_one(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.uint8([[[0] * 3, [255] * 3]])).save(path)
    assert read_mask(path, binary=True).tolist() == [[0, 1]]
    with pytest.raises(InputError, match=r"mask.png: is a colour image \(RGB\)"):
        read_mask(path)


def test_a_colour_mask_is_refused(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.uint8([[[0, 0, 0], [128, 0, 0]]])).save(path)
    for binary in (False, True):
        with pytest.raises(InputError, match=r"mask.png: is a colour image .*indexed"):
            read_mask(path, binary=binary)


def test_more_than_255_ids_are_refused(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.arange(300, dtype=np.uint16).reshape(15, 20)).save(path)
    with pytest.raises(InputError, match=r"mask.png: holds object id 299; at most 255"):
        read_mask(path)


def test_sixteen_bit_masks_with_few_ids_are_read(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 7]], dtype=np.uint16)).save(path)
    assert read_mask(path).tolist() == [[0, 7]]


@pytest.mark.parametrize("read", [read_frame, read_mask])
def test_broken_files_are_named(tmp_path, read):
    path = tmp_path / "broken.jpg"
    with pytest.raises(InputError, match=r"broken.jpg: no such file"):
        read(path)
    path.write_text("no picture")
    with pytest.raises(InputError, match=r"broken.jpg: cannot be read as an image"):
        read(path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(InputError, match=r"broken.jpg: cannot be read as an image"):
        read(path)
