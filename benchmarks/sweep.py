"""Cost of a sweep beside a single run: `python -m benchmarks.sweep ROOT --json FILE`.

ROOT is a folder in DAVIS-2016's layout. The sweep is `experiment=grid/GRID` with an empty feature cache and the
launcher `processes`; the single run is the same command without sweep and cache. Both are timed from start to end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measuring import arguments, report
from benchmarks.scaling import SCRIPT, shortened


def timed(*words: str) -> float:
    """Seconds of `evaluate.py` with the given command line."""
    start = time.perf_counter()
    subprocess.run([sys.executable, SCRIPT, *words], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder in DAVIS-2016's layout")
    parser.add_argument("--grid", default="propagation", help="file in configs/experiment/grid")
    parser.add_argument("--frames", type=int, default=40, help="number of frames per clip")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        root = shortened(options.root, folder / "data", options.frames)
        words = ["data=davis2016", f"data.root={root}", "logger=none", f"experiment=grid/{options.grid}"]
        words += ["output.report=false", "output.attention=false", "output.sampled_frames=0"]
        one = timed(*words, "backbone.cache=null", f"output.dir={folder / 'one'}")
        cache, out = folder / "cache", folder / "sweep"
        sweep = timed(
            "-m", "hydra/launcher=processes", *words, f"backbone.cache={cache}", f"output.dir={out}"
        )
        settings = [path for path in out.iterdir() if (path / "results.json").is_file()]
        alone = json.loads((folder / "one" / "results.json").read_text())["J&F"]
        scores = [json.loads((path / "results.json").read_text())["J&F"] for path in settings]
        size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    figures: dict[str, float | int | str] = {
        "settings": len(settings),
        "seconds_1_run": one,
        "seconds_sweep": sweep,
        "cost_ratio": sweep / one,
        "cache_megabytes": size / 1e6,
        "score_of_the_run": alone,
        "nearest_score_of_the_sweep": min(scores, key=lambda score: abs(score - alone)),
    }
    report(f"Sweep of {options.grid} beside a single run", figures, options.json)


if __name__ == "__main__":
    main()
