"""Results of a run: `results.csv`, `results.json`, `curves.json` and the table on the terminal."""

from __future__ import annotations

import csv
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.box import HEAVY_HEAD, SIMPLE_HEAD
from rich.table import Table

from drift.formats.writer import atomic_path
from drift.metrics.davis import DavisScores, FrameScore, SequenceScore

__all__ = ["ClipResult", "absence_lines", "results_table", "scores_of", "versions", "write_results"]

STAGES = ("decode", "features", "kernel", "refine", "attention", "write", "score")
"""Stages that are timed. `decode`, `write` and `score` run in threads, so the sum may exceed the wall time."""

_COLUMNS = (
    *("sequence", "object", "frames", "J", "F", "J&F"),
    *("J_recall", "J_decay", "F_recall", "F_decay", "seconds_per_frame"),
)


@dataclass(frozen=True)
class ClipResult:
    """Results of one clip, without its scores.

    Attributes:
        name: name of the sequence.
        frames: number of frames.
        seconds: wall time of the clip, without attention figures and adaptation.
        stages: seconds per stage, see `STAGES`.
        overlay: path of the overlay video, or None.
        attention: path of the attention figure, or None.
        samples: folder of the sampled frames, or None.
        adaptation: figures of the adaptation, such as steps, final losses and `seconds`; empty without adaptation.
        losses: loss per step, by name.
        head_weights: weight of each head per layer; empty if heads are weighted uniformly.
        frame_scores: J and F of each object in each scored frame.
        peak_memory: in bytes; on a GPU the peak allocation during this clip, on a CPU that of the process so far.
        warning: objects that are nearly empty, and why adaptation was abandoned; or None.
        refinements: outcome counts of the mask refinement; empty without refinement.
        absences: by object id, the first and the last index of each span of frames in which its mask is empty.
        defect: why the clip ends before the end of its source, or None.
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
    absences: Mapping[int, Sequence[tuple[int, int]]] = field(default_factory=dict)
    defect: str | None = None

    @property
    def seconds_per_frame(self) -> float:
        """Wall time per frame, without attention figures and adaptation."""
        return self.seconds / self.frames


def absence_lines(absences: Mapping[Any, Sequence[Sequence[int]]]) -> dict[str, str]:
    """Spans of frames in words, by object; see `ClipResult.absences`."""
    return {
        f"object {object_id}": "in frames " + ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in spans)
        for object_id, spans in absences.items()
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect results."""
    packages = ("drift", "torch", "lightning", "diffusers", "transformers", "numpy", "pillow", "av")
    by_name = {"python": platform.python_version()}
    for package in packages:
        try:
            by_name[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            by_name[package] = "not installed"
    return by_name


def write_results(
    folder: Path,
    clips: Sequence[ClipResult],
    scores: DavisScores,
    *,
    config: Mapping[str, Any],
) -> None:
    """Writes `results.csv` (one row per object), `results.json` and `curves.json` atomically.

    `curves.json` contains the scores per frame, the losses per step and the head weights of each clip. Scores
    are in [0, 1]; for clips that were not scored they are null in JSON and empty in CSV.

    Args:
        folder: `output.dir`.
        clips: completed clips.
        scores: scores of these clips.
        config: resolved configuration.
    """
    by_name = {score.sequence: score for score in scores.sequences}
    _write_json(folder / "results.json", _summary(clips, scores, by_name, config), indent=2)
    _write_json(folder / "curves.json", {clip.name: _curves(clip) for clip in clips})
    with (
        atomic_path(folder / "results.csv") as partial,
        partial.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for clip in clips:
            writer.writerows(_rows(clip, by_name.get(clip.name)))


def _rows(clip: ClipResult, score: SequenceScore | None) -> list[list[object]]:
    speed = round(clip.seconds_per_frame, 4)
    if score is None:
        return [[clip.name, "", clip.frames, *[""] * 7, speed]]
    rows: list[list[object]] = []
    for item in score.objects:
        j, f = item.jaccard, item.boundary
        values = (j.mean, f.mean, item.j_and_f, j.recall, j.decay, f.recall, f.decay)
        rows.append([clip.name, item.object_id, clip.frames, *(f"{v:.6f}" for v in values), speed])
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
        optional = {
            "adaptation": dict(clip.adaptation),
            "refinements": dict(clip.refinements),
            "absences": {str(object_id): spans for object_id, spans in clip.absences.items()},
            "warning": clip.warning,
            "defect": clip.defect,
        }
        sequences[clip.name] = {
            **scores_of(by_name.get(clip.name)),
            "frames": clip.frames,
            "seconds_per_frame": clip.seconds_per_frame,
            "seconds_per_frame_by_stage": {
                stage: seconds / clip.frames for stage, seconds in clip.stages.items()
            },
            "peak_memory_mb": round(clip.peak_memory / 1e6, 1),
            **{key: value for key, value in optional.items() if value},
        }
    return {
        **scores_of(scores),
        "J_recall": _or_none(scores.jaccard.recall),
        "J_decay": _or_none(scores.jaccard.decay),
        "F_recall": _or_none(scores.boundary.recall),
        "F_decay": _or_none(scores.boundary.decay),
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
    for score in clip.frame_scores:
        curve = objects.setdefault(str(score.object_id), {"frames": [], "J": [], "F": []})
        curve["frames"].append(score.frame)
        curve["J"].append(round(score.jaccard, 4))
        curve["F"].append(round(score.boundary, 4))
    return {
        "objects": objects,
        "losses": {name: list(losses) for name, losses in clip.losses.items()},
        "head_weights": {layer: list(weights) for layer, weights in clip.head_weights.items()},
    }


def scores_of(score: DavisScores | SequenceScore | None) -> dict[str, float | None]:
    """J, F and J&F in [0, 1]; None if nothing was scored."""
    if score is None:
        return {"J": None, "F": None, "J&F": None}
    return {
        "J": _or_none(score.jaccard.mean),
        "F": _or_none(score.boundary.mean),
        "J&F": _or_none(score.j_and_f),
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _write_json(path: Path, content: object, indent: int | None = None) -> None:
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


def results_table(clips: Sequence[ClipResult], scores: DavisScores) -> Table:
    """Table of the clips with their scores, and the means over all objects; without scores if none were computed."""
    if not scores.sequences:
        return _table_without_scores(clips)
    adapted = any(clip.adaptation for clip in clips)
    box = SIMPLE_HEAD if adapted else HEAVY_HEAD  # narrower, to fit the additional column in 80 characters
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
    table = Table(title="Clips (not scored: no ground truth)", title_style="bold", header_style="bold")
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
