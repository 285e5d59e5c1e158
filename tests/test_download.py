"""Downloads from a server that breaks off, lies, or is not there."""

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
    """Paths: /whole; /breaks sends 100 kB at a time; /anew too, but knows no ranges; /short, /less lie."""

    def do_GET(self) -> None:  # noqa: N802: the base class's name
        kind, asked = self.path.strip("/"), self.headers.get("Range")
        self.server.asked.append(asked)
        if kind == "missing":
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and kind != "anew" else 0
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
    serving.asked = []
    thread = threading.Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    yield serving
    serving.shutdown()
    serving.server_close()
    thread.join()


def url(server: ThreadingHTTPServer, kind: str) -> str:
    return f"http://127.0.0.1:{server.server_port}/{kind}"


def test_a_file_arrives_whole(server, tmp_path):
    path = tmp_path / "new" / "file"
    download(url(server, "whole"), path, sha256=DIGEST)
    assert path.read_bytes() == CONTENT
    assert sha256_of(path) == DIGEST
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_transfer_that_breaks_off_is_taken_up_where_it_was(server, tmp_path):
    download(url(server, "breaks"), tmp_path / "file", sha256=DIGEST)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=200000-"]


def test_what_an_earlier_run_left_is_used(server, tmp_path):
    (tmp_path / "file.partial").write_bytes(CONTENT[:250_000])
    download(url(server, "whole"), tmp_path / "file", sha256=DIGEST)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.asked == ["bytes=250000-"]


def test_what_was_left_whole_is_only_checked(server, tmp_path):
    (tmp_path / "file.partial").write_bytes(CONTENT)
    download(url(server, "whole"), tmp_path / "file", sha256=DIGEST)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_that_knows_no_ranges_begins_anew(server, tmp_path):
    (tmp_path / "file.partial").write_bytes(b"x" * 1000)
    download(url(server, "anew"), tmp_path / "file", sha256=DIGEST)
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_another_file_than_the_known_one_is_refused(server, tmp_path):
    with pytest.raises(InputError, match="SHA-256"):
        download(url(server, "whole"), tmp_path / "file", sha256="0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_what_a_server_that_lies_about_the_length_sends_is_checked_like_all_else(server, tmp_path):
    with pytest.raises(InputError, match="SHA-256"):
        download(url(server, "short"), tmp_path / "file", sha256="0" * 64)
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("kind", ["missing", "nobody"])
def test_what_is_not_there_is_told_with_what_to_do(kind, server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_TIMEOUT", 2.0)
    address = url(server, kind) if kind == "missing" else "http://127.0.0.1:9/file"
    with pytest.raises(InputError, match=f"put it at {tmp_path / 'file'}"):
        download(address, tmp_path / "file", sha256=DIGEST)


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file.partial").mkdir()
    with pytest.raises(InputError, match=r"file\.partial: cannot be written"):
        download(url(server, "whole"), Path(tmp_path / "file"), sha256=DIGEST)


def packed(members: dict[str, bytes], *, link: str | None = None) -> bytes:
    """A zip of files, and of a link where one is named."""
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
    def test_a_data_set_is_fetched_and_unpacked(self, server, tmp_path, monkeypatch):
        monkeypatch.setattr(sys.modules[__name__], "CONTENT", packed(GOOD))
        fetch_and_extract(Archive(url(server, "whole"), folder="DAVIS"), tmp_path / "data")
        assert (tmp_path / "data" / "JPEGImages" / "480p" / "ant" / "00000.jpg").read_bytes() == b"picture"
        assert (tmp_path / "data" / "ImageSets" / "2017" / "val.txt").is_file()
        assert [path.name for path in tmp_path.iterdir()] == ["data"]

    def test_a_broken_transfer_is_gone_on_from(self, server, tmp_path, monkeypatch):
        big = GOOD | {"DAVIS/JPEGImages/480p/ant/00001.jpg": CONTENT}
        monkeypatch.setattr(sys.modules[__name__], "CONTENT", packed(big))
        fetch_and_extract(Archive(url(server, "breaks"), folder="DAVIS"), tmp_path / "data")
        assert len(list((tmp_path / "data").rglob("*.jpg"))) == 2
        assert len(server.asked) == 4

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (packed(GOOD | {"../outside": b"x"}), "would leave the folder"),
            (packed(GOOD | {"/outside": b"x"}), "would leave the folder"),
            (packed(GOOD | {"DAVIS\\..\\..\\outside": b"x"}), "would leave the folder"),
            (packed(GOOD, link="DAVIS/link"), "is a link"),
            (packed(GOOD | {"DAVIS/bomb": b"0" * 5000}), "more than"),
            (packed(GOOD)[:-30], "is no whole zip"),
            (b"<html>sign in first</html>", "is no whole zip"),
        ],
    )
    def test_what_must_not_be_unpacked_leaves_nothing(self, server, tmp_path, monkeypatch, content, said):
        monkeypatch.setattr(sys.modules[__name__], "CONTENT", content)
        with pytest.raises(InputError, match=said):
            fetch_and_extract(Archive(url(server, "whole"), folder="DAVIS", limit=4000), tmp_path / "data")
        assert not (tmp_path / "data").exists()
        assert not list(tmp_path.rglob("outside"))
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    def test_a_member_that_lies_about_its_size_is_stopped(self, tmp_path):
        path = tmp_path / "lie.zip"
        content = packed({"a": b"0" * 9000})
        path.write_bytes(content.replace((9000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
        with pytest.raises(InputError):
            extract(path, tmp_path / "out", limit=4000)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(("kind", "is_whole"), [("short", True), ("less", False)])
    def test_a_length_that_is_a_lie(self, server, tmp_path, monkeypatch, kind, is_whole):
        """Too long a one is found out by asking for the rest; too short a one by the archive."""
        monkeypatch.setattr(sys.modules[__name__], "CONTENT", packed(GOOD))
        archive = Archive(url(server, kind), folder="DAVIS")
        if is_whole:
            fetch_and_extract(archive, tmp_path / "data")
        else:
            with pytest.raises(InputError, match="is no whole zip"):
                fetch_and_extract(archive, tmp_path / "data")
        assert (tmp_path / "data").exists() == is_whole
