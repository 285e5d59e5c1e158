"""Components of the page, from top to bottom."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import gradio as gr

from drift.demo.export import FORMATS

__all__ = ["Parts", "make_layout"]

_BARE: dict[str, Any] = {"show_label": False, "container": False}  # the label is for screen readers
_VIDEOS = [".mp4", ".mov", ".webm", ".mkv", ".gif", ".avi", ".m4v"]


@dataclass(frozen=True)
class Parts:
    """Components by role."""

    token: Any
    start: Any
    upload: Any
    path: Any
    open: Any
    sample: Any
    main: Any
    objects_row: Any
    objects: Any
    colours: Any
    add: Any
    remove: Any
    undo: Any
    rename: Any
    tool: Any
    picture: Any
    corner: Any
    drag: Any
    drag_go: Any
    frame: Any
    place: Any
    go: Any
    direction: Any
    track: Any
    pause: Any
    status: Any
    canvas: Any
    load_canvas: Any
    brush: Any
    erase: Any
    mask: Any
    inside: Any
    attention: Any
    charts: Any
    outcomes: Any
    heads: Any
    formats: Any
    save: Any
    zip: Any
    command: Any

    @property
    def shown(self) -> list[Any]:
        """All components but buttons: the outputs of handlers."""
        components = (getattr(self, field.name) for field in fields(self))
        return [component for component in components if not isinstance(component, gr.Button)]


def make_layout(*, takes_paths: bool) -> Parts:
    """Creates all components inside the current `gr.Blocks`.

    Args:
        takes_paths: whether to show the field for paths, see `build_page`.
    """
    gr.HTML("<h1>drift</h1><p>Click on it, and it is followed.</p>", elem_id="title")
    made = {
        "token": gr.Textbox(visible="hidden", elem_id="token"),
        "corner": gr.State(None),
        # Set and pressed by page.js after clicks and drags on the picture.
        "drag": gr.Textbox(visible="hidden", elem_id="drag"),
        "drag_go": gr.Button(visible="hidden", elem_id="drag-go"),
        **_clip(takes_paths=takes_paths),
    }
    with gr.Column(visible=False, elem_id="main") as main:
        made["main"] = main
        made |= _objects() | _picture() | _tracking() | _editing() | _look_inside() | _download()
    return Parts(**made)


def _clip(*, takes_paths: bool) -> dict[str, Any]:
    with gr.Accordion("Clip", open=True, elem_id="start") as start:
        upload = gr.File(
            label="Drop a video here", file_types=_VIDEOS, type="filepath", height=150, elem_id="upload"
        )
        with gr.Row(equal_height=True):
            path = gr.Textbox(
                label="Path",
                placeholder="or the path of a video or a folder of images, on this computer",
                **_BARE,
                scale=5,
                visible=takes_paths,
                elem_id="path",
            )
            open_ = gr.Button("Open", scale=1, min_width=90, visible=takes_paths, elem_id="open")
            sample = gr.Button("Sample clip", scale=1, min_width=130, elem_id="sample")
    return {"start": start, "upload": upload, "path": path, "open": open_, "sample": sample}


def _objects() -> dict[str, Any]:
    tools = [("Add", "add"), ("Take away", "remove"), ("Box", "box"), ("Attention", "look")]
    with gr.Row(equal_height=True):
        tool = gr.Radio(
            tools,
            value="add",
            label="What a click does",
            **_BARE,
            scale=5,
            min_width=280,
            elem_id="tool",
        )
        add = gr.Button("New object", scale=1, min_width=110, elem_id="add")
        undo = gr.Button("Undo", scale=1, min_width=70, elem_id="undo")
    with gr.Row(equal_height=True, visible=False) as row:
        objects = gr.Radio([], label="Object", **_BARE, scale=5, min_width=280, elem_id="objects")
        rename = gr.Textbox(
            label="Name of the object",
            placeholder="name",
            **_BARE,
            scale=2,
            min_width=110,
            elem_id="rename",
        )
        remove = gr.Button("Remove", scale=1, min_width=70, elem_id="remove")
    return {
        "tool": tool,
        "add": add,
        "undo": undo,
        "objects_row": row,
        "objects": objects,
        "rename": rename,
        "remove": remove,
        "colours": gr.HTML("", elem_id="colours", padding=False),
    }


def _picture() -> dict[str, Any]:
    return {
        "picture": gr.Image(
            label="Picture",
            **_BARE,
            interactive=False,
            buttons=[],
            type="filepath",
            alt_text="the frame with its masks",
            elem_id="picture",
        ),
        "frame": gr.Slider(0, 1, value=0, step=1, label="Frame", buttons=[], elem_id="frame"),
    }


def _tracking() -> dict[str, Any]:
    directions = [("To the end", "forward"), ("To the start", "backward"), ("Both ways", "both")]
    with gr.Row(equal_height=True):
        track = gr.Button("Track", variant="primary", scale=2, min_width=120, elem_id="track")
        pause = gr.Button("Pause", scale=1, min_width=90, elem_id="pause")
        direction = gr.Radio(
            directions,
            value="forward",
            label="Direction",
            **_BARE,
            scale=4,
            min_width=280,
            elem_id="direction",
        )
    return {"track": track, "pause": pause, "direction": direction, "status": gr.HTML(elem_id="status")}


def _editing() -> dict[str, Any]:
    with gr.Accordion("Brush, mask file, numbers", open=False, elem_id="by-hand"):
        with gr.Row(equal_height=True):
            load = gr.Button("Paint this frame", min_width=140, elem_id="load-canvas")
            brush = gr.Button("Add what is painted", min_width=150, elem_id="brush")
            erase = gr.Button("Take it away", min_width=120, elem_id="erase")
        canvas = gr.ImageEditor(
            type="numpy",
            image_mode="RGBA",
            sources=(),
            transforms=(),
            layers=False,
            brush=gr.Brush(default_size=14, colors=["#2dd4bf"], default_color="#2dd4bf", color_mode="fixed"),
            eraser=gr.Eraser(default_size=18),
            label="Mask",
            show_label=False,
            buttons=[],
            elem_id="canvas",
        )
        with gr.Row(equal_height=True):
            place = gr.Textbox(
                label="Click or box by numbers",
                placeholder="x,y or x0,y0,x1,y1 in pixels",
                scale=4,
                min_width=180,
                elem_id="place",
            )
            go = gr.Button("Show", scale=0, min_width=90, elem_id="place-go")
        mask = gr.File(
            label="Mask of this frame: an indexed PNG, or black and white",
            file_types=[".png"],
            type="filepath",
            height=120,
            elem_id="mask",
        )
    return {
        "load_canvas": load,
        "brush": brush,
        "erase": erase,
        "canvas": canvas,
        "place": place,
        "go": go,
        "mask": mask,
    }


def _look_inside() -> dict[str, Any]:
    with gr.Accordion("Look inside", open=False, elem_id="inside") as inside:
        charts = gr.HTML(elem_id="charts")
        outcomes = gr.HTML(elem_id="outcomes")
        hint = "Attention: choose it above the picture, and click on a tracked frame."
        gr.HTML(f"<b>{hint}</b> The picture shows where that place looks in the remembered frames, by layer.")
        attention = gr.Image(
            label="Attention",
            show_label=False,
            type="filepath",
            interactive=False,
            visible=False,
            buttons=["fullscreen"],
            elem_id="attention",
        )
        heads = gr.Image(
            label="Weights of the heads",
            show_label=False,
            interactive=False,
            buttons=[],
            height=190,
            elem_id="heads",
        )
    return {"inside": inside, "attention": attention, "charts": charts, "outcomes": outcomes, "heads": heads}


def _download() -> dict[str, Any]:
    with gr.Accordion("Download", open=True, elem_id="home"):
        formats = gr.CheckboxGroup(
            [(words, name) for name, words in FORMATS.items()],
            value=["overlay", "masks", "coco"],
            label="In the zip",
            elem_id="formats",
        )
        save = gr.Button("Make the zip", elem_id="save")
        file = gr.File(label="Zip", interactive=False, visible=False, elem_id="zip")
        line = gr.Textbox(
            label="The same on the command line, in the folder of the unpacked zip",
            interactive=False,
            lines=2,
            buttons=["copy"],
            elem_id="command",
        )
    return {"formats": formats, "save": save, "zip": file, "command": line}
