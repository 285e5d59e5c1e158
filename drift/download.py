"""Fetching a large file once: with progress, resumed where it broke off, and checked before it is used."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from drift.errors import InputError

__all__ = ["download", "sha256_of"]

_BLOCK = 1 << 20
_TRIES = 4  # in a row in which nothing more came
_TIMEOUT = 30.0  # seconds without a byte


def sha256_of(path: Path) -> str:
    """The digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url: str, path: Path, *, sha256: str) -> None:
    """Fetches `url` into `path`, which appears when it is whole and of this digest.

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
        digest = sha256_of(partial)
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
