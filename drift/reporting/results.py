"""`results.csv`, `results.json` and the table on the screen."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.box import HEAVY_HEAD, SIMPLE_HEAD
from rich.table import Table

from drift.metrics.davis import DavisScores, FrameScore, SequenceScore

__all__ = ["ClipResult", "results_table", "scores_of", "versions", "write_results"]

STAGES = ("decode", "encode", "unet", "cache", "kernel", "refine", "attention", "write", "score")
"""Decoding, writing and scoring run in threads beside the others, so the stages' sum may exceed the whole."""


_COLUMNS = (
    *("sequence", "object", "frames", "J", "F", "J&F"),
    *("J_recall", "J_decay", "F_recall", "F_decay", "seconds_per_frame"),
)


@dataclass(frozen=True)
class ClipResult:
    """What a run says of one clip, its scores apart.

    Attributes:
        name: the sequence.
        frames: how many frames it has.
        seconds: wall time of the clip, without that of pictures of its attention.
        stages: seconds by stage, see `STAGES`.
        overlay: the overlay video, if one was made.
        attention: where the attention figure goes, if one is made.
        samples: likewise the folder of sampled frames.
        adaptation: how the clip's adapter was learned: steps, losses, and `seconds`, which `seconds` above do
            not hold; empty where nothing was.
        losses: by what was learned, the loss of each step.
        head_weights: by layer, one for each head; empty where all count the same.
        frame_scores: of each object in each frame that was scored.
        peak_memory: in bytes: on a GPU what this clip took there, on a CPU the process' peak so far.
        warning: why it was given up, or None.
        refinements: how often what became of an object that was to be refined; empty where nothing was.
        defect: why the clip ends before its source does, or None.
    """

    name: str
    frames: int
    seconds: float
    stages: Mapping[str, float]
    overlay: Path | None = None
    attention: Path | None = None
    samples: Path | None = None
    adaptation: Mapping[str, float] = field(default_factory=dict)
    losses: Mapping[str, Sequence[float]] = field(default_factory=dict)
    head_weights: Mapping[str, Sequence[float]] = field(default_factory=dict)
    frame_scores: Sequence[FrameScore] = ()
    peak_memory: int = 0
    warning: str | None = None
    refinements: Mapping[str, int] = field(default_factory=dict)
    defect: str | None = None

    @property
    def seconds_per_frame(self) -> float:
        """Wall time over frames."""
        return self.seconds / self.frames


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    names = ("drift", "torch", "lightning", "diffusers", "transformers", "numpy", "pillow", "av")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def write_results(
    folder: Path,
    clips: Sequence[ClipResult],
    scores: DavisScores,
    *,
    config: Mapping[str, Any],
) -> None:
    """Writes `results.csv` (one row per object), `results.json` and `curves.json`, each whole or not at all.

    The curves are the scores of each frame, the losses of each step and the weights of each head.

    Scores are fractions; where nothing was scored they are null in the JSON and empty in the CSV.

    Args:
        folder: `output.dir`.
        clips: the clips that are done.
        scores: of those clips.
        config: the resolved configuration.
    """
    by_name = {score.sequence: score for score in scores.sequences}
    _replace(folder / "results.json", json.dumps(_summary(clips, scores, by_name, config), indent=2) + "\n")
    _replace(folder / "curves.json", json.dumps({clip.name: _curves(clip) for clip in clips}) + "\n")
    partial = folder / ".results.csv.partial"
    with partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for clip in clips:
            writer.writerows(_rows(clip, by_name.get(clip.name)))
    os.replace(partial, folder / "results.csv")


def _rows(clip: ClipResult, score: SequenceScore | None) -> list[list[object]]:
    speed = round(clip.seconds_per_frame, 4)
    if score is None:
        return [[clip.name, "", clip.frames, *[""] * 7, speed]]
    rows: list[list[object]] = []
    for one in score.objects:
        j, f = one.jaccard, one.boundary
        values = (j.mean, f.mean, one.j_and_f, j.recall, j.decay, f.recall, f.decay)
        rows.append([clip.name, one.object_id, clip.frames, *(f"{v:.6f}" for v in values), speed])
    return rows


def _summary(
    clips: Sequence[ClipResult],
    scores: DavisScores,
    by_name: Mapping[str, SequenceScore],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    frames = sum(clip.frames for clip in clips)
    stages = {stage: sum(clip.stages.get(stage, 0.0) for clip in clips) / max(frames, 1) for stage in STAGES}
    sequences: dict[str, dict[str, Any]] = {}
    for clip in clips:
        score = by_name.get(clip.name)
        sequences[clip.name] = {
            **scores_of(score),
            "frames": clip.frames,
            "seconds_per_frame": clip.seconds_per_frame,
            "seconds_per_frame_by_stage": {
                stage: seconds / clip.frames for stage, seconds in clip.stages.items()
            },
            "peak_memory_mb": round(clip.peak_memory / 1e6, 1),
        }
        if clip.adaptation:
            sequences[clip.name]["adaptation"] = dict(clip.adaptation)
        if clip.refinements:
            sequences[clip.name]["refinements"] = dict(clip.refinements)
        if clip.warning:
            sequences[clip.name]["warning"] = clip.warning
        if clip.defect:
            sequences[clip.name]["defect"] = clip.defect
    return {
        **scores_of(scores),
        "J_recall": _number(scores.jaccard.recall),
        "J_decay": _number(scores.jaccard.decay),
        "F_recall": _number(scores.boundary.recall),
        "F_decay": _number(scores.boundary.decay),
        "sequences": sequences,
        "frames": frames,
        "seconds_per_frame": sum(clip.seconds for clip in clips) / max(frames, 1),
        "seconds_per_frame_by_stage": stages,
        "adaptation_seconds": sum(clip.adaptation.get("seconds", 0.0) for clip in clips),
        "seed": config.get("seed"),
        "config": dict(config),
        "versions": versions(),
    }


def _curves(clip: ClipResult) -> dict[str, Any]:
    objects: dict[str, dict[str, list[float]]] = {}
    for one in clip.frame_scores:
        curve = objects.setdefault(str(one.object_id), {"frames": [], "J": [], "F": []})
        curve["frames"].append(one.frame)
        curve["J"].append(round(one.jaccard, 4))
        curve["F"].append(round(one.boundary, 4))
    return {
        "objects": objects,
        "losses": {name: list(losses) for name, losses in clip.losses.items()},
        "head_weights": {layer: list(weights) for layer, weights in clip.head_weights.items()},
    }


def scores_of(score: DavisScores | SequenceScore | None) -> dict[str, float | None]:
    """J, F and J&F by name, as fractions; None where nothing was scored."""
    if score is None:
        return {"J": None, "F": None, "J&F": None}
    return {
        "J": _number(score.jaccard.mean),
        "F": _number(score.boundary.mean),
        "J&F": _number(score.j_and_f),
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def results_table(clips: Sequence[ClipResult], scores: DavisScores) -> Table:
    """One line per sequence and the mean over all objects, for the screen."""
    if not scores.sequences:
        return _table_without_scores(clips)
    adapted = any(clip.adaptation for clip in clips)
    box = SIMPLE_HEAD if adapted else HEAVY_HEAD  # one column more has to fit 80 characters
    table = Table(title="Segmentation scores", title_style="bold", header_style="bold", box=box)
    table.add_column("sequence", no_wrap=True)
    for column in ("objects", "frames", "J", "F", "J&F", "s/frame"):
        table.add_column(column, justify="right")
    if adapted:
        table.add_column("adapt s", justify="right")
    by_name = {score.sequence: score for score in scores.sequences}
    for clip in clips:
        score = by_name.get(clip.name)
        counts = [str(len(score.objects)) if score else "-", str(clip.frames)]
        cells = [*counts, *_cells(score), f"{clip.seconds_per_frame:.2f}"]
        table.add_row(clip.name, *cells, *([f"{clip.adaptation.get('seconds', 0.0):.1f}"] if adapted else []))
    frames = sum(clip.frames for clip in clips)
    speed = sum(clip.seconds for clip in clips) / max(frames, 1)
    table.add_section()
    cells = [str(len(scores.objects)), str(frames), *_cells(scores), f"{speed:.2f}"]
    if adapted:
        cells.append(f"{sum(clip.adaptation.get('seconds', 0.0) for clip in clips):.1f}")
    table.add_row("all objects", *cells, style="bold")
    return table


def _table_without_scores(clips: Sequence[ClipResult]) -> Table:
    """What there is to tell of clips that have no true masks to be scored against."""
    table = Table(title="Clips (no true masks: not scored)", title_style="bold", header_style="bold")
    table.add_column("sequence", no_wrap=True)
    for column in ("frames", "seconds", "s/frame"):
        table.add_column(column, justify="right")
    for clip in clips:
        table.add_row(clip.name, str(clip.frames), f"{clip.seconds:.1f}", f"{clip.seconds_per_frame:.2f}")
    return table


def _cells(score: DavisScores | SequenceScore | None) -> list[str]:
    if score is None:
        return ["-", "-", "not scored"]
    return [f"{v:.3f}" for v in (score.jaccard.mean, score.boundary.mean, score.j_and_f)]
