"""Sessions of all users, which survive a reload and are deleted some time after their tab is closed."""

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
    """At most one session per browser tab, identified by a secret token of the tab.

    Args:
        root: folder for all files.
        models: the models.
        max_side: see `Session`.
        max_frames: longer clips are refused.
        keep_seconds: time until the session of a closed tab is deleted.
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
        self._tabs: dict[str, str] = {}  # token -> Gradio's hash of the tab
        self._timers: dict[str, threading.Timer] = {}

    def attach(self, token: str, tab: str) -> Session | None:
        """Assigns the session of `token` to a tab and returns it, or None if no clip is open."""
        _check_token(token)
        if timer := self._timers.pop(token, None):
            timer.cancel()
        self._tabs[token] = tab
        if session := self._sessions.get(token):
            session.pause()  # its progress is shown nowhere any more
        return self._sessions.get(token)

    def detach(self, tab: str) -> None:
        """Schedules the deletion of a closed tab's session, which `attach` cancels."""
        for token in [token for token, owner in self._tabs.items() if owner == tab]:
            if session := self._sessions.get(token):
                session.pause()
            timer = self._timers[token] = threading.Timer(self.keep_seconds, self._delete, [token])
            timer.daemon = True
            timer.start()

    def get(self, token: str, tab: str) -> Session:
        """The session of a tab.

        Raises:
            InputError: no clip is open, or it is open in another tab.
        """
        _check_token(token)
        if self._tabs.setdefault(token, tab) != tab:
            raise InputError("this clip is open in another tab; reload this page to go on here")
        if token not in self._sessions:
            raise InputError("there is no clip yet; drop a video on the page, or open the sample")
        return self._sessions[token]

    def open(self, token: str, path: Path, *, move: bool = False) -> Session:
        """Opens a clip and closes the previous clip of the token.

        Args:
            token: token of the tab.
            path: video file or folder of images.
            move: whether to move the file into the session's folder, which is deleted with the session.

        Raises:
            InputError: the file is no video, or the clip is too long.
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
        """Checks the number of frames in the header, before the file is decoded."""
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
    """File name without suffix, reduced to letters, digits, `-` and `_`; "clip" if nothing is left."""
    return re.sub(r"[^\w-]+", "_", path.resolve().stem).strip("_")[:80] or "clip"


def is_local(host: str) -> bool:
    """Whether an address is a loopback address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_token(token: str) -> None:
    if not _TOKEN.fullmatch(token or ""):
        raise InputError("the page is not ready; reload it")
