"""Speed of two and three processes beside one, with one thread per process: `python -m benchmarks.scaling ROOT`.

ROOT is a folder in DAVIS-2016's layout. The whole command is timed, including its start. All scores must be equal.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measuring import arguments, report
from datamodules.davis import Davis2016
from drift.clip import FrameFiles, MaskFiles

__all__ = ["shortened"]

SCRIPT = Path(__file__).parents[1] / "evaluate.py"


def shortened(root: Path, target: Path, frames: int) -> Path:
    """Links the first frames of each clip of a DAVIS-2016 folder into a new folder of the same layout; returns it."""
    lines = []
    for clip in Davis2016(root).predict_dataloader():
        assert isinstance(clip.frames, FrameFiles)
        assert isinstance(clip.truth, MaskFiles)
        for kind, paths in (
            ("JPEGImages", clip.frames.paths),
            ("Annotations", list(clip.truth.paths.values())),
        ):
            folder = target / kind / "480p" / clip.name
            folder.mkdir(parents=True)
            for path in paths[:frames]:
                (folder / path.name).symlink_to(path.resolve())
        lines += [
            f"/JPEGImages/480p/{clip.name}/{name}.jpg /Annotations/480p/{clip.name}/{name}.png"
            for name in clip.frame_names[:frames]
        ]
    (target / "ImageSets" / "480p").mkdir(parents=True)
    (target / "ImageSets" / "480p" / "val.txt").write_text("\n".join(lines) + "\n")
    return target


def timed(root: Path, output: Path, processes: int) -> tuple[float, list[list[str]]]:
    """Seconds and scores of `evaluate.py` with `processes` processes of one thread."""
    words = ["data=davis2016", f"data.root={root}", "logger=none", "output.attention=false"]
    words += ["output.formats=[masks]", f"output.dir={output}"]
    if processes > 1:
        words += ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={processes}"]
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, SCRIPT, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    seconds = time.perf_counter() - start
    with (output / "results.csv").open() as file:
        return seconds, [[row["sequence"], row["J"], row["F"]] for row in csv.DictReader(file)]


def largest_difference(some: list[list[str]], others: list[list[str]]) -> float:
    """Largest difference between the scores of two runs; infinite if their sequences differ."""
    if [row[0] for row in some] != [row[0] for row in others]:
        return float("inf")
    pairs = zip(
        (cell for row in some for cell in row[1:]), (cell for row in others for cell in row[1:]), strict=True
    )
    return max(abs(float(a) - float(b)) for a, b in pairs)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder in DAVIS-2016's layout")
    parser.add_argument("--frames", type=int, default=40, help="number of frames per clip")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = shortened(options.root, Path(folder) / "data", options.frames)
        (one, scores), *others = (timed(root, Path(folder) / f"{count}", count) for count in (1, 2, 3))
    figures: dict[str, float | int | str] = {
        "seconds_1_process": one,
        "seconds_2_processes": others[0][0],
        "speedup": one / others[0][0],
        "seconds_3_processes": others[1][0],
        "largest_difference_of_scores": max(largest_difference(scores, other) for _, other in others),
    }
    report("Several processes beside one", figures, options.json)


if __name__ == "__main__":
    main()
