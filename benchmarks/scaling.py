"""Speed and reproducibility with several processes and threads: `python -m benchmarks.scaling ROOT`.

ROOT is a folder in DAVIS-2016's layout. `evaluate.py` is run with the configurations in `RUNS`. Reports the wall time
of each run and, relative to the first run, the number of mask files that differ and the largest difference of a score.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
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


RUNS: Mapping[str, tuple[int, int]] = {
    "one process": (1, 1),
    "again": (1, 1),
    "two processes": (2, 1),
    "three processes": (3, 1),
    "two threads": (1, 2),
}
"""Number of processes and number of threads per process, by name of the run."""


def timed(root: Path, output: Path, processes: int, threads: int) -> float:
    """Wall time of `evaluate.py` in seconds, including its start."""
    launcher = [sys.executable]
    words = ["data=davis2016", f"data.root={root}", "logger=none", "output.attention=false"]
    words += ["output.formats=[masks]", f"output.dir={output}"]
    if processes > 1:  # torchrun, since evaluate.py does not start more processes than cores
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        words += ["trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={processes}"]
    start = time.perf_counter()
    subprocess.run(
        [*launcher, str(SCRIPT), *words],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - start


def differing_masks(some: Path, others: Path) -> int:
    """Number of mask files that are not equal byte for byte in two output folders."""
    paths = [path.relative_to(some) for path in sorted((some / "masks").rglob("*.png"))]
    return sum((some / path).read_bytes() != (others / path).read_bytes() for path in paths)


def largest_difference(some: Path, others: Path) -> float:
    """Largest absolute difference of J and F, in [0, 1], between two output folders; infinite if sequences differ."""
    rows = []
    for folder in (some, others):
        with (folder / "results.csv").open() as file:
            rows.append(
                {(row["sequence"], row["object"]): (row["J"], row["F"]) for row in csv.DictReader(file)}
            )
    if rows[0].keys() != rows[1].keys():
        return float("inf")
    return max(
        abs(float(a) - float(b)) for key in rows[0] for a, b in zip(rows[0][key], rows[1][key], strict=True)
    )


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder in DAVIS-2016's layout")
    parser.add_argument("--frames", type=int, default=40, help="number of frames per clip")
    options = parser.parse_args()
    figures: dict[str, float | int | str] = {}
    with tempfile.TemporaryDirectory() as folder:
        root, first = (
            shortened(options.root, Path(folder) / "data", options.frames),
            Path(folder) / "one process",
        )
        for name, (processes, threads) in RUNS.items():
            output = Path(folder) / name
            figures[f"{name}, seconds"] = timed(root, output, processes, threads)
            if output != first:
                figures[f"{name}, masks that differ"] = differing_masks(first, output)
                figures[f"{name}, largest difference of a score"] = largest_difference(first, output)
    figures["speed-up by two processes"] = figures["one process, seconds"] / figures["two processes, seconds"]  # type: ignore[operator]
    report("Several runs beside the first", figures, options.json)


if __name__ == "__main__":
    main()
