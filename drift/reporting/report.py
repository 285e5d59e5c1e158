"""`report.html`, the self-contained report of a run; `python -m drift.reporting.report RUN` rewrites it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from drift.errors import InputError
from drift.reporting.page import Cell, score_cell, write_page
from drift.reporting.results import absence_lines
from drift.reporting.run_files import RunFiles, read_run
from drift.reporting.sampled_frames import ERROR_COLOURS

__all__ = ["write_report"]

_SCORES = ("J", "F", "J&F")


def write_report(folder: Path) -> Path:
    """Writes `report.html` from the files in the output folder of a run.

    Returns:
        Path of the report.

    Raises:
        InputError: the folder is not the output folder of a run.
        OSError: the report cannot be written.
    """
    run = read_run(folder)
    path = folder / "report.html"
    scored = run.results.get("J&F") is not None
    data = {
        "clips": run.clips(),
        "error_colours": [
            {"name": name, "colour": "#{:02x}{:02x}{:02x}".format(*colour)}
            for name, colour in ERROR_COLOURS.items()
        ],
    }
    adapted = any("adaptation" in clip for clip in run.results["sequences"].values())
    columns = ["sequence", "objects", "frames", *_SCORES, "s/frame", "MB", *(["adapt s"] if adapted else [])]
    write_page(
        path,
        "report.html",
        "report.js",
        data,
        title=f"drift: {run.name}",
        settings=_settings(run.results),
        warnings=_warnings(run.results),
        tiles=_tiles(run.results),
        scored=scored,
        columns=columns,
        rows=[_row(run, name, adapted) for name in run.results["sequences"]],
        total=_total(run.results, adapted),
        versions=", ".join(f"{name} {version}" for name, version in run.results.get("versions", {}).items()),
        config=OmegaConf.to_yaml(OmegaConf.create(dict(run.results.get("config", {})))),
    )
    return path


def _settings(results: Mapping[str, Any]) -> str:
    config = results.get("config", {})
    backbone, adaptation = config.get("backbone", {}), config.get("adaptation", {})
    parts = {
        "data": _class_name(config.get("data")),
        "model": backbone.get("checkpoint"),
        "layers": ", ".join(backbone.get("layers") or []),
        "noise": _class_name(backbone.get("noise")),
        "head weighting": _class_name(adaptation.get("head_weighting")),
        "seed": results.get("seed"),
    }
    return " · ".join(f"{name}: {value}" for name, value in parts.items() if value not in (None, ""))


def _class_name(node: Mapping[str, Any] | None) -> str:
    return (node or {}).get("_target_", "").rpartition(".")[2]


def _warnings(results: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, clip in results["sequences"].items():
        lines += [f"{name}: {clip[kind]}" for kind in ("warning", "defect") if clip.get(kind)]
        absences = absence_lines(clip.get("absences", {}))
        lines += [f"{name}: {subject} has no pixels {frames}" for subject, frames in absences.items()]
    return lines


def _tiles(results: Mapping[str, Any]) -> list[dict[str, str]]:
    clips = results["sequences"]
    tiles = [
        {"name": name, "value": f"{results[name]:.3f}"}
        for name in reversed(_SCORES)
        if results.get(name) is not None
    ]
    memory = max((clip.get("peak_memory_mb", 0.0) for clip in clips.values()), default=0.0)
    tiles += [
        {"name": "seconds per frame", "value": f"{results['seconds_per_frame']:.2f}"},
        {"name": "clips", "value": str(len(clips))},
        {"name": "frames", "value": str(results["frames"])},
    ]
    if memory:
        tiles.append({"name": "peak memory in MB", "value": f"{memory:.0f}"})
    return tiles


def _row(run: RunFiles, name: str, adapted: bool) -> list[Cell]:
    clip = run.results["sequences"][name]
    objects = len(run.curves.get(name, {}).get("objects", {}))
    cells = [
        Cell(name, name),
        Cell(str(objects) if objects else "-", objects or ""),
        Cell(str(clip["frames"]), clip["frames"]),
        *(score_cell(clip.get(score)) for score in _SCORES),
        score_cell(clip["seconds_per_frame"], 2),
        score_cell(clip.get("peak_memory_mb") or None, 0),
    ]
    return cells + ([score_cell(clip.get("adaptation", {}).get("seconds"), 1)] if adapted else [])


def _total(results: Mapping[str, Any], adapted: bool) -> list[str]:
    cells = [score_cell(results.get(score)).text for score in _SCORES]
    total = ["all objects", "", str(results["frames"]), *cells, f"{results['seconds_per_frame']:.2f}", ""]
    return total + ([f"{results.get('adaptation_seconds', 0.0):.1f}"] if adapted else [])


def main() -> int:
    """Runs the command and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m drift.reporting.report", description="Rewrites report.html in the folder of a run."
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="output.dir of a run of evaluate.py")
    try:
        print(f"report: {write_report(parser.parse_args().run)}")
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
