"""Masks from boxes, clicks and masks: `python -m benchmarks.prompts ROOT --json FILE`.

IoU with the true mask on the first frame of each clip of a folder in DAVIS-2016's layout, for the embedded Segment
Anything model and for GrabCut. Prompts are the exact box; one click in the middle of the object; five clicks, each in
the middle of the largest error of the last mask, as in the evaluation of Segment Anything; and the true mask with the
errors of `pretraining.corruption`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, UInt8
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import arguments, write_json
from benchmarks.quality import composed
from datamodules.davis import Davis2016
from drift.clip import ObjectPrompt
from drift.command_line import build, keep_freed_memory
from drift.refinement.refinement import Proposer
from pretraining.corruption import corrupted
from pretraining.interaction import next_point

__all__ = ["KINDS", "main", "prompted"]

PROPOSERS = ("grabcut", "sam_tiny")
KINDS = ("box", "one click", "five clicks", "mask")
_CLICKS = 5
_TOKENS = 107  # across the longer side of the corrupted mask


def prompted(
    proposer: Proposer, frame: UInt8[np.ndarray, "height width 3"], truth: Bool[np.ndarray, "height width"]
) -> dict[str, float]:
    """IoU with the true mask by kind of prompt, and the IoU of the corrupted mask before refinement (`corrupted`)."""
    picture = torch.from_numpy(frame)
    rows, columns = np.nonzero(truth)
    box = (float(columns.min()), float(rows.min()), float(columns.max()) + 1, float(rows.max()) + 1)
    ious = {"box": _iou(proposer.segment(picture, ObjectPrompt(1, box)).numpy(), truth)}
    mask, points, inside = np.zeros_like(truth), [], []
    for clicks in range(1, _CLICKS + 1):
        column, row, is_inside = next_point(truth, mask)
        points.append((float(column), float(row)))
        inside.append(is_inside)
        mask = proposer.segment(picture, ObjectPrompt(1, None, tuple(points), tuple(inside))).numpy()
        if clicks in (1, _CLICKS):
            ious["one click" if clicks == 1 else "five clicks"] = _iou(mask, truth)
    return ious | _from_mask(proposer, picture, truth)


def _from_mask(proposer: Proposer, picture: torch.Tensor, truth: np.ndarray) -> dict[str, float]:
    rows, columns = grid = proposer.grid((truth.shape[0], truth.shape[1]))
    small = cv2.resize(truth.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    soft = torch.from_numpy(corrupted(small, np.zeros_like(small), _TOKENS, np.random.default_rng(0)))
    with torch.inference_mode():
        proposals = proposer.propose(picture, torch.stack([1 - soft, soft]), [1])
    masks = torch.stack([soft, *proposals.probabilities[0, proposals.scores[0].argmax()][None]])
    full = torch.nn.functional.interpolate(masks[None], truth.shape, mode="bilinear")[0] > 0.5
    assert masks.shape[-2:] == grid
    return {"mask": _iou(full[1].numpy(), truth), "corrupted": _iou(full[0].numpy(), truth)}


def _iou(mask: np.ndarray, truth: np.ndarray) -> float:
    return float((mask & truth).sum() / max((mask | truth).sum(), 1))


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder in DAVIS-2016's layout")
    parser.add_argument("--sequences", type=lambda text: text.split(","), help="a,b: only these clips")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as refinement.KEY=VALUE")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    clips = list(Davis2016(options.root, sequences=options.sequences).predict_dataloader())
    results: dict[str, dict[str, dict[str, float]]] = {}
    for name in PROPOSERS:
        words = options.overrides if name == "sam_tiny" else []
        proposer = build(composed(f"refinement={name}", *words), "refinement").proposer
        results[name] = {
            clip.name: prompted(proposer, clip.frames[0], np.asarray(clip.truth[0]) > 0) for clip in clips
        }
    _print_table(results)
    write_json(
        {
            f"{kind}_{name}_{clip}": iou
            for name, by_clip in results.items()
            for clip, ious in by_clip.items()
            for kind, iou in ious.items()
        },
        options.json,
    )


def _print_table(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    table = Table("sequence", title="IoU by prompt")
    for name in results:
        for kind in KINDS:
            table.add_column(f"{name}, {kind}", justify="right")
    clips = list(next(iter(results.values())))
    for clip in clips:
        table.add_row(clip, *(f"{results[name][clip][kind]:.2f}" for name in results for kind in KINDS))
    table.add_section()
    means = (
        statistics.fmean(results[name][clip][kind] for clip in clips) for name in results for kind in KINDS
    )
    table.add_row("mean", *(f"{mean:.3f}" for mean in means))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
