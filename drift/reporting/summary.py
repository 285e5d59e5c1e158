"""Summary of a sweep: a table with one row per configuration, on the terminal and in `summary.csv`."""

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
"""Name of the file with the error message in the folder of a failed run."""

_COLUMNS = ("J", "F", "J&F", "seconds_per_frame", "adaptation_seconds")


@dataclass(frozen=True)
class SweepRow:
    """One configuration of a sweep.

    Attributes:
        name: the overrides that are not common to all configurations.
        folder: name of its `output.dir` inside the sweep's folder.
        values: value per column; None if it is missing, e.g. for a failed run.
    """

    name: str
    folder: str
    values: dict[str, float | None]


def sweep_rows(root: Path) -> list[SweepRow]:
    """Reads the rows of all configurations in a sweep's folder, sorted by job number."""
    paths = [path for path in root.glob("*/overrides.json") if path.parent.name.isdigit()]
    paths.sort(key=lambda path: int(path.parent.name))
    overrides = {path.parent: json.loads(path.read_text("utf-8")) for path in paths}
    common = set.intersection(*map(set, overrides.values())) if len(overrides) > 1 else set()
    rows = []
    for folder, words in overrides.items():
        results, failed = folder / "results.json", (folder / ERROR_FILE).is_file()
        values = json.loads(results.read_text("utf-8")) if results.is_file() and not failed else {}
        name = " ".join(word for word in words if word not in common) or "default"
        columns = {column: values.get(column) for column in _COLUMNS}
        rows.append(SweepRow(name + " (failed)" * failed, folder.name, columns))
    return rows


def write_summary(path: Path, rows: Sequence[SweepRow]) -> None:
    """Writes the rows to a CSV file atomically."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("configuration", "folder", *_COLUMNS))
        for row in rows:
            cells = ["" if value is None else f"{value:.6f}" for value in row.values.values()]
            writer.writerow((row.name, row.folder, *cells))
    os.replace(partial, path)


def summary_table(rows: Sequence[SweepRow]) -> Table:
    """Table of the rows; the row with the highest J&F is bold."""
    table = Table(title="Configurations", title_style="bold", header_style="bold")
    table.add_column("configuration", overflow="fold")
    for column in ("J", "F", "J&F", "s/frame", "adapt s"):
        table.add_column(column, justify="right")
    best = max((row.values["J&F"] or 0.0 for row in rows), default=0.0)
    for row in rows:
        digits = (3, 3, 3, 2, 1)
        cells = ["-" if v is None else f"{v:.{d}f}" for v, d in zip(row.values.values(), digits, strict=True)]
        table.add_row(row.name, *cells, style="bold" if best and row.values["J&F"] == best else "")
    return table


class SweepSummary(Callback):
    """Hydra callback that saves the overrides of each job and summarises the sweep at its end.

    Attributes:
        failed: number of failed jobs in the most recent sweep. A class attribute, because Hydra creates the
            callback and does not expose the instance.
    """

    failed: ClassVar[int] = 0

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Deletes the overrides of an earlier sweep in the same folder, which excludes its jobs from the summary."""
        for overrides in Path(config.hydra.sweep.dir).glob("*/overrides.json"):
            overrides.unlink()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Writes the overrides of the job into its folder."""
        folder = Path(config.hydra.runtime.output_dir)
        if config.hydra.mode.name == "MULTIRUN" and folder.is_dir():
            words = list(job_return.overrides or [])
            (folder / "overrides.json").write_text(json.dumps(words) + "\n", encoding="utf-8")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints the table and writes `summary.csv` to the sweep's folder."""
        root = Path(config.hydra.sweep.dir)
        rows = sweep_rows(root) if root.is_dir() else []
        type(self).failed = sum((root / row.folder / ERROR_FILE).is_file() for row in rows)
        if rows:
            write_summary(root / "summary.csv", rows)
            console = Console()
            console.print(summary_table(rows))
            console.print(f"summary: {root / 'summary.csv'}", soft_wrap=True)
            runs = " ".join(str(root / row.folder) for row in rows if row.values["J&F"] is not None)
            console.print(f"compare: python -m drift.reporting.compare {runs}", soft_wrap=True)
