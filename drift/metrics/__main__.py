"""`python -m drift.metrics PREDICTIONS ANNOTATIONS`: DAVIS scores of masks in folders."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from drift.errors import DriftError, InputError
from drift.metrics.davis import DavisScores, ObjectScore
from drift.metrics.folders import score_folders

__all__ = ["main"]

_STATISTICS = ("J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay")
_FILE_WIDTH = 120  # columns when the output is not a terminal; wide enough to keep names on one line

_EPILOG = """\
PREDICTIONS and ANNOTATIONS contain one folder per sequence with one PNG of object ids per frame
(palette indices or grey values; 255 is void). ANNOTATIONS defines the frames; the first and the
last frame of a sequence are not scored. A missing or mismatched file is an error, not a score of 0.

example:
  python -m drift.metrics outputs/masks DAVIS/Annotations/480p --binary --sequences bear,camel

exit codes: 0 on success, 2 on an error, which is printed to stderr as one line
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command with `arguments` (default: `sys.argv`) and returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.csv is not None and not options.csv.absolute().parent.is_dir():
            raise InputError(f"{options.csv}: cannot be written: its folder does not exist")
        scores = score_folders(options.predictions, options.annotations, options.sequences, options.binary)
        if options.csv is not None:
            _write_csv(options.csv, scores)
    except DriftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _print(scores)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m drift.metrics",
        description="Computes J, F and J&F of predicted video object masks, as defined by DAVIS.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("predictions", metavar="PREDICTIONS", type=Path, help="folder of predicted masks")
    parser.add_argument("annotations", metavar="ANNOTATIONS", type=Path, help="folder of ground-truth masks")
    parser.add_argument(
        "--sequences",
        metavar="A,B",
        type=_names,
        help="score only these sequences (default: all in ANNOTATIONS)",
    )
    parser.add_argument(
        "--binary",
        action="store_true",
        help="treat all non-zero pixels as a single object, as in DAVIS-2016",
    )
    parser.add_argument(
        "--csv", metavar="FILE", type=Path, help="also write the scores of each object to FILE"
    )
    return parser


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma-separated list of names")
    return names


def _write_csv(path: Path, scores: DavisScores) -> None:
    try:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["sequence", "object", "frames", "J&F", *_STATISTICS])
            for score in scores.objects:
                values = [f"{value:.6f}" for value in _values(score)]
                writer.writerow([score.sequence, score.object_id, score.frames, *values])
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def _print(scores: DavisScores) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("sequence", overflow="fold")
    for heading in ("object", "frames", "J&F", *_STATISTICS):
        table.add_column(heading.replace("_", " "), justify="right")
    for score in scores.objects:
        table.add_row(escape(score.sequence), str(score.object_id), str(score.frames), *_cells(score))
    table.add_section()
    table.add_row(f"mean of {len(scores.objects)}", "", "", *_cells(scores), style="bold")
    console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
    console.print(table)
    if scores.unscored:
        console.print(f"not scored, fewer than 3 frames: {', '.join(scores.unscored)}", markup=False)


def _cells(score: ObjectScore | DavisScores) -> list[str]:
    return [f"{value:.3f}" for value in _values(score)]


def _values(score: ObjectScore | DavisScores) -> list[float]:
    return [score.j_and_f, *astuple(score.jaccard), *astuple(score.boundary)]


if __name__ == "__main__":
    sys.exit(main())
