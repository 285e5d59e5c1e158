"""Self-contained HTML pages, rendered from templates with inlined styles, scripts and data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from drift.formats.writer import atomic_path

__all__ = ["Cell", "score_cell", "write_page"]

_FOLDER = Path(__file__).parent


class Cell(NamedTuple):
    """A table cell: its text, and the value by which rows are sorted ("" for none)."""

    text: str
    value: float | str


def score_cell(value: float | None, digits: int = 3) -> Cell:
    """A number with the given digits after the point, or a dash for None."""
    return Cell("-", "") if value is None else Cell(f"{value:.{digits}f}", value)


def write_page(path: Path, template: str, script: str, data: Any, **context: Any) -> None:
    """Renders a page and writes it atomically.

    Args:
        path: path of the HTML file.
        template: file name of the template in this folder.
        script: file name of the page's script in this folder.
        data: JSON-serialisable data for the script.
        **context: variables of the template.
    """
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template(template).render(
        style=_read("style.css"),
        charts=_read("charts.js"),
        script=_read(script),
        # Escapes `<`, so that no string in the data can close the script element.
        data=Markup(json.dumps(_without_nan(data), allow_nan=False).replace("<", "\\u003c")),
        **context,
    )
    with atomic_path(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _read(name: str) -> Markup:
    return Markup((_FOLDER / name).read_text(encoding="utf-8"))


def _without_nan(value: Any) -> Any:
    """Replaces NaN and infinity, which JSON does not support, by None."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
