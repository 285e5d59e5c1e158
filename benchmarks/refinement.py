"""Quality and cost of mask refinement: `python -m benchmarks.refinement ROOT --json FILE`.

Scores, on a folder in DAVIS-2016's layout: propagated masks, GrabCut, the embedded Segment Anything model without and
with feedback. Also measures the IoU of true masks corrupted as in training, before and after refinement, and
the time per frame with one object and with ten.
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
from drift.backbones import Backbone
from drift.clip import Clip
from drift.command_line import build, keep_freed_memory
from drift.metrics.davis import DavisScore, DavisScores
from drift.metrics.functional import jaccard
from drift.propagation import Tracker
from drift.propagation.labels import SoftLabels
from drift.propagation.refiner import Refiner
from pretraining.corruption import corrupted

__all__ = ["Figures", "lift", "main", "milliseconds", "run_variants"]

VARIANTS = {
    "none": ["refinement=none"],
    "grabcut": ["refinement=grabcut"],
    "sam_tiny": ["refinement=sam_tiny", "refinement.feedback=false"],
    "sam_tiny_feedback": ["refinement=sam_tiny", "refinement.feedback=true"],
}
_EVERY = 10  # frames between those whose true masks are corrupted
_SIZE, _TOKENS = (480, 854), 107  # frame size for timing; tokens per row


@dataclass
class Figures:
    """Scores and outcome counts of a variant."""

    scores: DavisScores
    outcomes: Counter[str]


def run_variants(
    backbone: Backbone, refiners: Mapping[str, Refiner | None], options: Mapping, data: Davis2016
) -> dict[str, Figures]:
    """Runs all variants on all clips. Variants without feedback refine the labels of one shared tracker.

    Args:
        backbone: computes the features, once for all trackers.
        refiners: by variant; None leaves masks as propagated.
        options: keyword arguments of `Tracker`.
        data: clips with true masks.
    """
    scores = {name: DavisScore(data.sequences) for name in refiners}
    outcomes = {name: Counter[str]() for name in refiners}
    shared = SharedFeatures(backbone)
    for clip in track(list(data.predict_dataloader()), description="clips", transient=True):
        with_feedback = {n: r for n, r in refiners.items() if r is not None and r.feedback}
        trackers = {n: Tracker(shared, **options, refiner=refiner) for n, refiner in with_feedback.items()}
        plain = Tracker(shared, **options)
        for index in range(len(clip)):
            frame, given = clip.frames[index], clip.given.get(index)
            labels = plain.step(frame, given)
            for name, refiner in refiners.items():
                final = trackers[name].step(frame, given) if name in trackers else labels
                if refiner is not None and name not in trackers and index:
                    refined = refiner.refine(torch.from_numpy(frame), labels)
                    outcomes[name].update(refined.outcomes)
                    final = replace(labels, refined=refined.probabilities)
                _score(scores[name], clip, index, final)
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
    """Mean IoU with the true mask, of masks corrupted as in training and of the refined ones.

    Args:
        refiner: refines the corrupted masks.
        data: clips with true masks.
        every: frame step.
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
    """Labels at stride 1."""
    probabilities = torch.cat([1 - objects.sum(0, keepdim=True), objects])
    ids = tuple(range(1, len(objects) + 1))
    return SoftLabels(probabilities, ids, (objects.shape[-2], objects.shape[-1]), 1)


def milliseconds(refiner: Refiner, objects: int, *, runs: int) -> float:
    """Median time of `runs` refinements of a frame of 480 x 854 pixels, in milliseconds."""
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
    parser.add_argument("--sequences", type=lambda text: text.split(","), help="a,b: only these clips")
    parser.add_argument(
        "--variants",
        type=lambda text: text.split(","),
        default=list(VARIANTS),
        help=f"any of {', '.join(VARIANTS)}",
    )
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        help="Segment Anything checkpoint to time as well; repeatable",
    )
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as refinement.KEY=VALUE")
    options = parser.parse_intermixed_args()
    if unknown := set(options.variants) - VARIANTS.keys():
        parser.error(f"unknown variant {', '.join(sorted(unknown))}; expected {', '.join(VARIANTS)}")
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
        flat[f"corrupted_iou_{name}"], flat[f"refined_iou_{name}"] = lift(timed[name], data)
    _print_tables(figures, flat)
    write_json(flat, options.json)


def _flat(figures: Mapping[str, Figures]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, figure in figures.items():
        flat |= {
            f"J_{name}": figure.scores.jaccard.mean,
            f"F_{name}": figure.scores.boundary.mean,
            f"J&F_{name}": figure.scores.j_and_f,
        }
        flat |= {f"J&F_{name}_{score.sequence}": score.j_and_f for score in figure.scores.sequences}
        flat |= {f"{outcome}_{name}": float(count) for outcome, count in figure.outcomes.items()}
    return flat


def _print_tables(figures: Mapping[str, Figures], flat: Mapping[str, float]) -> None:
    console = Console()
    scores = Table("sequence", title="J&F by sequence, means, and outcome counts")
    for name in figures:
        scores.add_column(name, justify="right")
    for sequence in (score.sequence for score in next(iter(figures.values())).scores.sequences):
        scores.add_row(sequence, *(f"{flat[f'J&F_{name}_{sequence}']:.3f}" for name in figures))
    scores.add_section()
    for figure in ("J", "F", "J&F"):
        scores.add_row(figure, *(f"{flat[f'{figure}_{name}']:.3f}" for name in figures))
    scores.add_section()
    for outcome in sorted({outcome for figure in figures.values() for outcome in figure.outcomes}):
        scores.add_row(outcome, *(str(figure.outcomes[outcome]) for figure in figures.values()))
    console.print(scores)
    cost = Table("", "ms/frame", "ms/extra object", "ten objects / one", "IoU corrupted", "IoU refined")
    for name in (key.removeprefix("ms_per_frame_") for key in flat if key.startswith("ms_per_frame_")):
        keys = (f"ms_per_frame_{name}", f"ms_per_extra_object_{name}")
        ious = (
            f"{flat[key]:.3f}" if key in flat else ""
            for key in (f"corrupted_iou_{name}", f"refined_iou_{name}")
        )
        cost.add_row(name, *(f"{flat[key]:.1f}" for key in keys), f"{flat[f'ten_{name}']:.2f}", *ious)
    console.print(cost)


if __name__ == "__main__":
    main()
