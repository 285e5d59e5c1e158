"""Frames and masks from image files of every mode, and errors about those that cannot be read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from drift.errors import InputError
from drift.image_files import DAVIS_PALETTE, read_frame, read_mask, write_mask


def test_the_palette_equals_that_of_davis(davis_root):
    assert DAVIS_PALETTE[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    official = davis_root.parent / "osvos" / "camel" / "00000.png"
    palette = np.array(Image.open(official).getpalette("RGB")).reshape(-1, 3)
    assert np.array_equal(palette[:20], DAVIS_PALETTE[:20])


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "jpg"), ("L", "jpg"), ("RGBA", "png"), ("LA", "png"), ("P", "png")]
)
def test_frames_of_every_mode_are_read_as_rgb(tmp_path, mode, suffix):
    path = tmp_path / f"frame.{suffix}"
    image = Image.new("RGB", (13, 7), (120, 120, 120))
    (image.quantize() if mode == "P" else image.convert(mode)).save(path)
    frame = read_frame(path)
    assert frame.shape == (7, 13, 3)
    assert frame.dtype == np.uint8
    assert np.abs(frame.astype(int) - 120).max() <= 3


def test_frames_of_sixteen_bits_are_read_with_eight(tmp_path):
    grey = np.array([[0, 256 * 7 + 3, 65535]], dtype=np.uint16)
    for suffix in ("png", "tif"):
        Image.fromarray(grey).save(tmp_path / f"frame.{suffix}")
        assert read_frame(tmp_path / f"frame.{suffix}").tolist() == [[[0] * 3, [7] * 3, [255] * 3]]
    for numbers, kind in (
        (np.ones((2, 2), np.float32), "floating-point"),
        (np.full((2, 2), -9, np.int32), "32-bit"),
    ):
        Image.fromarray(numbers).save(tmp_path / "frame.tif")
        with pytest.raises(InputError, match=rf"frame\.tif: contains {kind} numbers"):
            read_frame(tmp_path / "frame.tif")
        with pytest.raises(InputError, match=r"frame\.tif: contains (floating-point|object id -9)"):
            read_mask(tmp_path / "frame.tif")


def test_masks_of_negative_ids_are_an_error(tmp_path):
    Image.fromarray(np.array([[0, -3]], np.int32)).save(tmp_path / "mask.tif")
    with pytest.raises(InputError, match=r"mask\.tif: contains object id -3, below 0"):
        read_mask(tmp_path / "mask.tif")


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 99))
def test_masks_survive_writing_and_reading(tmp_path_factory, height, width, seed):
    mask = np.random.default_rng(seed).integers(0, 255, (height, width), dtype=np.uint8)
    path = tmp_path_factory.mktemp("masks") / "mask.png"
    write_mask(path, mask)
    assert Image.open(path).mode == "P"
    assert np.array_equal(read_mask(path), mask)
    assert [p.name for p in path.parent.iterdir()] == ["mask.png"]


def test_ids_are_palette_indices_not_colours(tmp_path):
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


def test_a_black_and_white_rgb_mask_is_binary(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.uint8([[[0] * 3, [255] * 3]])).save(path)
    assert read_mask(path, binary=True).tolist() == [[0, 1]]
    with pytest.raises(InputError, match=r"mask.png: is a colour image \(RGB\)"):
        read_mask(path)


def test_a_colour_mask_is_an_error(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.uint8([[[0, 0, 0], [128, 0, 0]]])).save(path)
    for binary in (False, True):
        with pytest.raises(InputError, match=r"mask.png: is a colour image .*indexed"):
            read_mask(path, binary=binary)


def test_ids_above_255_are_an_error(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.arange(300, dtype=np.uint16).reshape(15, 20)).save(path)
    with pytest.raises(InputError, match=r"mask.png: contains object id 299, above 255"):
        read_mask(path)


def test_sixteen_bit_masks_with_few_ids_are_read(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.array([[0, 7]], dtype=np.uint16)).save(path)
    assert read_mask(path).tolist() == [[0, 7]]


def disc(size=96):
    """A disc of 255 on 0."""
    rows, columns = np.ogrid[:size, :size]
    return np.where(
        (rows - size // 2) ** 2 + (columns - size // 2) ** 2 < (size // 3) ** 2, np.uint8(255), np.uint8(0)
    )


class TestSoftMasks:
    """With `binary=None`, black and white with soft edges is one object; shades of grey are an error."""

    def save(self, path, mask, mode="L", **options):
        Image.fromarray(mask).convert(mode).save(path, **options)
        return path

    @pytest.mark.parametrize("mode", ["L", "RGB"])
    @pytest.mark.parametrize("quality", [30, 75, 95])
    def test_jpeg(self, tmp_path, mode, quality):
        mask = read_mask(self.save(tmp_path / "mask.jpg", disc(), mode, quality=quality), binary=None)
        assert set(np.unique(mask)) == {0, 1}
        assert (mask != disc() // 255).mean() < 0.01

    @pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA"])
    @pytest.mark.parametrize("factor", [2, 4, 8])
    def test_anti_aliased_png(self, tmp_path, mode, factor):
        image = Image.fromarray(disc(96 * factor)).resize((96, 96), Image.Resampling.BOX)
        mask = read_mask(self.save(tmp_path / "mask.png", np.array(image), mode), binary=None)
        assert set(np.unique(mask)) == {0, 1}
        assert (mask != disc() // 255).mean() < 0.03

    def test_resampled_png_with_few_shades(self, tmp_path):
        square = np.zeros((48, 64), np.uint8)
        square[12:28, 8:24] = 255
        image = Image.fromarray(square).resize((128, 96), Image.Resampling.BICUBIC)
        image.resize((64, 48), Image.Resampling.LANCZOS).save(tmp_path / "mask.png")
        assert np.array_equal(read_mask(tmp_path / "mask.png", binary=None), square // 255)

    @pytest.mark.parametrize("ids", [[0, 1, 2], [0, 1, 2, 255], [0, 85, 170], [0, 40], list(range(20))])
    def test_grey_object_ids_are_kept(self, tmp_path, ids):
        mask = np.uint8(ids).repeat(64).reshape(-1, 16)
        expected = np.where(mask == 255, 0, mask)
        assert np.array_equal(read_mask(self.save(tmp_path / "mask.png", mask), binary=None), expected)

    @pytest.mark.parametrize(
        ("name", "mask"),
        [
            ("gradient.png", np.arange(256, dtype=np.uint8).repeat(16).reshape(64, 64)),
            ("gradient.jpg", np.arange(256, dtype=np.uint8).repeat(16).reshape(64, 64)),
            ("ids.jpg", np.uint8([0, 85, 170, 255]).repeat(1024).reshape(64, 64)),
            ("ids.png", np.uint8([0, 5, 9, 255]).repeat(64).reshape(-1, 16)),
            ("levels.png", np.uint8([0, 50, 100, 150, 200, 255]).repeat(64).reshape(-1, 16)),
        ],
    )
    def test_shades_of_grey_are_an_error(self, tmp_path, name, mask):
        path = self.save(tmp_path / name, mask)
        with pytest.raises(InputError, match=rf"{name}: contains shades of grey .*indexed") as raised:
            read_mask(path, binary=None)
        assert "\n" not in str(raised.value)

    def test_sixteen_bit_black_and_white_is_one_object(self, tmp_path):
        path = tmp_path / "mask.png"
        Image.fromarray(disc().astype(np.uint16) * 257).save(path)
        assert np.array_equal(read_mask(path, binary=None), disc() // 255)
        assert np.array_equal(read_mask(path, binary=True), disc() // 255)
        with pytest.raises(InputError, match=r"mask\.png: contains object id 65535"):
            read_mask(path)


@pytest.mark.parametrize("read", [read_frame, read_mask])
def test_broken_files_are_errors(tmp_path, read):
    path = tmp_path / "broken.jpg"
    with pytest.raises(InputError, match=r"broken.jpg: no such file"):
        read(path)
    path.write_text("not an image")
    with pytest.raises(InputError, match=r"broken.jpg: cannot be read as an image"):
        read(path)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(InputError, match=r"broken.jpg: cannot be read as an image"):
        read(path)
