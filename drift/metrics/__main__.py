"""`python -m drift.metrics PREDICTIONS ANNOTATIONS`: scores folders of masks, as DAVIS does."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from drift.errors import DriftError, InputError
from drift.metrics.davis import DavisScores, ObjectScore
from drift.metrics.folders import score_folders
from drift.metrics.functional import Statistics

__all__ = ["main"]

_STATISTICS = ("J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay")
_WIDTH_OF_FILES = 120  # columns where the output is no terminal: no name is broken there

_EPILOG = """\
PREDICTIONS and ANNOTATIONS hold one folder per sequence, and that one PNG per frame, of object ids
(palette indices or grey values; 255 is void). The frames are those of ANNOTATIONS; the first and the
last of a sequence are not scored. A missing or ill-fitting file is an error, never a score.

example:
  python -m drift.metrics outputs/masks DAVIS/Annotations/480p --binary --sequences bear,camel

exit codes: 0 scored, 2 an error, which is named in one line on stderr
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command with `arguments`, or those of the process; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.csv is not None and not options.csv.absolute().parent.is_dir():
            raise InputError(f"{options.csv}: no such folder to write to")
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
        description="Scores predicted masks of objects in videos: J, F and J&F, as DAVIS defines them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("predictions", metavar="PREDICTIONS", type=Path, help="folder of predicted masks")
    parser.add_argument("annotations", metavar="ANNOTATIONS", type=Path, help="folder of true masks")
    parser.add_argument(
        "--sequences",
        metavar="A,B",
        type=_names,
        help="score these sequences only (default: all in ANNOTATIONS)",
    )
    parser.add_argument(
        "--binary", action="store_true", help="every non-zero pixel is the one object, as in DAVIS-2016"
    )
    parser.add_argument(
        "--csv", metavar="FILE", type=Path, help="also write the objects' scores to this file"
    )
    return parser


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of names with commas between them")
    return names


def _write_csv(path: Path, scores: DavisScores) -> None:
    try:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["sequence", "object", "frames", "J&F", *_STATISTICS])
            for score in scores.objects:
                numbers = [f"{number:.6f}" for number in _numbers(score)]
                writer.writerow([score.sequence, score.object_id, score.frames, *numbers])
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
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_FILES)
    console.print(table)
    if scores.unscored:
        console.print(f"not scored, fewer than 3 frames: {', '.join(scores.unscored)}", markup=False)


def _cells(score: ObjectScore | DavisScores) -> list[str]:
    return [f"{number:.3f}" for number in _numbers(score)]


def _numbers(score: ObjectScore | DavisScores) -> list[float]:
    return [score.j_and_f, *_in_order(score.jaccard), *_in_order(score.boundary)]


def _in_order(each: Statistics) -> list[float]:
    return [each.mean, each.recall, each.decay]


if __name__ == "__main__":
    sys.exit(main())
