"""The archives that evaluation servers take: made of a run's masks, and checked before anyone waits for a server."""

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
    """What a server takes.

    Attributes:
        frames: the frames that it wants, without suffix, by sequence.
        below: the folder in the archive that holds the sequences' folders; empty for the archive's root.
    """

    frames: Mapping[str, Sequence[str]]
    below: str = ""

    def members(self) -> Iterator[tuple[str, str, str]]:
        """Sequence, frame and path in the archive of every mask."""
        head = f"{self.below}/" if self.below else ""
        for sequence, names in self.frames.items():
            for name in names:
                yield sequence, name, f"{head}{sequence}/{name}.png"


def write_submission(path: Path, masks: Path, submission: Submission) -> None:
    """Packs the masks that a server wants, checks the archive, and leaves it whole or not at all.

    Args:
        path: of the zip.
        masks: the folder with `SEQUENCE/FRAME.png`.
        submission: what the server takes.

    Raises:
        InputError: a mask is missing, or is not what the server takes; names it.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:  # PNGs are compressed already
            for sequence, name, member in submission.members():
                file = masks / sequence / f"{name}.png"
                if not file.is_file():
                    raise InputError(f"{file}: no such mask; {path.name} needs it")
                archive.write(file, member)
        check_submission(partial, submission)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_submission(path: Path, submission: Submission) -> None:
    """Raises unless an archive is what the server takes.

    It must hold the wanted masks and nothing else, each an indexed 8-bit PNG, all of a sequence of one size.

    Raises:
        InputError: it is no zip, lacks a mask, holds something else or a mask of another kind; names the member.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path}: cannot be read as a zip ({error})") from None
    with archive:
        wanted = {member: sequence for sequence, _, member in submission.members()}
        found = [name for name in archive.namelist() if not name.endswith("/")]
        there = set(found)
        for name in wanted:
            if name not in there:
                raise InputError(f"{path}: lacks {name}")
        for name in found:
            if name not in wanted:
                raise InputError(f"{path}: holds {name}, which the server does not want")
        sizes: dict[str, tuple[int, int]] = {}
        for name, sequence in wanted.items():
            size = _checked_size(path, name, archive.read(name))
            if sizes.setdefault(sequence, size) != size:
                raise InputError(
                    f"{path}: {name} is {size[0]} x {size[1]}, other masks of {sequence} are not"
                )


def _checked_size(path: Path, name: str, content: bytes) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            if image.format != "PNG" or image.mode != "P":
                raise InputError(f"{path}: {name} is no indexed PNG ({image.format}, {image.mode})")
            return image.size
    except (UnidentifiedImageError, OSError, SyntaxError):
        raise InputError(f"{path}: {name} cannot be read as a picture") from None
