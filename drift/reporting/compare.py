"""Several runs side by side in one page: `python -m drift.reporting.compare RUN RUN ... [--output FILE]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drift.errors import InputError
from drift.reporting.page import Cell, score_cell, write_page
from drift.reporting.run_files import RunFiles, read_run
from drift.resuming import settings_that_count

__all__ = ["write_comparison"]

_COLUMNS = {"J&F": 3, "J": 3, "F": 3, "seconds_per_frame": 2, "adaptation_seconds": 1}


def write_comparison(folders: Sequence[Path], path: Path) -> None:
    """Writes a page of several runs; scores, configurations and clips that differ stand beside each other.

    Raises:
        InputError: a folder is no run's.
        OSError: the page cannot be written.
    """
    runs = [read_run(folder) for folder in folders]
    names = _names(runs)
    clips = list(dict.fromkeys(name for run in runs for name in run.results["sequences"]))
    write_page(
        path,
        "compare.html",
        ["compare.js"],
        {
            "runs": [
                {"name": name, "clips": run.clips(attention=False)}
                for name, run in zip(names, runs, strict=True)
            ]
        },
        runs=names,
        run_columns=["run", "J&F", "J", "F", "s/frame", "adapt s"],
        run_rows=[
            [
                Cell(name, name),
                *(score_cell(run.results.get(key), digits) for key, digits in _COLUMNS.items()),
            ]
            for name, run in zip(names, runs, strict=True)
        ],
        differences=_differences(runs),
        rows=[[Cell(clip, clip), *_clip_cells(clip, runs)] for clip in clips],
    )


def _names(runs: Sequence[RunFiles]) -> list[str]:
    """Folder names; those that are not unique are numbered."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: place + 1].count(name)})"
        for place, name in enumerate(names)
    ]


def _differences(runs: Sequence[RunFiles]) -> list[list[str]]:
    settings = [settings_that_count(run.results.get("config", {})) for run in runs]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    rows = [[key, *(_shown(one.get(key)) for one in settings)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def _shown(value: str | None) -> str:
    return "not set" if value is None else str(json.loads(value))


def _clip_cells(clip: str, runs: Sequence[RunFiles]) -> list[Cell]:
    scores = [_score(run.results, clip) for run in runs]
    first = scores[0]
    cells = [score_cell(first)]
    for score in scores[1:]:
        cell = score_cell(score)
        if score is not None and first is not None:
            cell = Cell(f"{cell.text} ({100 * (score - first):+.1f})", cell.value)
        cells.append(cell)
    return cells


def _score(results: Mapping[str, Any], clip: str) -> float | None:
    return results["sequences"].get(clip, {}).get("J&F")


def main() -> int:
    """Writes the page."""
    parser = argparse.ArgumentParser(
        prog="python -m drift.reporting.compare",
        description="Puts several runs side by side in one HTML page.",
    )
    parser.add_argument("runs", type=Path, nargs="+", help="output.dir of each run of evaluate.py")
    parser.add_argument("--output", type=Path, default=Path("compare.html"), help="the page (compare.html)")
    options = parser.parse_args()
    try:
        write_comparison(options.runs, options.output)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"comparison: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
