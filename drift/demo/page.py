"""The Gradio page: layout, events and server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from drift.demo.handlers import Handlers
from drift.demo.layout import Parts, make_layout
from drift.demo.sessions import Sessions

__all__ = ["build_page", "launch"]

_HERE = Path(__file__).parent
_FORM = 2**20  # bytes of a request in addition to its file
_TOKEN = """() => {
  let token = sessionStorage.getItem("drift");
  if (!token) {
    token = [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, "0")).join("");
    sessionStorage.setItem("drift", token);
  }
  return token;
}"""


def build_page(sessions: Sessions, words: Sequence[str], *, takes_paths: bool) -> gr.Blocks:
    """Builds the page.

    Args:
        sessions: sessions of all users.
        words: overrides that chose the models, repeated in the command that the page shows.
        takes_paths: whether users may open files of the server by path.
    """
    with gr.Blocks(title="drift", analytics_enabled=False, delete_cache=(300, 1800)) as blocks:
        parts = make_layout(takes_paths=takes_paths)
        _connect(parts, Handlers(sessions, parts, words, takes_paths=takes_paths), blocks)
    return blocks.queue(max_size=64, api_open=False)


def launch(
    page: gr.Blocks,
    host: str,
    port: int | None,
    *,
    share: bool = False,
    max_megabytes: int = 500,
) -> str:
    """Serves the page in the background; returns its address.

    Args:
        page: see `build_page`.
        host, port: address to listen on; None for the first free port from 7860.
        share: whether Gradio's server provides a public address.
        max_megabytes: limit of an upload.

    Raises:
        OSError: the port is in use.
    """
    _, address, public = page.launch(
        server_name=host,
        server_port=port,
        share=share,
        max_file_size=max_megabytes * 2**20,
        prevent_thread_lock=True,
        app_kwargs={"middleware": [Middleware(_Bounded, limit=max_megabytes * 2**20 + _FORM)]},
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
        quiet=True,
    )
    return public or address


def _connect(parts: Parts, do: Handlers, blocks: gr.Blocks) -> None:
    """Connects events to handlers."""
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
    gr.on(
        [p.go.click, p.place.submit], do.place, [token, frame, p.tool, p.objects, p.corner, p.place], **quick
    )
    p.drag_go.click(do.place, [token, frame, p.tool, p.objects, p.corner, p.drag], **quick)
    p.objects.input(do.show, [token, frame, p.objects], **quick)
    p.add.click(do.add, [token, frame], **quick)
    p.rename.submit(do.rename, [token, frame, p.objects, p.rename], **quick)
    p.remove.click(do.remove, [token, frame, p.objects], **quick)
    p.undo.click(do.undo, [token, frame, p.objects], **quick)
    p.direction.input(do.turn, [token, frame, p.objects, p.direction], **quick)
    p.track.click(do.announce, None, **quick, queue=False).then(do.track, [token, frame, p.objects], **heavy)
    p.pause.click(do.pause, token, None, queue=False, show_progress="hidden")
    p.load_canvas.click(do.load_canvas, [token, frame], **quick)
    p.brush.click(do.brush, [token, frame, p.objects, p.canvas], **quick)
    p.erase.click(do.erase, [token, frame, p.objects, p.canvas], **quick)
    p.mask.upload(do.take_masks, [token, frame, p.mask], **quick)
    p.inside.expand(do.look_inside, token, **quick)
    p.save.click(do.announce, None, **quick, queue=False).then(do.save, [token, p.formats], **heavy)


class _Bounded:
    """Middleware that refuses requests whose content length exceeds `limit` bytes, without reading them."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        announced = dict(scope.get("headers", ())).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self.limit:
            await PlainTextResponse("the file is too large", status_code=413)(scope, receive, send)
        else:
            await self.app(scope, receive, send)
