"""Pictures inside a folder, and inside the archives that some packages keep theirs in."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

__all__ = ["Entry", "entries"]

_SUFFIXES = {".gif", ".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True)
class Entry:
    """One picture.

    Attributes:
        path: where it lies below the folder, an archive counting as a folder.
        read: gives its encoded bytes.
        text: what the package calls it; empty if it says nothing.
    """

    path: PurePosixPath
    read: Callable[[], bytes]
    text: str = ""


def entries(folder: Path) -> Iterator[Entry]:
    """Pictures below `folder`, sorted by path: files, and those in `.rcc` and `.sh3f` archives."""
    for path in sorted(folder.rglob("*")):
        inside = PurePosixPath(path.relative_to(folder))
        if path.suffix == ".rcc":
            yield from _resources(path, inside)
        elif path.suffix == ".sh3f":
            yield from _furniture(path, inside)
        elif path.suffix.lower() in _SUFFIXES:
            yield Entry(inside, path.read_bytes, _text(path.with_suffix(".txt")))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _furniture(path: Path, inside: PurePosixPath) -> Iterator[Entry]:
    """Icons of a furniture library of Sweet Home 3D: a zip archive whose catalogue names the pieces."""
    archive = zipfile.ZipFile(path)
    catalogue = archive.read("PluginFurnitureCatalog.properties").decode("latin-1")
    named = dict(re.findall(r"^name#(\d+)=(.*?)\s*$", catalogue, re.MULTILINE))
    for number, icon in re.findall(r"^icon#(\d+)=/(.*?)\s*$", catalogue, re.MULTILINE):
        yield Entry(inside / icon, partial(archive.read, icon), named.get(number, ""))


def _resources(path: Path, inside: PurePosixPath) -> Iterator[Entry]:
    """Pictures of a binary resource file of Qt: a tree of nodes, their names, and their data.

    The header has the offsets of the three parts; a node has 14 bytes, and 22 from version 2 on.
    Integers are big-endian. A folder's node gives the count and the index of its first child, a
    file's node the offset of its data, which start with their length.
    """
    data = path.read_bytes()
    version, tree, contents, names = struct.unpack_from(">4I", data, 4)
    size = 22 if version >= 2 else 14

    def content(offset: int, compressed: bool) -> bytes:
        (length,) = struct.unpack_from(">I", data, contents + offset)
        raw = data[contents + offset + 4 :][:length]
        return zlib.decompress(raw[4:]) if compressed else raw

    def walk(node: int, above: PurePosixPath) -> Iterator[Entry]:
        name_at, flags = struct.unpack_from(">IH", data, tree + node * size)
        (length,) = struct.unpack_from(">H", data, names + name_at)
        name = data[names + name_at + 6 :][: 2 * length].decode("utf-16-be")
        here = above / name if node else above
        first, second = struct.unpack_from(">2I", data, tree + node * size + 6)
        if flags & 2:
            for child in range(second, second + first):
                yield from walk(child, here)
        elif here.suffix.lower() in _SUFFIXES:
            yield Entry(here, partial(content, second, bool(flags & 1)))

    yield from sorted(walk(0, inside), key=lambda entry: entry.path)
