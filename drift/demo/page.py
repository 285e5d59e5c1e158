"""The Gradio page: a layout, and events that call the session of a tab."""

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
from drift.demo import pictures
from drift.demo.export import command, write_zip, zip_path
from drift.demo.layout import Parts, make_layout
from drift.demo.session import Progress, Session
from drift.demo.sessions import Sessions
from drift.errors import DriftError, InputError

__all__ = ["build_page", "launch"]

_HERE = Path(__file__).parent
_SAMPLE = Path(drift.__file__).parent / "assets" / "sample" / "JPEGImages" / "480p"
_PICTURES_PER_SECOND = 8.0
_TOKEN = """() => {
  let token = sessionStorage.getItem("drift");
  if (!token) {
    token = [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");
    sessionStorage.setItem("drift", token);
  }
  return token;
}"""

Updates = dict[Any, Any]


def build_page(sessions: Sessions, words: Sequence[str], *, takes_paths: bool) -> gr.Blocks:
    """The page.

    Args:
        sessions: the sessions of its users.
        words: of the command line that chose the models, for the command that the page shows.
        takes_paths: whether users may open any file that this process can read.
    """
    with gr.Blocks(title="drift", analytics_enabled=False, delete_cache=(300, 1800)) as blocks:
        parts = make_layout(takes_paths=takes_paths)
        _connect(parts, _Handlers(sessions, parts, words, takes_paths=takes_paths), blocks)
    return blocks.queue(max_size=64, api_open=False)


def launch(
    page: gr.Blocks,
    host: str,
    port: int | None,
    *,
    share: bool = False,
    max_megabytes: int = 500,
    prevent_thread_lock: bool = False,
) -> str:
    """Serves the page and returns its address; with `prevent_thread_lock` at once, otherwise when interrupted."""
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        max_file_size=max_megabytes * 2**20,
        prevent_thread_lock=prevent_thread_lock,
        theme=gr.themes.Soft(
            primary_hue="teal",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ),
        css_paths=_HERE / "page.css",
        head=f"<script>{(_HERE / 'page.js').read_text(encoding='utf-8')}</script>",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        inbrowser=False,
        quiet=prevent_thread_lock,
    )
    return str(address)


def _connect(parts: Parts, do: _Handlers, blocks: gr.Blocks) -> None:
    """Connects events with handlers."""
    p, token, frame, shown = parts, parts.token, parts.frame, parts.shown
    quick: dict[str, Any] = {"outputs": shown, "show_progress": "hidden", "concurrency_limit": 8}
    heavy: dict[str, Any] = {
        "outputs": shown,
        "show_progress": "minimal",
        "show_progress_on": [p.status],
        "concurrency_id": "heavy",
        "concurrency_limit": 1,
    }
    blocks.load(do.attach, token, shown, js=_TOKEN, show_progress="hidden")
    blocks.unload(do.detach)
    p.upload.upload(do.open_upload, [token, p.upload], **quick | {"show_progress": "minimal"})
    gr.on([p.open.click, p.path.submit], do.open_path, [token, p.path], **quick)
    p.sample.click(do.open_sample, token, **quick)
    frame.input(do.show, [token, frame, p.objects], **quick, trigger_mode="always_last")
    p.picture.select(do.select, [token, frame, p.tool, p.objects, p.corner], **quick)
    gr.on([p.go.click, p.place.submit], do.place, [token, frame, p.tool, p.objects, p.place], **quick)
    p.objects.input(do.show, [token, frame, p.objects], **quick)
    p.add.click(do.add, [token, frame], **quick)
    p.rename.submit(do.rename, [token, frame, p.objects, p.rename], **quick)
    p.remove.click(do.remove, [token, frame, p.objects], **quick)
    p.undo.click(do.undo, [token, frame, p.objects], **quick)
    p.direction.input(do.turn, [token, frame, p.objects, p.direction], **quick)
    p.track.click(do.announce, [token], **quick, queue=False).then(
        do.track, [token, frame, p.objects], **heavy
    )
    p.pause.click(do.pause, token, None, queue=False, show_progress="hidden")
    p.load_canvas.click(do.load_canvas, [token, frame, p.objects], **quick)
    p.use_canvas.click(do.use_canvas, [token, frame, p.objects, p.canvas], **quick)
    p.mask.upload(do.take_masks, [token, frame, p.mask], **quick)
    p.inside.expand(do.look_inside, token, **quick)
    p.save.click(do.announce_zip, None, **quick, queue=False).then(do.save, [token, p.formats], **heavy)


def _guarded(handler: Callable[..., Any]) -> Callable[..., Any]:
    """The handler, whose errors become a sentence on the page, which stays as it is."""

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


class _Handlers:
    """What events do. Arguments are the values of components; results are updates by component."""

    def __init__(self, sessions: Sessions, parts: Parts, words: Sequence[str], *, takes_paths: bool) -> None:
        self.sessions, self.parts, self.words, self.takes_paths = sessions, parts, words, takes_paths
        self._heavy = 0  # jobs that run

    # Clips

    @_guarded
    def attach(self, token: str, request: gr.Request) -> Updates:
        """A page was opened or reloaded."""
        session = self.sessions.attach(token, str(request.session_hash))
        updates = {self.parts.token: token}
        return updates if session is None else updates | self._opened(session)

    def detach(self, request: gr.Request) -> None:
        """A page was closed."""
        self.sessions.detach(str(request.session_hash))

    @_guarded
    def open_upload(self, token: str, path: str | None, request: gr.Request) -> Updates:
        """A video was uploaded."""
        if not path:
            raise InputError("no video was uploaded")
        self.sessions.attach(token, str(request.session_hash))
        return {self.parts.upload: None, **self._opened(self.sessions.open(token, Path(path), move=True))}

    @_guarded
    def open_path(self, token: str, path: str, request: gr.Request) -> Updates:
        """A path was typed."""
        if not self.takes_paths:
            raise InputError("paths are for pages on the same computer only; upload the video")
        if not path.strip() or not Path(path).expanduser().exists():
            raise InputError(f"{path.strip() or 'the path'}: no such file or folder")
        self.sessions.attach(token, str(request.session_hash))
        return self._opened(self.sessions.open(token, Path(path).expanduser()))

    @_guarded
    def open_sample(self, token: str, request: gr.Request) -> Updates:
        """The sample clip was chosen."""
        self.sessions.attach(token, str(request.session_hash))
        return self._opened(self.sessions.open(token, next(_SAMPLE.iterdir())))

    # Showing objects

    @_guarded
    def show(self, token: str, frame: int, chosen: int | None, request: gr.Request) -> Updates:
        """Another frame or object was chosen."""
        return self._view(self._session(token, request), frame, chosen)

    @_guarded
    def select(
        self,
        token: str,
        frame: int,
        tool: str,
        chosen: int | None,
        corner: tuple[float, float] | None,
        event: gr.SelectData,
        request: gr.Request,
    ) -> Updates:
        """The picture was clicked on."""
        session, (x, y) = self._session(token, request), event.index
        if tool != "box":
            return self._clicked(session, frame, tool, chosen, x, y)
        if corner is None:
            return {
                self.parts.corner: (x, y),
                self.parts.status: _said("Now click on the opposite corner of the box."),
            }
        return self._boxed(session, frame, chosen, (*corner, x, y))

    @_guarded
    def place(
        self, token: str, frame: int, tool: str, chosen: int | None, text: str, request: gr.Request
    ) -> Updates:
        """A place was typed, or a box was dragged."""
        session = self._session(token, request)
        numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]
        if len(numbers) not in (2, 4):
            raise InputError("write x,y for a click or x0,y0,x1,y1 for a box, in pixels of the picture")
        if len(numbers) == 2:
            return self._clicked(session, frame, tool, chosen, *numbers)
        return self._boxed(session, frame, chosen, (numbers[0], numbers[1], numbers[2], numbers[3]))

    @_guarded
    def add(self, token: str, frame: int, request: gr.Request) -> Updates:
        """A new object was asked for."""
        session = self._session(token, request)
        return self._view(session, frame, session.add_object())

    @_guarded
    def rename(self, token: str, frame: int, chosen: int | None, name: str, request: gr.Request) -> Updates:
        """An object was renamed."""
        session = self._session(token, request)
        session.rename(_one(chosen), name[:60])
        return self._view(session, frame, chosen)

    @_guarded
    def remove(self, token: str, frame: int, chosen: int | None, request: gr.Request) -> Updates:
        """An object was removed."""
        session = self._session(token, request)
        session.pause()
        session.remove_object(_one(chosen))
        return self._view(session, frame, None)

    @_guarded
    def undo(self, token: str, frame: int, chosen: int | None, request: gr.Request) -> Updates:
        """The last change was taken back."""
        session = self._session(token, request)
        session.pause()
        if not session.undo():
            raise InputError("nothing to undo")
        return self._view(session, frame, chosen)

    @_guarded
    def load_canvas(self, token: str, frame: int, chosen: int | None, request: gr.Request) -> Updates:
        """The frame is to be painted on."""
        session = self._session(token, request)
        image, mask = session.frame(frame), session.mask(frame) == (chosen or 0)
        layer = np.zeros((*mask.shape, 4), np.uint8)
        if chosen:
            layer[mask] = (*_rgb(chosen), 170)
        return {self.parts.canvas: {"background": image, "layers": [layer], "composite": None}}

    @_guarded
    def use_canvas(
        self, token: str, frame: int, chosen: int | None, canvas: dict[str, Any] | None, request: gr.Request
    ) -> Updates:
        """What was painted is the mask of the object."""
        session = self._session(token, request)
        layers = (canvas or {}).get("layers") or []
        if not layers:
            raise InputError("nothing was painted; press 'Paint this frame' first")
        object_id = _chosen(session, chosen)
        session.pause()
        session.paint(frame, object_id, np.any([layer[..., 3] > 20 for layer in layers], axis=0))
        return self._view(session, frame, object_id)

    @_guarded
    def take_masks(self, token: str, frame: int, path: str | None, request: gr.Request) -> Updates:
        """A mask file was uploaded."""
        session = self._session(token, request)
        if path:
            session.pause()
            try:
                session.take_masks(frame, Path(path))
            except InputError as error:
                raise InputError(str(error).replace(f"{Path(path).parent}/", "")) from None
        return {self.parts.mask: None, **self._view(session, frame, None)}

    # Tracking

    @_guarded
    def turn(
        self, token: str, frame: int, chosen: int | None, direction: str, request: gr.Request
    ) -> Updates:
        """Another direction was chosen."""
        session = self._session(token, request)
        session.pause()
        session.direction = direction
        return self._view(session, frame, chosen)

    @_guarded
    def announce(self, token: str, request: gr.Request) -> Updates:
        """Track was pressed; the job may have to wait."""
        self._session(token, request).clip()
        waits = (
            "Waiting in line: another clip is being tracked on this server." if self._heavy else "Starting …"
        )
        return {self.parts.status: _said(waits)}

    def track(self, token: str, frame: int, chosen: int | None, request: gr.Request) -> Iterator[Updates]:
        """Tracks until the end or until Pause."""
        try:
            session = self._session(token, request)
            session.clip()
        except DriftError:  # `announce` has said so
            yield gr.skip()
            return
        parts, last, shown = self.parts, frame, 0.0
        self._heavy += 1
        try:
            yield {parts.track: gr.update(interactive=False), parts.pause: gr.update(interactive=True)}
            for progress in session.track():
                last = progress.frame
                if time.monotonic() - shown > 1 / _PICTURES_PER_SECOND:
                    shown = time.monotonic()
                    yield {
                        parts.picture: pictures.picture(session, last),
                        parts.frame: last,
                        parts.status: _progress(progress),
                    }
        except (DriftError, OSError) as error:
            _warn(error)
        finally:
            self._heavy -= 1
        yield self._view(session, last, chosen)

    def pause(self, token: str, request: gr.Request) -> None:
        """Pause was pressed."""
        try:
            self._session(token, request).pause()
        except DriftError as error:
            _warn(error)

    # Looking and taking home

    @_guarded
    def look_inside(self, token: str, request: gr.Request) -> Updates:
        """Charts and head weights are looked at."""
        return self._charts(self._session(token, request))

    @_guarded
    def announce_zip(self) -> Updates:
        """The zip was asked for; the job may have to wait."""
        waits = "Waiting in line: another job is running on this server." if self._heavy else "Writing …"
        return {self.parts.status: _said(waits)}

    def save(self, token: str, formats: Sequence[str], request: gr.Request) -> Iterator[Updates]:
        """Writes the zip."""
        try:
            session = self._session(token, request)
            line = command(session, self.words)
            self._heavy += 1
            try:
                for done, total in write_zip(session, formats, line):
                    yield {self.parts.status: _said(f"Writing frame {done} of {total}", done / total)}
            finally:
                self._heavy -= 1
            left = len(session) - len(session.current_frames())
            note = f" {left} frames that are not tracked are left out." if left else ""
            yield {
                self.parts.zip: gr.update(value=str(zip_path(session)), visible=True),
                self.parts.status: _said(f"The zip is ready.{note}"),
            }
        except (DriftError, OSError) as error:
            _warn(error)
            yield {self.parts.status: _said("No zip was written.")}

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

    def _opened(self, session: Session) -> Updates:
        height, width = session.source.size
        parts, names = self.parts, session.edits.names
        frame = min(session.edits.masks, default=0)
        line = f"{session.name}: {len(session)} frames of {width} x {height} pixels"
        if session.source.defect:
            gr.Warning(escape(session.source.defect.replace(f"{session.folder}/", "")))
        return {
            parts.start: gr.update(open=False),
            parts.main: gr.update(visible=True),
            parts.line: f"<b>{escape(session.name)}</b>{escape(line.removeprefix(session.name))}",
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
            parts.picture: pictures.picture(session, frame),
            parts.frame: gr.update(
                value=frame, maximum=max(len(session) - 1, 1), interactive=len(session) > 1
            ),
            parts.objects: gr.update(
                choices=[(name, i) for i, name in names.items()], value=chosen, visible=bool(names)
            ),
            parts.rename: names.get(chosen, "") if chosen else "",
            parts.colours: _colours(list(names)),
            parts.corner: None,
            parts.status: _state(session, frame),
            parts.track: gr.update(interactive=not session.tracking),
            parts.pause: gr.update(interactive=session.tracking),
            parts.command: line,
        }

    def _charts(self, session: Session) -> Updates:
        outcomes = pictures.outcomes(session)
        return {
            self.parts.charts: pictures.charts(session),
            self.parts.heads: pictures.head_figure(session),
            self.parts.outcomes: outcomes,
        }


def _one(chosen: int | None) -> int:
    if chosen is None:
        raise InputError("there is no object yet; click on one in the picture")
    return chosen


def _chosen(session: Session, chosen: int | None) -> int:
    """The chosen object, or the next one."""
    return chosen if chosen in session.edits.names and chosen else session.edits.with_new_object()[1]


def _rgb(object_id: int) -> tuple[int, int, int]:
    value = pictures.colour(object_id)
    return int(value[1:3], 16), int(value[3:5], 16), int(value[5:7], 16)


def _colours(objects: Sequence[int]) -> str:
    """Style sheet that puts the colour of each object before its name."""
    rules = [
        f"#objects label:nth-of-type({place}) span::before {{content: '\\25CF'; color: {pictures.colour(object_id)}; "
        "margin-right: 6px; font-size: 1.2em}"
        for place, object_id in enumerate(objects, start=1)
    ]
    return f"<style>{''.join(rules)}</style>"


def _said(text: str, part: float | None = None) -> str:
    bar = "" if part is None else f'<div class="bar"><i style="width:{part:.1%}"></i></div>'
    return f'<div role="status"><p>{escape(text)}</p>{bar}</div>'


def _progress(progress: Progress) -> str:
    left = round(progress.seconds_left)
    time_left = f"{left // 60} min {left % 60} s" if left >= 60 else f"{left} s"
    text = (
        f"Frame {progress.frame} · {progress.done} of {progress.total} · "
        f"{progress.frames_per_second:.2f} frames/s · {time_left} left"
    )
    return _said(text, progress.done / progress.total)


def _state(session: Session, frame: int) -> str:
    """What there is to do next."""
    if not session.edits.masks:
        return _said("Click on an object in the picture. Drag for a box.")
    current = session.current_frames()
    if len(current) == len(session):
        return _said(f"All {len(session)} frames are tracked.", 1.0)
    note = (
        ""
        if frame in set(current) or session.tracked(frame) is None
        else " This frame is from before the change."
    )
    return _said(
        f"{len(session) - len(current)} of {len(session)} frames to track: press Track.{note}",
        len(current) / len(session),
    )
