"""`Sessions` of several tabs, without a browser, and the command line of `demo.py`."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from demo_examples import CLIP, frames_folder, models
from examples import write_video

import demo
from drift.demo.sessions import Sessions, is_local, safe_name
from drift.errors import InputError

TOKEN, OTHER = "a" * 32, "b" * 32


@pytest.fixture
def sessions(tmp_path):
    return Sessions(tmp_path / "sessions", models(), max_frames=12, keep_seconds=0.05)


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "my clip.mp4", CLIP.frames)


def test_a_tab_has_a_session_of_its_own(sessions, video):
    with pytest.raises(InputError, match="there is no clip yet"):
        sessions.get(TOKEN, "tab")
    opened = sessions.open(TOKEN, video)
    assert sessions.get(TOKEN, "tab") is opened
    assert (opened.name, opened.path, len(opened)) == ("my_clip", str(video), 10)
    with pytest.raises(InputError, match="there is no clip yet"):
        sessions.get(OTHER, "other")


def test_the_last_tab_with_a_token_has_the_session(sessions, video):
    opened = sessions.open(TOKEN, video)
    assert sessions.attach(TOKEN, "first") is opened
    assert sessions.attach(TOKEN, "second") is opened
    with pytest.raises(InputError, match="open in another tab"):
        sessions.get(TOKEN, "first")
    assert sessions.attach(TOKEN, "first") is opened
    assert sessions.get(TOKEN, "first") is opened


@pytest.mark.parametrize("token", ["", "../" * 11, "A" * 32, "a" * 33])
def test_tokens_are_no_paths(sessions, video, token):
    for call in (lambda: sessions.get(token, "tab"), lambda: sessions.open(token, video)):
        with pytest.raises(InputError, match="the page is not ready"):
            call()


def test_an_upload_is_moved_to_its_session_and_replaces_the_clip_before(sessions, video):
    first = sessions.open(TOKEN, Path(shutil.copy(video, video.with_name("first.mp4"))), move=True)
    second = sessions.open(TOKEN, video, move=True)
    assert not video.exists()
    assert not first.folder.exists()
    assert second.path == "my clip.mp4"
    assert second.frame(3).shape == (48, 64, 3)


def test_the_clip_before_stays_if_the_next_is_no_video(sessions, video, tmp_path):
    first = sessions.open(TOKEN, video)
    (tmp_path / "bad.mp4").write_text("no")
    with pytest.raises(InputError, match=r"^bad.mp4: cannot be read as a video"):
        sessions.open(TOKEN, tmp_path / "bad.mp4", move=True)
    assert sessions.get(TOKEN, "tab") is first
    assert [path.name for path in (tmp_path / "sessions" / TOKEN).iterdir()] == [first.folder.name]


def test_long_clips_are_refused(sessions, tmp_path):
    long = write_video(tmp_path / "long.mp4", [*CLIP.frames, *CLIP.frames])
    folder = frames_folder(tmp_path / "folder", [*CLIP.frames, *CLIP.frames])
    for path in (long, folder):
        with pytest.raises(InputError, match="the clip has 20 frames, and this page takes 12"):
            sessions.open(TOKEN, path)


def test_a_closed_tab_is_cleaned_up_after_a_while(sessions, video):
    opened = sessions.open(TOKEN, video)
    sessions.attach(TOKEN, "tab")
    sessions.detach("another")
    assert sessions.get(TOKEN, "tab") is opened
    sessions.keep_seconds = 60
    sessions.detach("tab")
    assert sessions.attach(TOKEN, "reloaded") is opened
    assert not sessions._timers
    sessions.keep_seconds = 0
    sessions.detach("reloaded")
    for _ in range(500):
        if not opened.folder.exists():
            break
        time.sleep(0.02)
    assert not opened.folder.exists()


def test_closing_deletes_all(sessions, video, tmp_path):
    sessions.open(TOKEN, video)
    sessions.close()
    assert list((tmp_path / "sessions").iterdir()) == []


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("my clip (1).mp4", "my_clip_1"),
        ("../../etc/passwd", "passwd"),
        ("<img src=x>.mp4", "img_src_x"),
        ("Zürich.mov", "Zürich"),
        ("....mp4", "clip"),
    ],
)
def test_names_are_safe(path, name):
    assert safe_name(Path(path)) == name


def test_local_addresses():
    assert all(map(is_local, ("127.0.0.1", "localhost", "::1")))
    assert not any(map(is_local, ("0.0.0.0", "192.168.1.2", "example.org")))


def test_flags_are_options():
    words = ["--host", "0.0.0.0", "--port=80", "--share", "backbone=sd21", "--cfg", "job", "--host"]
    expected = [
        "page.host=0.0.0.0",
        "page.port=80",
        "page.share=true",
        "backbone=sd21",
        "--cfg",
        "job",
        "--host",
    ]
    assert demo.options(words) == [*expected, "adaptation=none"]
    assert demo.options(["experiment=drift"]) == ["experiment=drift"]


def test_the_page_is_served_until_it_is_interrupted(tmp_path):
    process = subprocess.Popen(
        [sys.executable, demo.__file__, "refinement=none"],
        env={**os.environ, "PYTHONPATH": str(Path(demo.__file__).parent), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = process.stdout.readline().split()[0]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address) as answer:
            page = answer.read().decode()
        assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", page)  # nothing from elsewhere
    finally:
        process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert not list(tmp_path.glob("drift-page-*"))
