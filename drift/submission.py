"""Archives of masks for evaluation servers: written and validated locally."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from drift.errors import InputError

__all__ = ["Submission", "check_submission", "write_submission"]


@dataclass(frozen=True)
class Submission:
    """Contents of an archive.

    Attributes:
        frames: names of the required frames, without suffix, by sequence.
        prefix: folder in the archive that contains the folders of the sequences; empty for the root.
    """

    frames: Mapping[str, Sequence[str]]
    prefix: str = ""

    def members(self) -> Iterator[tuple[str, str, str]]:
        """(sequence, frame, path in the archive) of every mask."""
        prefix = f"{self.prefix}/" if self.prefix else ""
        for sequence, frames in self.frames.items():
            for frame in frames:
                yield sequence, frame, f"{prefix}{sequence}/{frame}.png"


def write_submission(path: Path, masks: Path, submission: Submission) -> None:
    """Writes the required masks to a zip archive and validates it; on failure, no archive is left.

    Args:
        path: of the archive.
        masks: folder with `SEQUENCE/FRAME.png`.
        submission: required contents.

    Raises:
        InputError: a mask is missing or invalid; see `check_submission`.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:  # a PNG is compressed
            for sequence, frame, member in submission.members():
                file = masks / sequence / f"{frame}.png"
                if not file.is_file():
                    raise InputError(f"{file}: no such mask; it is required in {path.name}")
                archive.write(file, member)
        check_submission(partial, submission)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_submission(path: Path, submission: Submission) -> None:
    """Validates an archive: exactly the required masks, as indexed 8-bit PNGs, of one size per sequence.

    Raises:
        InputError: the archive is not a zip file, or a member is missing, superfluous or invalid.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path}: cannot be read as a zip file ({error})") from None
    with archive:
        required = {member: sequence for sequence, _, member in submission.members()}
        members = {name for name in archive.namelist() if not name.endswith("/")}
        if missing := sorted(required.keys() - members):
            raise InputError(f"{path}: lacks {missing[0]}")
        if superfluous := sorted(members - required.keys()):
            raise InputError(f"{path}: contains {superfluous[0]}, which the server does not accept")
        sizes: dict[str, tuple[int, int]] = {}
        for name, sequence in required.items():
            size = _checked_size(path, name, archive.read(name))
            if sizes.setdefault(sequence, size) != size:
                raise InputError(f"{path}: {name} is {size[0]} x {size[1]}, unlike other masks of {sequence}")


def _checked_size(path: Path, name: str, content: bytes) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if image.format != "PNG" or image.mode != "P":
                raise InputError(f"{path}: {name} is not an indexed PNG ({image.format}, {image.mode})")
            return image.size
    except (UnidentifiedImageError, OSError, SyntaxError):
        raise InputError(f"{path}: {name} cannot be read as an image") from None
