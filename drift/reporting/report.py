"""`report.html`: a run in one file that needs no network; written anew by `python -m drift.reporting.report RUN`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from drift.errors import InputError
from drift.reporting.page import Cell, score_cell, write_page
from drift.reporting.run_files import RunFiles, read_run
from drift.reporting.sampled_frames import ERROR_COLOURS

__all__ = ["write_report"]

_SCORES = ("J", "F", "J&F")


def write_report(folder: Path) -> Path:
    """Writes `report.html` into a run's folder, from what the run left there.

    Returns:
        The page.

    Raises:
        InputError: the folder is no run's.
        OSError: the page cannot be written.
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
    adapted = any("adaptation" in told for told in run.results["sequences"].values())
    columns = ["sequence", "objects", "frames", *_SCORES, "s/frame", "MB", *(["adapt s"] if adapted else [])]
    write_page(
        path,
        "report.html",
        ["report.js"],
        data,
        title=f"drift: {run.name}",
        told=_told(run.results),
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


def _told(results: Mapping[str, Any]) -> str:
    config = results.get("config", {})
    parts = {
        "data": config.get("data", {}).get("_target_", "").rpartition(".")[2],
        "model": config.get("backbone", {}).get("checkpoint"),
        "layers": ", ".join(config.get("backbone", {}).get("layers", [])),
        "head weighting": config.get("adaptation", {}).get("head_weighting"),
        "seed": results.get("seed"),
    }
    return " · ".join(f"{name}: {value}" for name, value in parts.items() if value not in (None, ""))


def _warnings(results: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: {told[kind]}"
        for name, told in results["sequences"].items()
        for kind in ("warning", "defect")
        if told.get(kind)
    ]


def _tiles(results: Mapping[str, Any]) -> list[dict[str, str]]:
    clips = results["sequences"]
    tiles = [
        {"name": name, "value": f"{results[name]:.3f}"}
        for name in reversed(_SCORES)
        if results.get(name) is not None
    ]
    memory = max((told.get("peak_memory_mb", 0.0) for told in clips.values()), default=0.0)
    tiles += [
        {"name": "seconds a frame", "value": f"{results['seconds_per_frame']:.2f}"},
        {"name": "clips", "value": str(len(clips))},
        {"name": "frames", "value": str(results["frames"])},
    ]
    if memory:
        tiles.append({"name": "MB of memory at most", "value": f"{memory:.0f}"})
    return tiles


def _row(run: RunFiles, name: str, adapted: bool) -> list[Cell]:
    told = run.results["sequences"][name]
    objects = len(run.curves.get(name, {}).get("objects", {}))
    cells = [
        Cell(name, name),
        Cell(str(objects) if objects else "-", objects or ""),
        Cell(str(told["frames"]), told["frames"]),
        *(score_cell(told.get(score)) for score in _SCORES),
        score_cell(told["seconds_per_frame"], 2),
        score_cell(told.get("peak_memory_mb") or None, 0),
    ]
    return cells + ([score_cell(told.get("adaptation", {}).get("seconds"), 1)] if adapted else [])


def _total(results: Mapping[str, Any], adapted: bool) -> list[str]:
    cells = [score_cell(results.get(score)).text for score in _SCORES]
    total = ["all objects", "", str(results["frames"]), *cells, f"{results['seconds_per_frame']:.2f}", ""]
    return total + ([f"{results.get('adaptation_seconds', 0.0):.1f}"] if adapted else [])


def main() -> int:
    """Writes a run's report anew."""
    parser = argparse.ArgumentParser(
        prog="python -m drift.reporting.report", description="Writes report.html of a run anew."
    )
    parser.add_argument("run", type=Path, help="output.dir of a run of evaluate.py")
    try:
        print(f"report: {write_report(parser.parse_args().run)}")
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
