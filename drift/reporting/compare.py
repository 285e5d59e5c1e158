"""Compares runs on one HTML page: `python -m drift.reporting.compare RUN RUN ... [--output FILE]`."""

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
    """Writes a page with the scores, differing configuration keys, curves and frames of several runs.

    Args:
        folders: output folders of the runs.
        path: path of the HTML file.

    Raises:
        InputError: a folder is not the output folder of a run.
        OSError: the page cannot be written.
    """
    runs = [read_run(folder) for folder in folders]
    names = _names(runs)
    named = list(zip(names, runs, strict=True))
    clips = list(dict.fromkeys(name for run in runs for name in run.results["sequences"]))
    write_page(
        path,
        "compare.html",
        "compare.js",
        {"runs": [{"name": name, "clips": run.clips(attention=False)} for name, run in named]},
        runs=names,
        run_columns=["run", "J&F", "J", "F", "s/frame", "adapt s"],
        run_rows=[[Cell(name, name), *_run_cells(run.results)] for name, run in named],
        differences=_differences(runs),
        rows=[[Cell(clip, clip), *_clip_cells(clip, runs)] for clip in clips],
    )


def _names(runs: Sequence[RunFiles]) -> list[str]:
    """Folder names; duplicates are numbered."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: index + 1].count(name)})"
        for index, name in enumerate(names)
    ]


def _differences(runs: Sequence[RunFiles]) -> list[list[str]]:
    """Rows of a configuration key and its value in each run, for keys whose values differ."""
    configs = [settings_that_count(run.results.get("config", {})) for run in runs]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    rows = [[key, *(_text(config.get(key)) for config in configs)] for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def _text(value: str | None) -> str:
    return "not set" if value is None else str(json.loads(value))


def _run_cells(results: Mapping[str, Any]) -> list[Cell]:
    return [score_cell(results.get(key), digits) for key, digits in _COLUMNS.items()]


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
    """Runs the command and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m drift.reporting.compare",
        description="Compares several runs on one HTML page.",
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="output.dir of a run of evaluate.py"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("compare.html"), help="HTML file (default: %(default)s)"
    )
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
