"""Messages and colours of the page as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from drift.demo import pictures
from drift.demo.session import Progress, Session

__all__ = ["colours", "progress", "said", "state"]


def colours(objects: Sequence[int]) -> str:
    """Style sheet that shows the colour of each object before its name."""
    rules = [
        f"#objects label:nth-of-type({place}) span::before {{content: '\\25CF'; color: {pictures.colour(object_id)}; "
        "margin-right: 6px; font-size: 1.2em}"
        for place, object_id in enumerate(objects, start=1)
    ]
    return f"<style>{''.join(rules)}</style>"


def said(text: str, part: float | None = None) -> str:
    """A message; with `part` in [0, 1], also a progress bar."""
    bar = "" if part is None else f'<div class="bar"><i style="width:{part:.1%}"></i></div>'
    return f'<div role="status"><p>{escape(text)}</p>{bar}</div>'


def progress(now: Progress) -> str:
    """Message with frame, frames per second and time left."""
    left = round(now.seconds_left)
    time_left = f"{left // 60} min {left % 60} s" if left >= 60 else f"{left} s"
    text = (
        f"Frame {now.frame} · {now.done} of {now.total} · "
        f"{now.frames_per_second:.2f} frames/s · {time_left} left"
    )
    return said(text, now.done / now.total)


def state(session: Session, frame: int) -> str:
    """Message with the next step for the user."""
    if not session.edits.masks:
        return said("Click on an object in the picture. Drag for a box.")
    current = session.current_frames()
    if len(current) == len(session):
        return said(f"All {len(session)} frames are tracked.", 1.0)
    note = (
        ""
        if frame in set(current) or session.tracked(frame) is None
        else " This frame is from before the change."
    )
    return said(
        f"{len(session) - len(current)} of {len(session)} frames to track: press Track.{note}",
        len(current) / len(session),
    )
