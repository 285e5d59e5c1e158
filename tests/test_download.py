"""Downloads from a server that breaks off, lies, or is not there."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from drift import download as module
from drift.download import download, sha256_of
from drift.errors import InputError

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Paths: /whole; /breaks sends 100 kB at a time; /anew too, but knows no ranges; /short lies about the length."""

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
        self.send_header("Content-Length", str(len(body) + (1000 if kind == "short" else 0)))
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
