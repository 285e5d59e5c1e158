"""What refining masks brings, and costs: `python -m benchmarks.refinement ROOT --json FILE`.

On any folder in DAVIS-2016's layout, all variants in one run: the propagated masks, GrabCut's, the embedded
Segment Anything model's, and those with feedback. Then the same model on true masks that are corrupted as in its
training, and the time of a frame with one object and with ten.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks.measuring import arguments, write_json
from benchmarks.quality import composed, options_of_tracker
from benchmarks.wrapping import SharedFeatures
from datamodules.davis import Davis2016
from drift.backbone import Backbone
from drift.clip import Clip
from drift.command_line import build, keep_freed_memory
from drift.metrics.davis import DavisScore, DavisScores
from drift.metrics.functional import jaccard
from drift.pretrain.corruption import corrupted
from drift.propagation import Tracker
from drift.propagation.labels import SoftLabels
from drift.propagation.refiner import Refiner

__all__ = ["Figures", "lift", "main", "milliseconds", "run_variants"]

VARIANTS = {
    "none": ["refinement=none"],
    "grabcut": ["refinement=grabcut"],
    "sam_tiny": ["refinement=sam_tiny", "refinement.feedback=false"],
    "sam_tiny_feedback": ["refinement=sam_tiny", "refinement.feedback=true"],
}
_EVERY = 10  # frames between two whose true masks are corrupted
_SIZE, _TOKENS = (480, 854), 107  # of the frame that is timed, and of a tracker's tokens across it


@dataclass
class Figures:
    """A variant's scores, and how often what became of an object."""

    scores: DavisScores
    outcomes: Counter[str]


def run_variants(
    backbone: Backbone, refiners: Mapping[str, Refiner | None], options: Mapping, data: Davis2016
) -> dict[str, Figures]:
    """All variants on all clips. Those without feedback share one tracker, whose labels each refines."""
    scores = {name: DavisScore(data.sequences) for name in refiners}
    outcomes = {name: Counter[str]() for name in refiners}
    shared = SharedFeatures(backbone)
    for clip in track(list(data.predict_dataloader()), description="clips", transient=True):
        alone = {n: r for n, r in refiners.items() if r is not None and r.feedback}
        trackers = {name: Tracker(shared, **options, refiner=refiner) for name, refiner in alone.items()}
        plain = Tracker(shared, **options)
        for index in range(len(clip)):
            frame, given = clip.frames[index], clip.given.get(index)
            labels = plain.step(frame, given)
            for name, refiner in refiners.items():
                shown = trackers[name].step(frame, given) if name in alone else labels
                if refiner is not None and name not in alone and index:
                    refined = refiner.refine(torch.from_numpy(frame), labels)
                    outcomes[name].update(refined.outcomes)
                    shown = replace(labels, refined=refined.probabilities)
                _score(scores[name], clip, index, shown)
        for name, tracker in trackers.items():
            outcomes[name].update(tracker.refinements)
    return {name: Figures(scores[name].compute(), outcomes[name]) for name in refiners}


def _score(score: DavisScore, clip: Clip, index: int, labels: SoftLabels) -> None:
    score.update(
        labels.mask(),
        torch.from_numpy(clip.truth[index]),
        sequence=clip.name,
        frame=index,
        frames=len(clip),
        objects=(1,),
    )


def lift(refiner: Refiner, data: Davis2016, *, every: int = _EVERY) -> tuple[float, float]:
    """Mean IoU with the true mask of masks corrupted as in training, and of what the refiner makes of them.

    Args:
        refiner: of the tiny model, say.
        data: the clips; of each every `every`-th frame in which the object is seen.
        every: see above.
    """
    before: list[float] = []
    after: list[float] = []
    for number, clip in enumerate(data.predict_dataloader()):
        random = np.random.default_rng(number)
        for index in range(0, len(clip), every):
            truth = (clip.truth[index] > 0).astype(np.float32)
            grid = (_TOKENS, round(_TOKENS * truth.shape[0] / truth.shape[1]))
            small = cv2.resize(truth, (grid[0] * 2, grid[1] * 2), interpolation=cv2.INTER_AREA)
            if not (small > 0.5).any():
                continue
            soft = cv2.resize(corrupted(small, np.zeros_like(small), _TOKENS, random), truth.shape[::-1])
            labels = _labels(torch.from_numpy(soft)[None])
            refined = refiner.refine(torch.from_numpy(clip.frames[index]), labels).probabilities[1]
            for ious, mask in ((before, torch.from_numpy(soft)), (after, refined)):
                ious.append(jaccard(mask > 0.5, torch.from_numpy(truth) > 0).item())
    return statistics.fmean(before), statistics.fmean(after)


def _labels(objects: Tensor) -> SoftLabels:
    """Labels of one token a pixel."""
    probabilities = torch.cat([1 - objects.sum(0, keepdim=True), objects])
    ids = tuple(range(1, len(objects) + 1))
    return SoftLabels(probabilities, ids, (objects.shape[-2], objects.shape[-1]), 1)


def milliseconds(refiner: Refiner, objects: int, *, runs: int) -> float:
    """Of one frame of 480 x 854 pixels with so many objects, the median of `runs`."""
    random = np.random.default_rng(0)
    frame = torch.from_numpy(random.integers(0, 256, (*_SIZE, 3), dtype=np.uint8))
    masks = np.zeros((objects, *_SIZE), np.float32)
    for number in range(objects):
        centre = (60 + number % 5 * 180, 120 + number // 5 % 2 * 240)
        cv2.circle(masks[number], centre, 55, 1.0, -1)
        masks[number] = cv2.GaussianBlur(masks[number], (0, 0), 4)
    tokens = torch.nn.functional.avg_pool2d(torch.from_numpy(masks)[None], 8, ceil_mode=True)[0]
    soft = torch.cat([1 - tokens.sum(0, keepdim=True), tokens]).clamp(0, 1)
    labels = SoftLabels(soft, tuple(range(1, objects + 1)), _SIZE, 8)
    refiner.refine(frame, labels)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        refiner.refine(frame, labels)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder in DAVIS-2016's layout")
    parser.add_argument("--sequences", type=lambda text: text.split(","), help="a,b: only these")
    parser.add_argument(
        "--variants",
        type=lambda text: text.split(","),
        default=list(VARIANTS),
        help=f"of {', '.join(VARIANTS)}",
    )
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        help="time this Segment Anything as well; may be repeated",
    )
    parser.add_argument(
        "overrides", nargs="*", help="of the configuration, adaptation=none or refinement.KEY=VALUE"
    )
    options = parser.parse_intermixed_args()
    if unknown := set(options.variants) - VARIANTS.keys():
        parser.error(f"no variant {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}")
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    data = Davis2016(options.root, sequences=options.sequences)
    plain = [word for word in options.overrides if not word.startswith("refinement")]
    refiners = {
        name: build(composed(*(options.overrides if "sam" in name else plain), *VARIANTS[name]), "refinement")
        for name in options.variants
    }
    config = composed(*plain)
    figures = run_variants(build(config, "backbone"), refiners, options_of_tracker(config), data)
    timed = {name: refiner for name, refiner in refiners.items() if refiner is not None}
    for file in options.checkpoint:
        words = ["refinement=sam", f"refinement.checkpoint={file}"]
        timed[Path(file).stem] = build(composed(*words), "refinement")
    flat = {"sequences": float(len(data.sequences)), **_flat(figures)}
    for name, refiner in timed.items():
        one, ten = (milliseconds(refiner, objects, runs=options.runs) for objects in (1, 10))
        flat |= {
            f"ms_per_frame_{name}": one,
            f"ms_per_extra_object_{name}": (ten - one) / 9,
            f"ten_{name}": ten / one,
        }
    for name in (name for name in timed if name in figures):
        flat[f"corrupted_iou_{name}"], flat[f"mended_iou_{name}"] = lift(timed[name], data)
    _print_tables(figures, flat)
    write_json(flat, options.json)


def _flat(figures: Mapping[str, Figures]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, one in figures.items():
        flat |= {
            f"J_{name}": one.scores.jaccard.mean,
            f"F_{name}": one.scores.boundary.mean,
            f"J&F_{name}": one.scores.j_and_f,
        }
        flat |= {f"J&F_{name}_{each.sequence}": each.j_and_f for each in one.scores.sequences}
        flat |= {f"{outcome}_{name}": float(count) for outcome, count in one.outcomes.items()}
    return flat


def _print_tables(figures: Mapping[str, Figures], flat: Mapping[str, float]) -> None:
    console = Console()
    scores = Table("sequence", title="J&F by sequence, then the means, and how often masks were taken")
    for name in figures:
        scores.add_column(name, justify="right")
    for sequence in (each.sequence for each in next(iter(figures.values())).scores.sequences):
        scores.add_row(sequence, *(f"{flat[f'J&F_{name}_{sequence}']:.3f}" for name in figures))
    scores.add_section()
    for figure in ("J", "F", "J&F"):
        scores.add_row(figure, *(f"{flat[f'{figure}_{name}']:.3f}" for name in figures))
    scores.add_section()
    for outcome in sorted({outcome for one in figures.values() for outcome in one.outcomes}):
        scores.add_row(outcome, *(str(one.outcomes[outcome]) for one in figures.values()))
    console.print(scores)
    cost = Table("", "ms a frame", "ms an extra object", "ten objects to one", "IoU corrupted", "IoU mended")
    for name in (key.removeprefix("ms_per_frame_") for key in flat if key.startswith("ms_per_frame_")):
        keys = (f"ms_per_frame_{name}", f"ms_per_extra_object_{name}")
        ious = (
            f"{flat[key]:.3f}" if key in flat else ""
            for key in (f"corrupted_iou_{name}", f"mended_iou_{name}")
        )
        cost.add_row(name, *(f"{flat[key]:.1f}" for key in keys), f"{flat[f'ten_{name}']:.2f}", *ious)
    console.print(cost)


if __name__ == "__main__":
    main()
