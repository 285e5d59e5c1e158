"""J&F at the start and at the end of long clips: `python -m benchmarks.loops ROOT --frames 1000`.

The clips of DAVIS-2016 in ROOT are played forwards and backwards and tracked with the default configuration. The mean
J&F of the first 100 and of the last 100 frames is reported.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.hard_clips import reordered
from benchmarks.holding_on import run_setting
from benchmarks.long_clip import looped
from benchmarks.measuring import arguments, report

__all__ = ["main", "spans"]


def spans(curve: Mapping[str, list[float]], length: int = 100) -> tuple[float, float]:
    """Mean J&F over the first and the last `length` frames.

    Args:
        curve: scores per frame, `J` and `F` in [0, 1], of an object in `curves.json`.
        length: number of frames.
    """
    both = (np.array(curve["J"]) + np.array(curve["F"])) / 2
    return float(both[:length].mean()), float(both[-length:].mean())


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder in DAVIS-2016's layout")
    parser.add_argument("--frames", type=int, default=1000, help="number of frames of each clip")
    parser.add_argument("--clips", type=lambda text: text.split(","), help="a,b: only these clips")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as refinement=none")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory(prefix="drift-") as scratch:
        root, output = Path(scratch) / "clips", Path(scratch) / "run"
        names = reordered(options.root, root, lambda count: {"": looped(count, options.frames)})
        words = [f"data.sequences=[{','.join(options.clips or names)}]", *options.overrides]
        run_setting(root, "davis2016", words, output)
        curves = json.loads((output / "curves.json").read_text(encoding="utf-8"))
    table: dict[str, float | int | str] = {}
    found = {name: spans(of_clip["objects"]["1"]) for name, of_clip in curves.items()}
    for name, (first, last) in found.items():
        table[name] = f"{first:.3f}, then {last:.3f}"
    first, last = np.array(list(found.values())).mean(0)
    table |= {"mean": f"{first:.3f}, then {last:.3f}", "ratio": float(last / first)}
    report("J&F of the first and the last 100 frames", table, options.json)


if __name__ == "__main__":
    main()
