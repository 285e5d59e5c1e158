"""Download of a session: a zip with masks and videos, and the command that gives the same masks."""

from __future__ import annotations

import shlex
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from drift.demo.session import Session
from drift.errors import InputError
from drift.formats import SegmentedFrame, make_writers

__all__ = ["FORMATS", "command", "write_zip"]

FORMATS = {
    "overlay": "overlay video",
    "masks": "indexed PNGs",
    "coco": "COCO",
    "cutout_png": "cut-outs",
}
"""Labels of the offered formats by their names in `output.formats`."""


def command(session: Session, overrides: Sequence[str]) -> str:
    """Command line that gives the masks of the session when run in the folder of the unpacked zip.

    Args:
        session: the session.
        overrides: overrides that chose the models.

    Raises:
        InputError: no object has been shown.
    """
    if not session.edits.masks:
        raise InputError("no object has been shown yet; click on one in the picture")
    files = ", ".join(f"{index}: {_given_name(index)}" for index in session.edits.masks)
    words = ["data=video", f"data.path={session.path}", f"data.masks={{{files}}}"]
    if session.direction != "forward":
        words.append(f"data.direction={session.direction}")
    if session.max_side is not None:
        words.append(f"data.max_side={session.max_side}")
    return " ".join(["python evaluate.py", *map(shlex.quote, [*words, *overrides])])


def write_zip(session: Session, formats: Sequence[str], line: str) -> Iterator[tuple[int, int]]:
    """Writes `download/NAME.zip` in the folder of the session, with all frames whose masks are current.

    Yields:
        Number of frames written so far, and number of frames to write.

    Raises:
        InputError: nothing was tracked, or no format is chosen.
        OSError: the disk is full.
    """
    frames = session.current_frames()
    if not frames:
        raise InputError("nothing is tracked yet; show an object and press Track")
    if not formats:
        raise InputError("choose at least one format")
    folder = session.folder / "download"
    shutil.rmtree(folder, ignore_errors=True)
    content = folder / session.name
    for done, _ in enumerate(_write_frames(session, formats, frames, content), start=1):
        yield done, len(frames)
    for index, path in session.edits.masks.items():
        (content / _given_name(index)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, content / _given_name(index))
    (content / "command.txt").write_text(line + "\n", encoding="utf-8")
    with zipfile.ZipFile(zip_path(session), "w") as archive:  # the files are compressed already
        for path in sorted(path for path in content.rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(content))
    shutil.rmtree(content)


def zip_path(session: Session) -> Path:
    """Path of the archive that `write_zip` writes."""
    return session.folder / "download" / f"{session.name}.zip"


def _write_frames(
    session: Session, formats: Sequence[str], frames: Sequence[int], root: Path
) -> Iterator[None]:
    clip, objects, places = session.clip(), tuple(session.edits.names), {f: n for n, f in enumerate(frames)}
    part = replace(
        clip,
        frames=clip.frames[: len(frames)],
        frame_names=[clip.frame_names[index] for index in frames],
        given={0: session.mask(frames[0])},
        audio=clip.audio if frames[0] == 0 else None,
    )
    writers = make_writers(formats, part, root)
    try:
        for index, frame in enumerate(clip.frames):
            if index not in places:
                continue
            place, name, time = places[index], clip.frame_names[index], clip.time(index)
            segmented = SegmentedFrame(place, name, time, frame, session.mask(index), objects)
            for writer in writers:
                writer.add(segmented)
            yield
    finally:
        for writer in writers:
            writer.close()


def _given_name(index: int) -> str:
    return f"given/{index:05d}.png"
