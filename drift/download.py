"""Downloads of files and archives: with a progress bar, resumable, and verified before use."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import stat
import urllib.error
import urllib.request
import zipfile
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
_MAX_FAILURES = 4  # consecutive requests without a new byte
_TIMEOUT = 30.0  # seconds without a byte


def sha256_of(path: Path) -> str:
    """SHA-256 digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _InvalidArchiveError(InputError):
    """An archive that must be downloaded again, as opposed to a problem of the disk."""


@dataclass(frozen=True)
class Archive:
    """A zip archive of a data set.

    Attributes:
        url: of the archive.
        folder: folder in the archive that contains the data set; empty for its root.
        limit: maximum size of the unpacked archive in bytes.
    """

    url: str
    folder: str = ""
    limit: int = 40 * 2**30


def fetch_and_extract(archive: Archive, root: Path) -> None:
    """Downloads an archive and unpacks it into `root`, which is changed only once the archive is unpacked as a whole.

    Raises:
        InputError: see `download` and `extract`.
    """
    staging = root / ".download"  # on the same disk as `root`, so that files can be moved
    path = staging / archive.url.rsplit("/", 1)[-1]
    if not path.is_file():
        download(archive.url, path, sha256=None)
    try:
        extract(path, staging / "unpacked", limit=archive.limit)
    except _InvalidArchiveError:
        shutil.rmtree(staging)
        with suppress(OSError):  # not empty
            root.rmdir()
        raise
    source = staging / "unpacked" / archive.folder
    if not source.is_dir():
        raise InputError(f"{archive.url}: contains no folder {archive.folder}")
    # Lists of sequences last: they mark the data set as downloaded, see `ClipDataModule.is_downloaded`.
    files = [file for file in source.rglob("*") if file.is_file()]
    for file in sorted(files, key=lambda file: ("ImageSets" in file.parts, file)):
        target = root / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)
    shutil.rmtree(staging)


def extract(path: Path, folder: Path, *, limit: int) -> None:
    """Unpacks a zip archive into `folder`, which is replaced, and removed on failure; `limit` is in unpacked bytes.

    Raises:
        InputError: the archive is not a complete zip file, is larger than `limit`, has a member that is a link or lies
            outside `folder`, or cannot be written to the disk.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(path, members, limit)
            folder.mkdir(parents=True)
            remaining = limit
            for member in members:
                remaining -= _extract_member(path, archive, member, folder, remaining)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{path}: cannot be unpacked into {folder} ({error.strerror})") from None
        if isinstance(error, InputError) or not isinstance(error, Exception):
            raise
        raise _InvalidArchiveError(f"{path}: not a complete zip file ({error}); download it again") from None


def _check_members(path: Path, members: list[zipfile.ZipInfo], limit: int) -> None:
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in member.filename:
            raise _InvalidArchiveError(
                f"{path}: member {member.filename} is outside the folder; nothing was unpacked"
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise _InvalidArchiveError(f"{path}: member {member.filename} is a link; nothing was unpacked")
    if (size := sum(member.file_size for member in members)) > limit:
        raise _InvalidArchiveError(
            f"{path}: {size / 2**30:.1f} GiB when unpacked, more than the allowed {limit / 2**30:.1f} GiB"
        )


def _extract_member(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, limit: int
) -> int:
    """Unpacks a member and returns its actual size in bytes, because the header may state a wrong one."""
    target = folder / member.filename
    if member.is_dir():
        target.mkdir(parents=True, exist_ok=True)
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with archive.open(member) as source, target.open("wb") as file:
        while block := source.read(_BLOCK):
            size += len(block)
            if size > limit:
                raise _InvalidArchiveError(f"{path}: more data than allowed, in member {member.filename}")
            file.write(block)
    return size


def download(url: str, path: Path, *, sha256: str | None) -> None:
    """Downloads `url` to `path`.

    The file is written to `NAME.partial` and renamed once it is complete and verified; a later call resumes an
    interrupted download.

    Args:
        url: of the file.
        path: where to write it.
        sha256: expected digest in hexadecimal, or None.

    Raises:
        InputError: the server cannot be reached, the digest differs, or the file cannot be written. The message says
            where to put a file that was downloaded manually.
    """
    partial = path.with_name(f"{path.name}.partial")
    manual = f"download {url} manually and put it at {path}"
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with Progress("{task.description}", *columns) as progress:
            _fetch(url, partial, progress, progress.add_task(path.name, total=None))
        digest = None if sha256 is None else sha256_of(partial)
    except urllib.error.HTTPError as error:
        raise InputError(f"{url}: the server answered {error.code} {error.reason}; {manual}") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        kept = f" (resumes from {partial.name})" if partial.exists() else ""
        raise InputError(f"{url}: cannot be reached ({reason}); try again{kept}, or {manual}") from error
    except OSError as error:
        raise InputError(f"{partial}: cannot be written ({error.strerror})") from error
    if digest != sha256:
        partial.unlink()
        raise InputError(f"{url}: the SHA-256 digest of the download differs from the expected one; {manual}")
    os.replace(partial, path)


def _fetch(url: str, partial: Path, progress: Progress, task: TaskID) -> None:
    """Appends to `partial` until it is complete; resumes an interrupted transfer."""
    failures = 0
    while True:
        before = partial.stat().st_size if partial.exists() else 0
        try:
            if _transfer(url, partial, before, progress, task):
                return
            error: Exception = ConnectionError("the transfer was interrupted")
        except urllib.error.HTTPError:
            raise
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as failure:
            error = failure
        progressed = partial.exists() and partial.stat().st_size > before
        failures = 0 if progressed else failures + 1
        if failures == _MAX_FAILURES:
            raise error


def _transfer(url: str, partial: Path, start: int, progress: Progress, task: TaskID) -> bool:
    """Requests the bytes from `start` on; returns whether the file is complete."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # the file was complete already
        raise
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        start = start if resumed else 0  # the server ignored the range
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        progress.update(task, total=total, completed=start)
        with partial.open("ab" if resumed else "wb") as file:
            while block := response.read1(_BLOCK):
                file.write(block)
                progress.advance(task, len(block))
            size = file.tell()
    return total is None or size >= total
