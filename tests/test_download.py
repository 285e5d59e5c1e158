"""Downloads from a server that interrupts transfers, states wrong lengths, or cannot be reached."""

from __future__ import annotations

import hashlib
import io
import stat
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from drift import download as module
from drift.download import Archive, download, extract, fetch_and_extract, sha256_of
from drift.errors import InputError

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """/whole; /breaks: 100 kB per request; /anew: no range requests; /short, /less: wrong Content-Length."""

    def do_GET(self) -> None:
        kind, requested = self.path.strip("/"), self.headers.get("Range")
        self.server.ranges.append(requested)
        if kind == "missing":
            self.send_error(404)
            return
        start = int(requested.removeprefix("bytes=").rstrip("-")) if requested and kind != "anew" else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) + {"short": 1000, "less": -40}.get(kind, 0)))
        self.end_headers()
        self.wfile.write(body[:100_000] if kind == "breaks" else body)

    def log_message(self, *arguments: object) -> None:
        """Silent."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving.ranges = []
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    yield serving
    serving.shutdown()
    serving.server_close()
    thread.join()


def url(server: ThreadingHTTPServer, kind: str) -> str:
    return f"http://127.0.0.1:{server.server_port}/{kind}"


def test_a_file_is_downloaded(server, tmp_path):
    path = tmp_path / "new" / "file"
    download(url(server, "whole"), path, sha256=DIGEST)
    assert path.read_bytes() == CONTENT
    assert sha256_of(path) == DIGEST
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_an_interrupted_transfer_is_resumed(server, tmp_path):
    download(url(server, "breaks"), tmp_path / "file", sha256=DIGEST)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=200000-"]


def test_a_partial_file_of_an_earlier_run_is_resumed(server, tmp_path):
    (tmp_path / "file.partial").write_bytes(CONTENT[:250_000])
    download(url(server, "whole"), tmp_path / "file", sha256=DIGEST)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == ["bytes=250000-"]


def test_a_complete_partial_file_is_only_verified(server, tmp_path):
    (tmp_path / "file.partial").write_bytes(CONTENT)
    download(url(server, "whole"), tmp_path / "file", sha256=DIGEST)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_without_range_requests_the_download_restarts(server, tmp_path):
    (tmp_path / "file.partial").write_bytes(b"x" * 1000)
    download(url(server, "anew"), tmp_path / "file", sha256=DIGEST)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_file_with_another_digest_is_removed(server, tmp_path):
    with pytest.raises(InputError, match="SHA-256"):
        download(url(server, "whole"), tmp_path / "file", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_a_wrong_content_length_is_verified(server, tmp_path):
    with pytest.raises(InputError, match="SHA-256"):
        download(url(server, "short"), tmp_path / "file", sha256="0" * 64)
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("kind", ["missing", "nobody"])
def test_an_unreachable_file_is_an_error_that_says_what_to_do(kind, server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TIMEOUT", 2.0)
    address = url(server, kind) if kind == "missing" else "http://127.0.0.1:9/file"
    with pytest.raises(InputError, match=f"put it at {tmp_path / 'file'}"):
        download(address, tmp_path / "file", sha256=DIGEST)


def test_a_path_that_cannot_be_written_is_an_error(server, tmp_path):
    (tmp_path / "file.partial").mkdir()
    with pytest.raises(InputError, match=r"file\.partial: cannot be written"):
        download(url(server, "whole"), Path(tmp_path / "file"), sha256=DIGEST)


def zipped(members: dict[str, bytes], *, link: str | None = None) -> bytes:
    """A zip archive of files and, optionally, a symbolic link."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, body in members.items():
            archive.writestr(name, body)
        if link:
            member = zipfile.ZipInfo(link)
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(member, "/etc/passwd")
    return content.getvalue()


GOOD = {"DAVIS/JPEGImages/480p/ant/00000.jpg": b"picture", "DAVIS/ImageSets/2017/val.txt": b"ant\n"}


class TestArchives:
    def test_a_data_set_is_downloaded_and_unpacked(self, server, tmp_path, monkeypatch):
        monkeypatch.setattr(sys.modules[__name__], "CONTENT", zipped(GOOD))
        fetch_and_extract(Archive(url(server, "whole"), folder="DAVIS"), tmp_path / "data")
        assert (tmp_path / "data" / "JPEGImages" / "480p" / "ant" / "00000.jpg").read_bytes() == b"picture"
        assert (tmp_path / "data" / "ImageSets" / "2017" / "val.txt").is_file()
        assert [path.name for path in tmp_path.iterdir()] == ["data"]

    def test_an_interrupted_download_is_resumed(self, server, tmp_path, monkeypatch):
        big = GOOD | {"DAVIS/JPEGImages/480p/ant/00001.jpg": CONTENT}
        monkeypatch.setattr(sys.modules[__name__], "CONTENT", zipped(big))
        fetch_and_extract(Archive(url(server, "breaks"), folder="DAVIS"), tmp_path / "data")
        assert len(list((tmp_path / "data").rglob("*.jpg"))) == 2
        assert len(server.ranges) == 4

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (zipped(GOOD | {"../outside": b"x"}), "is outside the folder"),
            (zipped(GOOD | {"/outside": b"x"}), "is outside the folder"),
            (zipped(GOOD | {"DAVIS\\..\\..\\outside": b"x"}), "is outside the folder"),
            (zipped(GOOD, link="DAVIS/link"), "is a link"),
            (zipped(GOOD | {"DAVIS/bomb": b"0" * 5000}), "more than the allowed"),
            (zipped(GOOD)[:-30], "not a complete zip file"),
            (b"<html>sign in first</html>", "not a complete zip file"),
        ],
    )
    def test_a_rejected_archive_leaves_no_files(self, server, tmp_path, monkeypatch, content, message):
        monkeypatch.setattr(sys.modules[__name__], "CONTENT", content)
        with pytest.raises(InputError, match=message):
            fetch_and_extract(Archive(url(server, "whole"), folder="DAVIS", limit=4000), tmp_path / "data")
        assert not (tmp_path / "data").exists()
        assert not list(tmp_path.rglob("outside"))
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    def test_a_member_larger_than_its_header_says_is_rejected(self, tmp_path):
        path = tmp_path / "archive.zip"
        content = zipped({"a": b"0" * 9000})
        path.write_bytes(content.replace((9000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
        with pytest.raises(InputError):
            extract(path, tmp_path / "out", limit=4000)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(("kind", "complete"), [("short", True), ("less", False)])
    def test_a_wrong_content_length(self, server, tmp_path, monkeypatch, kind, complete):
        """Too long: the request for the rest fails, all bytes are there. Too short: the archive is truncated."""
        monkeypatch.setattr(sys.modules[__name__], "CONTENT", zipped(GOOD))
        archive = Archive(url(server, kind), folder="DAVIS")
        if complete:
            fetch_and_extract(archive, tmp_path / "data")
        else:
            with pytest.raises(InputError, match="not a complete zip file"):
                fetch_and_extract(archive, tmp_path / "data")
        assert (tmp_path / "data").exists() == complete
