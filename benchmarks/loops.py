"""Whether long clips are held: `python -m benchmarks.loops ROOT --frames 1000`.

The clips of DAVIS-2016 in ROOT are played forwards and backwards until they are long enough, and tracked by the default
configuration from the first frame on. J&F of the first and of the last hundred frames are compared.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.hard_clips import reordered
from benchmarks.holding_on import run_setting
from benchmarks.measuring import arguments, report

__all__ = ["looped", "main", "spans"]


def looped(count: int, frames: int) -> list[int]:
    """Indices of `count` frames, forwards and backwards until there are `frames`.

    Example:
        >>> looped(3, 7)
        [0, 1, 2, 1, 0, 1, 2]
    """
    there_and_back = [*range(count), *range(count - 2, 0, -1)]
    return [there_and_back[t % len(there_and_back)] for t in range(frames)]


def spans(curve: Mapping[str, list[float]], length: int = 100) -> tuple[float, float]:
    """Mean J&F over the first and over the last `length` scored frames of an object, of `curves.json`."""
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
    report("J&F of the first and of the last hundred frames", table, options.json)


if __name__ == "__main__":
    main()
