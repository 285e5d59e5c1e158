"""The table of a sweep: one row for each configuration, on the screen and in `summary.csv`."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

__all__ = ["ERROR_FILE", "SweepRow", "SweepSummary", "summary_table", "sweep_rows", "write_summary"]

ERROR_FILE = "error.txt"
"""In the folder of a run that failed: why."""

_COLUMNS = ("J", "F", "J&F", "seconds_per_frame", "adaptation_seconds")


@dataclass(frozen=True)
class SweepRow:
    """One configuration of a sweep.

    Attributes:
        name: what sets it apart: its overrides that not all configurations share.
        folder: its `output.dir`, below the sweep's.
        figures: by column; None where there is none, as for a run that failed.
    """

    name: str
    folder: str
    figures: dict[str, float | None]


def sweep_rows(root: Path) -> list[SweepRow]:
    """The rows of all configurations that left results below `root`, in the order of their numbers."""
    folders = sorted((p for p in root.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    found = []
    for folder in folders:
        overrides = folder / "overrides.json"
        if overrides.is_file():
            results = folder / "results.json"
            has_results = results.is_file() and not (folder / ERROR_FILE).is_file()
            figures = json.loads(results.read_text("utf-8")) if has_results else {}
            found.append((folder.name, json.loads(overrides.read_text("utf-8")), figures))
    shared = set.intersection(*(set(words) for _, words, _ in found)) if len(found) > 1 else set()
    return [
        SweepRow(
            (" ".join(word for word in words if word not in shared) or "as configured")
            + (" (failed)" if (root / folder / ERROR_FILE).is_file() else ""),
            folder,
            {column: figures.get(column) for column in _COLUMNS},
        )
        for folder, words, figures in found
    ]


def write_summary(path: Path, rows: Sequence[SweepRow]) -> None:
    """One line for each row, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("configuration", "folder", *_COLUMNS))
        for row in rows:
            cells = [row.figures[column] for column in _COLUMNS]
            writer.writerow(
                (row.name, row.folder, *("" if cell is None else f"{cell:.6f}" for cell in cells))
            )
    os.replace(partial, path)


def summary_table(rows: Sequence[SweepRow]) -> Table:
    """The rows for the screen; the best J&F stands out."""
    table = Table(title="Configurations", title_style="bold", header_style="bold")
    table.add_column("configuration", overflow="fold")
    for column in ("J", "F", "J&F", "s/frame", "adapt s"):
        table.add_column(column, justify="right")
    best = max((row.figures["J&F"] or 0.0 for row in rows), default=0.0)
    for row in rows:
        values = [row.figures[column] for column in _COLUMNS]
        digits = (3, 3, 3, 2, 1)
        cells = ["-" if v is None else f"{v:.{d}f}" for v, d in zip(values, digits, strict=True)]
        table.add_row(row.name, *cells, style="bold" if best and values[2] == best else "")
    return table


class SweepSummary(Callback):
    """Hydra's callback: keeps what each configuration of a sweep overrides, and sums up at the end.

    Attributes:
        failed: how many runs of the sweep that ended last failed; Hydra makes the callback, and hands nothing out.
    """

    failed: ClassVar[int] = 0

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Forgets which folders an earlier sweep in the same place had."""
        for overrides in Path(config.hydra.sweep.dir).glob("*/overrides.json"):
            overrides.unlink()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Writes a configuration's overrides into its folder."""
        folder = Path(config.hydra.runtime.output_dir)
        if config.hydra.mode.name == "MULTIRUN" and folder.is_dir():
            words = list(job_return.overrides or [])
            (folder / "overrides.json").write_text(json.dumps(words) + "\n", encoding="utf-8")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints the table and writes `summary.csv` into the sweep's folder."""
        root = Path(config.hydra.sweep.dir)
        rows = sweep_rows(root) if root.is_dir() else []
        type(self).failed = sum((root / row.folder / ERROR_FILE).is_file() for row in rows)
        if rows:
            write_summary(root / "summary.csv", rows)
            console = Console()
            console.print(summary_table(rows))
            console.print(f"table: {root / 'summary.csv'}", soft_wrap=True)
            runs = " ".join(str(root / row.folder) for row in rows if row.figures["J&F"] is not None)
            console.print(f"side by side: python -m drift.reporting.compare {runs}", soft_wrap=True)
