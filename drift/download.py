"""Fetching a large file or an archive once: with progress, resumed where it broke off, checked before it is used."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import stat
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from drift.errors import InputError

__all__ = ["Archive", "download", "extract", "fetch_and_extract", "sha256_of"]

_BLOCK = 1 << 20
_TRIES = 4  # in a row in which nothing more came
_TIMEOUT = 30.0  # seconds without a byte


def sha256_of(path: Path) -> str:
    """The digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Unusable(InputError):
    """An archive is not to be unpacked, whatever is done about the disk."""


@dataclass(frozen=True)
class Archive:
    """A data set as its authors serve it.

    Attributes:
        url: of a zip.
        folder: the folder in it that holds the data set; empty for its root.
        limit: how many bytes it may unpack to.
    """

    url: str
    folder: str = ""
    limit: int = 40 * 2**30


def fetch_and_extract(archive: Archive, root: Path) -> None:
    """Fetches an archive and unpacks it into `root`, where nothing of it is seen before all of it is unpacked.

    Raises:
        InputError: see `download` and `extract`.
    """
    beside = root / ".download"  # on the disk that the data set is to be on
    packed = beside / archive.url.rsplit("/", 1)[-1]
    if not packed.is_file():
        download(archive.url, packed, sha256=None)
    try:
        extract(packed, beside / "unpacked", limit=archive.limit)
    except _Unusable:
        shutil.rmtree(beside)  # the next call begins anew
        with suppress(OSError):  # it may hold something else
            root.rmdir()
        raise
    source = beside / "unpacked" / archive.folder
    if not source.is_dir():
        raise InputError(f"{archive.url}: holds no folder {archive.folder}")
    # Lists last: what tells that a data set is there must not be there before its pictures.
    files = [path for path in source.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda one: ("ImageSets" in one.parts, one)):
        target = root / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    shutil.rmtree(beside)


def extract(packed: Path, folder: Path, *, limit: int) -> None:
    """Unpacks a zip into a fresh folder, of which nothing is left if that fails.

    Raises:
        InputError: it is no zip or a broken one, a member would leave the folder or is a link, it unpacks to more
            than `limit` bytes, or the disk is full; names the archive and the member.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with zipfile.ZipFile(packed) as archive:
            members = archive.infolist()
            _check_members(packed, members, limit)
            folder.mkdir(parents=True)
            left = limit
            for member in members:
                left -= _unpack(packed, archive, member, folder, left)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)):
            raise _Unusable(f"{packed}: is no whole zip ({error}); delete it, and fetch it again") from None
        if isinstance(error, OSError):
            raise InputError(f"{packed}: cannot be unpacked into {folder} ({error.strerror})") from None
        raise


def _check_members(packed: Path, members: list[zipfile.ZipInfo], limit: int) -> None:
    for member in members:
        parts = PurePosixPath(member.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in member.filename:
            raise _Unusable(
                f"{packed}: its member {member.filename} would leave the folder; nothing is unpacked"
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise _Unusable(f"{packed}: its member {member.filename} is a link; nothing is unpacked")
    if (size := sum(member.file_size for member in members)) > limit:
        raise _Unusable(
            f"{packed}: unpacks to {size / 2**30:.1f} GiB, more than the {limit / 2**30:.1f} allowed"
        )


def _unpack(packed: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, left: int) -> int:
    """Unpacks a member, and gives its size: what it says of itself may be a lie."""
    target = folder / member.filename
    if member.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with archive.open(member) as source, target.open("wb") as file:
        while block := source.read(_BLOCK):
            size += len(block)
            if size > left:
                raise _Unusable(f"{packed}: unpacks to more than is allowed, at {member.filename}")
            file.write(block)
    return size


def download(url: str, path: Path, *, sha256: str | None) -> None:
    """Fetches `url` into `path`, which appears when it is whole and, where one is known, of this digest.

    What has come lies beside it as `NAME.partial`; the same call goes on from there.

    Raises:
        InputError: the server cannot be reached, sends something else, or the disk is full. The message says
            where to put the file by hand.
    """
    partial = path.with_name(f"{path.name}.partial")
    by_hand = f"fetch {url} elsewhere and put it at {path}"
    columns = (
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with Progress(*columns) as progress:
            _fetch(url, partial, progress, progress.add_task(path.name, total=None))
        digest = None if sha256 is None else sha256_of(partial)
    except urllib.error.HTTPError as error:
        raise InputError(f"{url}: the server says {error.code} {error.reason}; {by_hand}") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        kept = f"what came is kept in {partial.name}; " if partial.exists() else ""
        raise InputError(f"{url}: cannot be reached ({reason}); {kept}try again, or {by_hand}") from error
    except OSError as error:
        raise InputError(f"{partial}: cannot be written ({error.strerror}); what came is kept") from error
    if digest != sha256:
        partial.unlink()
        raise InputError(f"{url}: what came is not the file that is known by its SHA-256; {by_hand}")
    os.replace(partial, path)


def _fetch(url: str, partial: Path, progress: Progress, task: TaskID) -> None:
    """Appends to `partial` until all is there; a transfer that breaks off is taken up again."""
    failures = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            if _transfer(url, partial, before, progress, task):
                return
            error: Exception = ConnectionError("the transfer breaks off")
        except urllib.error.HTTPError:
            raise
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as failure:
            error = failure
        came = partial.exists() and partial.stat().st_size > before
        failures = 0 if came else failures + 1
        if failures == _TRIES:
            raise error


def _transfer(url: str, partial: Path, start: int, progress: Progress, task: TaskID) -> bool:
    """One request for what is missing; whether all is there now."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # nothing is missing; the digest tells whether it is the file
        raise
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        start = start if resumed else 0  # a server that knows no ranges begins anew
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        progress.update(task, total=total, completed=start)
        with partial.open("ab" if resumed else "wb") as file:
            for block in _blocks(response):
                file.write(block)
                progress.advance(task, len(block))
            came = file.tell()
    return total is None or came >= total


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while block := response.read1(_BLOCK):
        yield block
