"""Which pictures are found, which are left out, and what they are called."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from examples import noise
from PIL import Image

from drift.errors import InputError
from pretraining.archives import entries
from pretraining.pictures import (
    PACKAGES,
    PHOTOGRAPHS,
    find_backgrounds,
    find_cutouts,
    find_photographs,
    load_pictures,
)


def test_missing_pictures_are_an_error_that_names_every_package(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 cut-outs and 0 backgrounds") as raised:
        load_pictures(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert all(package in str(raised.value) for package in PACKAGES)


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


def _png(*shape: int, seed: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(*shape, seed=seed)).save(file, format="png")
    return file.getvalue()


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _write_library(path: Path, pieces: dict[str, str]) -> None:
    """A furniture library with an icon for each name; texture maps belong to no piece."""
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        lines = [f"icon#{i}=/a/{icon}.png\nname#{i}={name}" for i, (icon, name) in enumerate(pieces.items())]
        archive.writestr("PluginFurnitureCatalog.properties", "\n".join(lines))
        for icon in [*pieces, "texture-map"]:
            archive.writestr(f"a/{icon}.png", _png(64, 64, 4))


def _resource(version: int, files: dict[str, bytes], *, compress: bool) -> bytes:
    """A resource file of Qt with `files` in a folder "a"."""
    names, data, offsets = b"", b"", []
    for name in ("a", *files):
        offsets.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    tail = bytes(8) if version >= 2 else b""
    tree = struct.pack(">IHII", 0, 2, 1, 1) + tail
    tree += struct.pack(">IHII", offsets[0], 2, len(files), 2) + tail
    for offset, content in zip(offsets[1:], files.values(), strict=True):
        tree += struct.pack(">IHII", offset, int(compress), 0, len(data)) + tail
        stored = struct.pack(">I", len(content)) + zlib.compress(content) if compress else content
        data += struct.pack(">I", len(stored)) + stored
    start = 20
    parts = (start, start + len(tree), start + len(tree) + len(data))
    return b"qres" + struct.pack(">4I", version, *parts) + tree + data + names


@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize("compress", [False, True])
def test_pictures_of_resource_files_are_read(tmp_path: Path, version: int, compress: bool) -> None:
    files = {"owl.png": b"first", "notes.txt": b"no picture", "Ätna.webp": b"third"}
    _write(tmp_path / "b/core.rcc", _resource(version, files, compress=compress))
    found = {str(entry.path): entry.read() for entry in entries(tmp_path)}
    assert found == {"b/core.rcc/a/owl.png": b"first", "b/core.rcc/a/Ätna.webp": b"third"}


def test_furniture_is_named_by_its_catalogue_in_plain_nouns(tmp_path: Path) -> None:
    pieces = {
        "lit": "Bed",
        "ford": "Ford Focus",
        "kiste": "Box, large and old",
        "wall-plug": "Plug",
        "fox": "Fox",
    }
    _write_library(tmp_path / "usr/share/sweethome3d/furniture/Some.sh3f", pieces)
    assert [cutout.name for cutout in find_cutouts(tmp_path)] == ["bed", "car", "box"]
    assert [cutout.name for cutout in find_cutouts(tmp_path, held_out=True)] == ["fox"]


def test_backgrounds_are_kept_once_each_and_held_out_in_every_package(tmp_path: Path) -> None:
    share = tmp_path / "usr/share"
    for seed, path in enumerate(
        (
            "backgrounds/mate/nature/Garden.jpg",  # held out
            "backgrounds/mate/nature/Lake.jpg",
            "backgrounds/mate/nature/Lake_3840x2160.jpg",  # the same in another size
            "backgrounds/Wine.jpg",  # of two packages that share the folder
            "wallpapers/Kite/contents/images/1024x768.jpg",
            "wallpapers/Kite/contents/images/1280x800.jpg",  # the same in another size
            "scratch/Media/Backgrounds/Nature/Lake.jpg",  # another lake
            "scratch/Media/Backgrounds/Indoors/bedroom1.jpg",  # drawn
            "scratch/Media/Backgrounds/Nature/Garden.jpg",  # held out, whatever the package
        )
    ):
        _write(share / path, _png(260, 300, 3, seed=seed))
    _write(share / "scratch/Media/Backgrounds/Nature/small.jpg", _png(200, 300, 3))
    assert len(find_backgrounds(tmp_path)) == 4
    assert len(find_backgrounds(tmp_path, held_out=True)) == 2
