"""Event handlers of the page: they take values of components and return updates by component."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

import drift
from drift.demo import pictures, views
from drift.demo.export import command, write_zip, zip_path
from drift.demo.layout import Parts
from drift.demo.session import Session
from drift.demo.sessions import Sessions
from drift.errors import DriftError, InputError

__all__ = ["Handlers"]

_SAMPLE = Path(drift.__file__).parent / "assets" / "sample" / "JPEGImages" / "480p"
_PICTURES_PER_SECOND = 8.0

Updates = dict[Any, Any]


def _guarded(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: errors are shown as a warning, and no component changes."""

    @wraps(handler)
    def call(*arguments: Any) -> Any:
        try:
            return handler(*arguments)
        except (DriftError, OSError) as error:
            _warn(error)
            return gr.skip()

    return call


def _warn(error: Exception) -> None:
    if isinstance(error, OSError):
        full = error.errno == errno.ENOSPC
        reason = "the disk of the server is full" if full else error.strerror or type(error).__name__
        gr.Warning(escape(f"{reason}; what was tracked so far is kept"))
    else:
        gr.Warning(escape(str(error)))


class Handlers:
    """Handlers of all events.

    Args:
        sessions: the sessions of all users.
        parts: the components.
        words, takes_paths: see `build_page`.
    """

    def __init__(self, sessions: Sessions, parts: Parts, words: Sequence[str], *, takes_paths: bool) -> None:
        self.sessions, self.parts, self.words, self.takes_paths = sessions, parts, words, takes_paths
        self._heavy = 0  # running jobs

    # Clips

    @_guarded
    def attach(self, token: str, request: gr.Request) -> Updates:
        """The page is opened or reloaded."""
        session = self.sessions.attach(token, str(request.session_hash))
        updates = {self.parts.token: token}
        return updates if session is None else updates | self._opened(session)

    def detach(self, request: gr.Request) -> None:
        """The page is closed."""
        self.sessions.detach(str(request.session_hash))

    @_guarded
    def open_upload(self, token: str, path: str | None, request: gr.Request) -> Updates:
        """A video is uploaded."""
        if not path:
            raise InputError("no video was uploaded")
        self.sessions.attach(token, str(request.session_hash))
        try:
            session = self.sessions.open(token, Path(path), move=True)
        except InputError as error:
            _warn(error)
            return {self.parts.upload: None}
        return {self.parts.upload: None, **self._opened(session)}

    @_guarded
    def open_path(self, token: str, path: str, request: gr.Request) -> Updates:
        """A path is entered."""
        if not self.takes_paths:
            raise InputError("paths are for pages on the same computer only; upload the video")
        if not path.strip() or not Path(path).expanduser().exists():
            raise InputError(f"{path.strip() or 'the path'}: no such file or folder")
        self.sessions.attach(token, str(request.session_hash))
        return self._opened(self.sessions.open(token, Path(path).expanduser()))

    @_guarded
    def open_sample(self, token: str, request: gr.Request) -> Updates:
        """The sample clip is chosen."""
        self.sessions.attach(token, str(request.session_hash))
        return self._opened(self.sessions.open(token, next(_SAMPLE.iterdir())))

    # Showing objects

    @_guarded
    def show(self, token: str, frame: int, chosen: int | None, request: gr.Request) -> Updates:
        """Another frame or object is selected."""
        return self._view(self._session(token, request), frame, chosen)

    @_guarded
    def place(
        self,
        token: str,
        frame: int,
        tool: str,
        chosen: int | None,
        corner: tuple[float, float] | None,
        text: str,
        request: gr.Request,
    ) -> Updates:
        """A click or a box on the picture, also as numbers: `x,y` or `x0,y0,x1,y1` in pixels."""
        session = self._session(token, request)
        numbers = tuple(float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text))
        if len(numbers) == 2 and tool == "box":
            if corner is None:
                said = views.said("Now click on the opposite corner of the box.")
                return {self.parts.corner: numbers, self.parts.status: said}
            numbers = (*corner, *numbers)
        if len(numbers) == 2:
            return self._clicked(session, frame, tool, chosen, *numbers)
        if len(numbers) != 4:
            raise InputError("write x,y for a click or x0,y0,x1,y1 for a box, in pixels of the picture")
        return self._boxed(session, frame, chosen, (numbers[0], numbers[1], numbers[2], numbers[3]))

    @_guarded
    def add(self, token: str, frame: int, request: gr.Request) -> Updates:
        """An object is added."""
        session = self._session(token, request)
        return self._view(session, frame, session.add_object())

    @_guarded
    def rename(self, token: str, frame: int, chosen: int | None, name: str, request: gr.Request) -> Updates:
        """An object is renamed."""
        session = self._session(token, request)
        session.rename(_selected(chosen), name[:60])
        return self._view(session, frame, chosen)

    @_guarded
    def remove(self, token: str, frame: int, chosen: int | None, request: gr.Request) -> Updates:
        """An object is removed."""
        session = self._session(token, request)
        session.pause()
        session.remove_object(_selected(chosen))
        return self._view(session, frame, None)

    @_guarded
    def undo(self, token: str, frame: int, chosen: int | None, request: gr.Request) -> Updates:
        """The last change is undone."""
        session = self._session(token, request)
        session.pause()
        if not session.undo():
            raise InputError("nothing to undo")
        return self._view(session, frame, chosen)

    @_guarded
    def load_canvas(self, token: str, frame: int, request: gr.Request) -> Updates:
        """The frame is loaded into the editor."""
        return {self.parts.canvas: self._canvas(self._session(token, request), frame)}

    @_guarded
    def brush(
        self, token: str, frame: int, chosen: int | None, canvas: dict[str, Any] | None, request: gr.Request
    ) -> Updates:
        """The painted pixels are added to the object."""
        return self._painted(self._session(token, request), frame, chosen, canvas, np.logical_or)

    @_guarded
    def erase(
        self, token: str, frame: int, chosen: int | None, canvas: dict[str, Any] | None, request: gr.Request
    ) -> Updates:
        """The painted pixels are removed from the object."""
        return self._painted(self._session(token, request), frame, chosen, canvas, np.greater)

    @_guarded
    def take_masks(self, token: str, frame: int, path: str | None, request: gr.Request) -> Updates:
        """A mask file is uploaded."""
        session = self._session(token, request)
        session.pause()
        try:
            session.take_masks(frame, Path(path or ""))
        except InputError as error:
            _warn(InputError(str(error).replace(f"{Path(path or '').parent}/", "")))
            return {self.parts.mask: None}
        return {self.parts.mask: None, **self._view(session, frame, None)}

    # Tracking

    @_guarded
    def turn(
        self, token: str, frame: int, chosen: int | None, direction: str, request: gr.Request
    ) -> Updates:
        """The direction is changed."""
        session = self._session(token, request)
        session.pause()
        session.direction = direction
        return self._view(session, frame, chosen)

    def announce(self) -> Updates:
        """A job is requested, which may have to wait for another."""
        waits = "Waiting in line: another job is running on this server." if self._heavy else "Starting …"
        return {self.parts.status: views.said(waits)}

    def track(self, token: str, frame: int, chosen: int | None, request: gr.Request) -> Iterator[Updates]:
        """Tracks to the end, or until `pause`."""
        try:
            session = self._session(token, request)
        except DriftError as error:
            _warn(error)
            yield {self.parts.status: views.said("")}
            return
        parts, last, shown = self.parts, frame, 0.0
        self._heavy += 1
        try:
            for progress in session.track():
                last = progress.frame
                if time.monotonic() - shown > 1 / _PICTURES_PER_SECOND:
                    shown = time.monotonic()
                    yield {
                        parts.picture: pictures.picture_file(session, last),
                        parts.frame: last,
                        parts.status: views.progress(progress),
                    }
        except (DriftError, OSError) as error:
            _warn(error)
        finally:
            self._heavy -= 1
        yield self._view(session, last, chosen)

    def pause(self, token: str, request: gr.Request) -> None:
        """Tracking is paused."""
        try:
            self._session(token, request).pause()
        except DriftError as error:
            _warn(error)

    # Inspection and download

    @_guarded
    def look_inside(self, token: str, request: gr.Request) -> Updates:
        """Charts and head weights are opened."""
        return self._charts(self._session(token, request))

    def save(self, token: str, formats: Sequence[str], request: gr.Request) -> Iterator[Updates]:
        """Writes the zip."""
        try:
            session = self._session(token, request)
            line = command(session, self.words)
            self._heavy += 1
            try:
                for done, total in write_zip(session, formats, line):
                    yield {self.parts.status: views.said(f"Writing frame {done} of {total}", done / total)}
            finally:
                self._heavy -= 1
            left = len(session) - len(session.current_frames())
            note = f" {left} frames that are not tracked are left out." if left else ""
            yield {
                self.parts.zip: gr.update(value=str(zip_path(session)), visible=True),
                self.parts.status: views.said(f"The zip is ready.{note}"),
            }
        except (DriftError, OSError) as error:
            _warn(error)
            yield {self.parts.status: views.said("No zip was written.")}

    # Views

    def _session(self, token: str, request: gr.Request) -> Session:
        return self.sessions.get(token, str(request.session_hash))

    def _clicked(
        self, session: Session, frame: int, tool: str, chosen: int | None, x: float, y: float
    ) -> Updates:
        if tool == "look":
            path = session.folder / f"attention-{frame}-{x:.0f}-{y:.0f}.png"
            pictures.attention_figure(session, frame, x, y, path)
            return {
                self.parts.attention: gr.update(value=str(path), visible=True),
                self.parts.inside: gr.update(open=True),
                **self._charts(session),
            }
        object_id = _chosen(session, chosen)
        session.pause()
        session.click(frame, object_id, x, y, inside=tool != "remove")
        return self._view(session, frame, object_id)

    def _boxed(
        self, session: Session, frame: int, chosen: int | None, corners: tuple[float, float, float, float]
    ) -> Updates:
        object_id = _chosen(session, chosen)
        session.pause()
        session.box(frame, object_id, corners)
        return self._view(session, frame, object_id)

    def _painted(
        self,
        session: Session,
        frame: int,
        chosen: int | None,
        canvas: dict[str, Any] | None,
        combine: Callable[[np.ndarray, np.ndarray], np.ndarray],
    ) -> Updates:
        painted = [layer[..., 3] > 20 for layer in (canvas or {}).get("layers") or []]
        if not np.any(painted):
            raise InputError("nothing was painted; press 'Paint this frame' and paint on the picture")
        object_id = _chosen(session, chosen)
        session.pause()
        mask = session.mask(frame) == object_id
        session.paint(frame, object_id, combine(mask, np.any(painted, axis=0)))
        return {**self._view(session, frame, object_id), self.parts.canvas: self._canvas(session, frame)}

    def _canvas(self, session: Session, frame: int) -> dict[str, Any]:
        return {"background": pictures.picture(session, frame), "layers": [], "composite": None}

    def _opened(self, session: Session) -> Updates:
        height, width = session.source.size
        parts, names = self.parts, session.edits.names
        frame = min(session.edits.masks, default=0)
        line = (
            f"{session.name} · {len(session)} frame{'s' * (len(session) != 1)} of {width} x {height} pixels"
        )
        if session.source.defect:
            gr.Warning(escape(session.source.defect.replace(f"{session.folder}/", "")))
        return {
            parts.start: gr.update(open=False, label=f"Clip: {line}"),
            parts.main: gr.update(visible=True),
            parts.direction: session.direction,
            parts.zip: gr.update(value=None, visible=False),
            parts.attention: gr.update(value=None, visible=False),
            parts.charts: pictures.charts(session),
            **self._view(session, frame, min(names, default=None)),
        }

    def _view(self, session: Session, frame: int, chosen: int | None) -> Updates:
        parts, names = self.parts, session.edits.names
        chosen = chosen if chosen in names else min(names, default=None)
        has_masks = bool(session.edits.masks)
        line = command(session, self.words) if has_masks else ""
        return {
            parts.picture: pictures.picture_file(session, frame),
            parts.frame: gr.update(
                value=frame, maximum=max(len(session) - 1, 1), interactive=len(session) > 1
            ),
            parts.objects_row: gr.update(visible=bool(names)),
            parts.objects: gr.update(choices=[(name, i) for i, name in names.items()], value=chosen),
            parts.rename: names.get(chosen, "") if chosen else "",
            parts.colours: views.colours(list(names)),
            parts.corner: None,
            parts.status: views.state(session, frame),
            parts.command: line,
        }

    def _charts(self, session: Session) -> Updates:
        outcomes = pictures.outcomes(session)
        return {
            self.parts.charts: pictures.charts(session),
            self.parts.heads: pictures.head_figure(session),
            self.parts.outcomes: outcomes,
        }


def _selected(chosen: int | None) -> int:
    if chosen is None:
        raise InputError("there is no object yet; click on one in the picture")
    return chosen


def _chosen(session: Session, chosen: int | None) -> int:
    """Id of the selected object, or of the first object; 1 without objects."""
    names = session.edits.names
    return chosen if chosen and chosen in names else min(names, default=1)
