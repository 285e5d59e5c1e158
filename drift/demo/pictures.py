"""Figures of the page: frames with masks and prompts, attention, head weights, charts of areas and confidences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from drift.demo.session import Session
from drift.formats.overlay import draw_overlay
from drift.image_files import DAVIS_PALETTE
from drift.reporting.attention_figure import AttentionView, draw_attention
from drift.reporting.attention_maps import MAX_LAYERS
from drift.reporting.head_figure import draw_head_weights
from drift.reporting.query_points import chosen_points
from drift.reporting.shown_objects import draw_prompts

__all__ = [
    "attention_figure",
    "charts",
    "colour",
    "head_figure",
    "outcomes",
    "picture",
    "picture_file",
    "series",
]

_PICTURES = 16  # files that are kept until browsers have fetched them
_MEMORY_FRAMES = 4  # drawn, evenly spaced
_WIDTH, _HEIGHT, _LEFT, _TOP = 640, 80, 40, 24  # of a chart and its axis, in units of the SVG


def colour(object_id: int) -> str:
    """Colour of an object's outline as `#rrggbb`."""
    return "#" + "".join(f"{value // 2 + 127:02x}" for value in DAVIS_PALETTE[object_id].tolist())


def picture(session: Session, frame: int) -> np.ndarray:
    """Frame with masks, boxes and clicks drawn over it, `(height, width, 3)` RGB uint8."""
    mask = session.mask(frame)
    drawn = draw_overlay(session.frame(frame), mask)
    for (index, _), prompt in session.edits.prompts.items():
        if index == frame:
            drawn = draw_prompts(drawn, np.zeros_like(mask), [prompt])
    return drawn


def picture_file(session: Session, frame: int) -> str:
    """Writes `picture` as a JPEG with a new name and returns its path; old files are deleted."""
    folder, number = session.folder / "pictures", next(session.numbers)
    folder.mkdir(exist_ok=True)
    path = folder / f"{number}.jpg"
    Image.fromarray(picture(session, frame)).save(path, quality=90)
    (folder / f"{number - _PICTURES}.jpg").unlink(missing_ok=True)
    return str(path)


def attention_figure(session: Session, frame: int, x: float, y: float, path: Path) -> None:
    """Draws the attention of a pixel over remembered frames by layer and writes a PNG; see `Session.attention`."""
    indices, maps = session.attention(frame, x, y)
    drawn = np.unique(np.linspace(0, len(indices) - 1, _MEMORY_FRAMES).round().astype(int)).tolist()
    memory = [session.frame(indices[position]) for position in drawn]
    target = session.frame(frame)
    view = AttentionView(
        frame=target,
        frame_index=frame,
        queries=chosen_points([(x, y)], (target.shape[0], target.shape[1])),
        memory_frames=memory,
        memory_indices=[indices[position] for position in drawn],
        layers={layer: maps[layer][None, drawn] for layer in list(maps)[:MAX_LAYERS]},
    )
    draw_attention(view, path, title=f"frame {frame}: attention over {len(indices)} remembered frames")


def series(session: Session) -> dict[int, list[tuple[int, int, float]]]:
    """By object id, (frame, area in pixels, confidence) for all frames on which the object is tracked."""
    found: dict[int, list[tuple[int, int, float]]] = {}
    for frame in range(len(session)):
        tracked = session.tracked(frame)
        for object_id, area in tracked.areas.items() if tracked else ():
            assert tracked is not None
            found.setdefault(object_id, []).append((frame, area, tracked.confidences[object_id]))
    return found


def charts(session: Session) -> str:
    """SVG charts of areas and confidences over time, with marks where objects are lost."""
    found = series(session)
    if not found:
        return "<p>Areas and confidences are shown here once frames are tracked.</p>"
    largest = max(area for rows in found.values() for _, area, _ in rows) or 1
    pixels = session.source.size[0] * session.source.size[1]
    areas = {i: [(f, area / largest) for f, area, _ in rows] for i, rows in found.items()}
    confidences = {i: [(f, confidence) for f, _, confidence in rows] for i, rows in found.items()}
    lost = {i: [f for f, area, _ in rows if not area] for i, rows in found.items()}
    last, names = len(session) - 1, session.edits.names
    return (
        _legend(names, lost)
        + _chart("area, % of the frame", areas, lost, last, f"{largest / pixels:.1%}")
        + _chart("confidence", confidences, lost, last, "1")
    )


def outcomes(session: Session) -> str:
    """Outcome counts of refinement over all tracked frames as HTML."""
    counts = Counter[str]()
    for frame in range(len(session)):
        if tracked := session.tracked(frame):
            counts.update(tracked.outcomes)
    if not counts:
        return ""
    words = {
        "refined": "accepted",
        "disagrees": "refused, as they disagree with the propagated mask",
        "jumps": "refused, as their area jumps",
        "lost": "objects without a mask",
    }
    return (
        "<p>Refined masks: "
        + ", ".join(f"{n} {words.get(name, name)}" for name, n in counts.items())
        + ".</p>"
    )


def _legend(names: Mapping[int, str], lost: Mapping[int, Sequence[int]]) -> str:
    """Names and colours of objects, and the number of frames in which they are lost."""
    items = [
        f'<span><i style="background:{colour(i)}"></i>{escape(names[i])}'
        + (f": lost in {len(frames)} frame{'s' * (len(frames) != 1)}" if frames else "")
        + "</span>"
        for i, frames in lost.items()
    ]
    return f'<p class="legend">{"".join(items)}</p>'


def _chart(
    title: str,
    lines: Mapping[int, Sequence[tuple[int, float]]],
    lost: Mapping[int, Sequence[int]],
    last: int,
    highest: str,
) -> str:
    """SVG chart of values in [0, 1]."""

    def x(frame: int) -> float:
        return _LEFT + frame / max(last, 1) * (_WIDTH - _LEFT - 8)

    def y(value: float) -> float:
        return _TOP + (1 - value) * _HEIGHT

    drawn = [
        f'<polyline points="{" ".join(f"{x(f):.1f},{y(v):.1f}" for f, v in points)}" fill="none" '
        f'stroke="{colour(i)}" stroke-width="2"/>'
        for i, points in lines.items()
    ]
    drawn += [
        f'<path class="lost" d="M{x(f):.1f} {y(0) - 6}v12" stroke="{colour(i)}" stroke-width="3">'
        f"<title>lost in frame {f}</title></path>"
        for i, frames in lost.items()
        for f in frames
    ]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + _TOP + 20}" role="img" aria-label="{escape(title)} over time">'
        f'<path d="M{_LEFT} {_TOP}V{y(0)}H{_WIDTH - 8}" fill="none" stroke="currentColor" opacity=".4"/>'
        f'<text x="{_LEFT - 6}" y="{_TOP + 8}" text-anchor="end">{highest}</text>'
        f'<text x="{_LEFT - 6}" y="{y(0)}" text-anchor="end">0</text>'
        f'<text x="{_LEFT}" y="14" font-weight="600">{escape(title)}</text>'
        f'<text x="{_LEFT}" y="{y(0) + 16}">frame 0</text>'
        f'<text x="{_WIDTH - 8}" y="{y(0) + 16}" text-anchor="end">{last}</text>{"".join(drawn)}</svg>'
    )


def head_figure(session: Session) -> Image.Image:
    """Heat map of the head weights."""
    return draw_head_weights(session.head_weights(), title="head weights")
