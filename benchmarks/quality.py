"""The embedded model beside what needs none: `python -m benchmarks.quality ROOT --json FILE`.

On any folder in DAVIS-2016's layout, every row in one run: the first mask copied; the mask warped from frame to
frame by dense optical flow (OpenCV DIS, medium); and label propagation with one kernel and one set of
options, on the model with random weights and on the model as it ships.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.measuring import arguments
from datamodules.davis import Davis2016
from drift.clip import Clip
from drift.command_line import build, keep_freed_memory
from drift.metrics.davis import DavisScore, DavisScores

CONFIGS = Path(__file__).parents[1] / "configs"
Method = Callable[[Clip], Iterator[np.ndarray]]


def copy_first_mask(clip: Clip) -> Iterator[np.ndarray]:
    """The first mask for every frame: what standing still gives."""
    mask = clip.given[0]
    for _ in range(len(clip)):
        yield mask


def warp_by_flow(clip: Clip) -> Iterator[np.ndarray]:
    """The mask carried from frame to frame along dense optical flow."""
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    soft: np.ndarray = clip.given[0].astype(np.float32)
    before = cv2.cvtColor(clip.frames[0], cv2.COLOR_RGB2GRAY)
    rows, columns = np.mgrid[: before.shape[0], : before.shape[1]].astype(np.float32)
    yield clip.given[0]
    for index in range(1, len(clip)):
        now = cv2.cvtColor(clip.frames[index], cv2.COLOR_RGB2GRAY)
        back = flow.calc(now, before, None)  # type: ignore[call-overload]  # where each pixel of this frame was in the one before
        soft = cv2.remap(soft, columns + back[..., 0], rows + back[..., 1], cv2.INTER_LINEAR)
        before = now
        yield (soft > 0.5).astype(np.uint8)


def propagation(*overrides: str, random_weights: bool = False) -> Method:
    """Label propagation as `evaluate.py` does it with these overrides."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("evaluate", overrides=list(overrides))
    backbone, make_tracker = build(config, "backbone"), build(config, "propagation")
    if random_weights:
        torch.manual_seed(0)
        for module in backbone.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()

    def run(clip: Clip) -> Iterator[np.ndarray]:
        tracker = make_tracker(backbone)
        for index in range(len(clip)):
            yield tracker.step(clip.frames[index], clip.given.get(index)).mask().numpy()

    return run


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder in DAVIS-2016's layout")
    parser.add_argument("--sequences", type=lambda text: text.split(","), help="a,b: only these")
    parser.add_argument("--rows", type=lambda text: text.split(","), help="a,b: only these rows")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    data = Davis2016(options.root, sequences=options.sequences)
    methods: dict[str, Callable[[], Method]] = {
        "copy": lambda: copy_first_mask,
        "flow": lambda: warp_by_flow,
        "trained": lambda: propagation(),
        "random": lambda: propagation(random_weights=True),
    }
    names = options.rows or list(methods)
    figures: dict[str, float | int | str] = {"sequences": len(data.sequences)}
    scores = {}
    for name in names:
        scores[name], seconds, frames = _score(methods[name](), data, name)
        figures |= {
            f"J_{name}": scores[name].jaccard.mean,
            f"F_{name}": scores[name].boundary.mean,
            f"J&F_{name}": scores[name].j_and_f,
            f"seconds_per_frame_{name}": seconds / frames,
        }
        figures |= {f"J&F_{name}_{one.sequence}": one.j_and_f for one in scores[name].sequences}
        _print_table(scores, figures)
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _print_table(scores: Mapping[str, DavisScores], figures: Mapping[str, float | int | str]) -> None:
    table = Table("sequence", title="J&F by sequence, then the means")
    for name in scores:
        table.add_column(name, justify="right")
    for place, first in enumerate(next(iter(scores.values())).sequences):
        table.add_row(first.sequence, *(f"{score.sequences[place].j_and_f:.3f}" for score in scores.values()))
    table.add_section()
    for figure in ("J", "F", "J&F", "seconds_per_frame"):
        table.add_row(figure, *(f"{figures[f'{figure}_{name}']:.3f}" for name in scores))
    Console().print(table)


def _score(method: Method, data: Davis2016, name: str) -> tuple[DavisScores, float, int]:
    """A method's scores on all clips, its seconds (decoding included, scoring not) and the frames."""
    score, seconds, frames = DavisScore(data.sequences), 0.0, 0
    for clip in track(list(data.predict_dataloader()), description=name, transient=True):
        masks = method(clip)
        for index in range(len(clip)):
            start = time.perf_counter()
            mask = next(masks)
            seconds += time.perf_counter() - start
            score.update(
                torch.from_numpy(mask),
                torch.from_numpy(clip.truth[index]),
                sequence=clip.name,
                frame=index,
                frames=len(clip),
                objects=(1,),
            )
        frames += len(clip)
    return score.compute(), seconds, frames


if __name__ == "__main__":
    main()
