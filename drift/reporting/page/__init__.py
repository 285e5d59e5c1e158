"""Pages that need nothing but a browser: templates, styles and scripts become one HTML file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

__all__ = ["Cell", "score_cell", "write_page"]

_FOLDER = Path(__file__).parent


class Cell(NamedTuple):
    """A table's cell: what is read, and the value by which it is sorted ("" for none)."""

    text: str
    value: float | str


def score_cell(value: float | None, digits: int = 3) -> Cell:
    """A number, or a dash."""
    return Cell("-", "") if value is None else Cell(f"{value:.{digits}f}", value)


def write_page(path: Path, template: str, scripts: Sequence[str], data: Any, **told: Any) -> None:
    """Writes a page, whole or not at all.

    Args:
        path: of the HTML file.
        template: its name in this folder.
        scripts: likewise, the page's own script.
        data: what the script shows; becomes JSON.
        told: what the template shows.
    """
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template(template).render(
        # Without a < nothing in the data can end its element.
        style=_included("style.css"),
        charts=_included("charts.js"),
        script=Markup("\n").join(_included(name) for name in scripts),
        data=Markup(json.dumps(_without_nan(data), allow_nan=False).replace("<", "\\u003c")),
        **told,
    )
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)


def _included(name: str) -> Markup:
    return Markup((_FOLDER / name).read_text(encoding="utf-8"))


def _without_nan(value: Any) -> Any:
    """The same with null for what JSON cannot hold, as a loss that is no number."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
