"""The sessions of all users: found again after a reload, deleted some time after their tab was closed."""

from __future__ import annotations

import ipaddress
import re
import shutil
import threading
from pathlib import Path

import av

from drift.demo.session import Session
from drift.demo.tracking import TrackingModels
from drift.errors import InputError
from drift.frame_sources import open_frames

__all__ = ["Sessions", "is_local", "safe_name"]

_TOKEN = re.compile(r"[0-9a-f]{32}")


class Sessions:
    """At most one session for each tab of a browser, which has a secret token for it.

    Args:
        root: folder for all files.
        models: the models.
        max_side: see `Session`.
        max_frames: longer clips are refused.
        keep_seconds: how long a session is kept after its tab was closed, so that a reload finds it.
    """

    def __init__(
        self,
        root: Path,
        models: TrackingModels,
        *,
        max_side: int | None = None,
        max_frames: int = 3000,
        keep_seconds: float = 600.0,
    ) -> None:
        self.root, self.models, self.max_side = root, models, max_side
        self.max_frames, self.keep_seconds = max_frames, keep_seconds
        self._sessions: dict[str, Session] = {}
        self._tabs: dict[str, str] = {}  # the tab that has a token, by Gradio's hash of it
        self._timers: dict[str, threading.Timer] = {}

    def attach(self, token: str, tab: str) -> Session | None:
        """Gives a session to a tab, and takes it from another one; returns None if there is none yet."""
        _check_token(token)
        if timer := self._timers.pop(token, None):
            timer.cancel()
        self._tabs[token] = tab
        if session := self._sessions.get(token):
            session.pause()  # the tab that watched it is gone
        return self._sessions.get(token)

    def detach(self, tab: str) -> None:
        """Called when a tab is closed or reloaded: its session is deleted later, unless a tab comes back for it."""
        for token in [token for token, owner in self._tabs.items() if owner == tab]:
            if session := self._sessions.get(token):
                session.pause()
            timer = self._timers[token] = threading.Timer(self.keep_seconds, self._delete, [token])
            timer.daemon = True
            timer.start()

    def get(self, token: str, tab: str) -> Session:
        """The session of a tab.

        Raises:
            InputError: there is none, or another tab has it.
        """
        _check_token(token)
        if self._tabs.setdefault(token, tab) != tab:
            raise InputError("this clip is open in another tab; reload this page to go on here")
        if token not in self._sessions:
            raise InputError("there is no clip yet; drop a video on the page, or open the sample")
        return self._sessions[token]

    def open(self, token: str, path: Path, *, move: bool = False) -> Session:
        """Opens a clip in place of the one before.

        Args:
            token: of the tab.
            path: video file or folder of images.
            move: whether the file is the session's own from now on, to be deleted with it.

        Raises:
            InputError: it is no video, or too long.
        """
        _check_token(token)
        folder, name = self.root / token / f"{len(list((self.root / token).glob('*')))}", safe_name(path)
        folder.mkdir(parents=True)
        shown = path.name if move else str(path)
        try:
            self._check_length(path)
            if move:
                path = Path(shutil.move(path, folder / f"{name}{path.suffix}"))
            source = open_frames(path)
            if len(source.frames) > self.max_frames:
                raise self._too_long(len(source.frames))
        except (InputError, OSError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise InputError(str(error).replace(f"{path.parent}/", "")) from None
        if before := self._sessions.pop(token, None):
            before.close()
        session = Session(source, name, folder, self.models, path=shown, max_side=self.max_side)
        self._sessions[token] = session
        return session

    def close(self) -> None:
        """Deletes all sessions."""
        for token in list(self._sessions):
            self._delete(token)

    def _delete(self, token: str) -> None:
        for table in (self._tabs, self._timers):
            table.pop(token, None)
        if session := self._sessions.pop(token, None):
            session.close()
        shutil.rmtree(self.root / token, ignore_errors=True)

    def _check_length(self, path: Path) -> None:
        """Refuses by its header what would take long to decode."""
        if not path.is_file():
            return
        try:
            with av.open(str(path)) as container:
                frames = max((stream.frames for stream in container.streams.video), default=0)
        except (av.error.FFmpegError, OSError, ValueError):
            return  # `open_frames` says what is wrong
        if frames > self.max_frames:
            raise self._too_long(frames)

    def _too_long(self, frames: int) -> InputError:
        return InputError(
            f"the clip has {frames} frames, and this page takes {self.max_frames}; cut it, or start the page with "
            f"page.max_frames={frames}"
        )


def safe_name(path: Path) -> str:
    """The file's name without suffix, of letters, digits, `-` and `_` only; "clip" if none is left."""
    return re.sub(r"[^\w-]+", "_", path.resolve().stem).strip("_")[:80] or "clip"


def is_local(host: str) -> bool:
    """Whether an address is reached from this computer only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_token(token: str) -> None:
    if not _TOKEN.fullmatch(token or ""):
        raise InputError("the page is not ready; reload it")
