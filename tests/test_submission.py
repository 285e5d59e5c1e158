"""Archives for evaluation servers: writing and validation."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from PIL import Image

from drift.errors import InputError
from drift.image_files import write_mask
from drift.submission import Submission, check_submission, write_submission

SUBMISSION = Submission({"a1": ["00000", "00005"], "b2": ["00003"]}, prefix="Annotations")


@pytest.fixture
def masks(tmp_path):
    for sequence, names in {"a1": ["00000", "00001", "00005"], "b2": ["00003"]}.items():
        (tmp_path / "masks" / sequence).mkdir(parents=True)
        for name in names:
            write_mask(tmp_path / "masks" / sequence / f"{name}.png", np.full((4, 6), 2, np.uint8))
    return tmp_path / "masks"


def test_the_archive_contains_exactly_the_required_masks(tmp_path, masks):
    write_submission(tmp_path / "s.zip", masks, SUBMISSION)
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        assert archive.namelist() == [
            "Annotations/a1/00000.png",
            "Annotations/a1/00005.png",
            "Annotations/b2/00003.png",
        ]
        with archive.open("Annotations/b2/00003.png") as file:
            image = Image.open(file)
            assert (image.mode, np.unique(image).tolist()) == ("P", [2])
    check_submission(tmp_path / "s.zip", SUBMISSION)


def test_a_missing_mask_leaves_no_archive(tmp_path, masks):
    (masks / "a1" / "00005.png").unlink()
    with pytest.raises(InputError, match=r"00005\.png: no such mask"):
        write_submission(tmp_path / "s.zip", masks, SUBMISSION)
    assert not (tmp_path / "s.zip").exists()


def test_invalid_archives_are_errors(tmp_path, masks):
    write_submission(tmp_path / "s.zip", masks, SUBMISSION)

    def altered(change) -> None:
        with (
            zipfile.ZipFile(tmp_path / "s.zip") as source,
            zipfile.ZipFile(tmp_path / "x.zip", "w") as target,
        ):
            members = {name: source.read(name) for name in source.namelist()}
            change(members)
            for name, content in members.items():
                target.writestr(name, content)
        check_submission(tmp_path / "x.zip", SUBMISSION)

    colour = tmp_path / "colour.png"
    Image.new("RGB", (6, 4)).save(colour)
    write_mask(tmp_path / "large.png", np.zeros((9, 9), np.uint8))
    changes = {
        "lacks Annotations/b2/00003.png": lambda m: m.pop("Annotations/b2/00003.png"),
        "contains notes.txt": lambda m: m.update({"notes.txt": b"hello"}),
        "is not an indexed PNG": lambda m: m.update({"Annotations/a1/00000.png": colour.read_bytes()}),
        "cannot be read as an image": lambda m: m.update({"Annotations/a1/00000.png": b"hello"}),
        "00005.png is 9 x 9": lambda m: m.update(
            {"Annotations/a1/00005.png": (tmp_path / "large.png").read_bytes()}
        ),
    }
    for message, change in changes.items():
        with pytest.raises(InputError, match=message):
            altered(change)
    (tmp_path / "x.zip").write_bytes(b"not a zip file")
    with pytest.raises(InputError, match="cannot be read as a zip file"):
        check_submission(tmp_path / "x.zip", SUBMISSION)
