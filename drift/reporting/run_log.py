"""Terminal output of a run: one line per clip and a final table, or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from drift.metrics.davis import DavisScores, SequenceScore, scored_frames
from drift.reporting.results import ClipResult, absence_lines, results_table, scores_of

__all__ = ["RunLog"]


class RunLog:
    """Formats and prints the results of a run.

    Args:
        console: rich console.
        as_json: print only JSON objects, one per line.
        verbose: add seconds per stage, refinement outcomes and adaptation figures of each clip.
        last_frame: whether the last frame of each clip is scored.
    """

    def __init__(
        self, console: Console, *, as_json: bool = False, verbose: bool = False, last_frame: bool = False
    ) -> None:
        self.console, self.as_json, self.verbose, self.last_frame = console, as_json, verbose, last_frame

    def clip(self, result: ClipResult, score: SequenceScore | None) -> str:
        """Line of a completed clip, in rich markup."""
        if self.as_json:
            return escape(json.dumps(self._record(result, score)))
        speed = f"{result.frames} frames, {1 / result.seconds_per_frame:.2f} frames/s"
        scores = self._scores(result, score)
        line = f"[bold]{result.name}[/]  {scores and scores + '  '}({speed})"
        if result.warning:
            line += f"\n  [yellow]warning: {result.name}: {result.warning}[/]"
        return line + self._details(result) if self.verbose else line

    def end(
        self, clips: Sequence[ClipResult], scores: DavisScores, folder: Path, submission: Path | None
    ) -> None:
        """Prints the scores of the run and the paths of its outputs.

        Args:
            clips: completed clips.
            scores: scores of these clips.
            folder: `output.dir`.
            submission: archive for the evaluation server, or None.
        """
        if self.as_json:
            record = {"event": "run", **scores_of(scores), "output": str(folder)}
            if submission:
                record["submission"] = str(submission)
            self.console.print(json.dumps(record), soft_wrap=True, highlight=False, markup=False)
            return
        if scores.sequences or len(clips) > 1:  # a clip without scores has had its line
            self.console.print(results_table(clips, scores))
        self.console.print(f"output: {folder}", soft_wrap=True)
        if (report := folder / "report.html").is_file():
            self.console.print(f"report: {report}", soft_wrap=True)
        if submission:
            self.console.print(f"submission: {submission}", soft_wrap=True)

    def _scores(self, result: ClipResult, score: SequenceScore | None) -> str:
        if score is not None:
            j, f = score.jaccard.mean, score.boundary.mean
            return f"J&F {score.j_and_f:.3f}  J {j:.3f}  F {f:.3f}"
        if len(scored_frames(result.frames, last_frame=self.last_frame)):
            return ""
        return "nothing to score (first and last frame are not scored)"

    @staticmethod
    def _details(result: ClipResult) -> str:
        stages = {stage: f"{seconds / result.frames:.3f}" for stage, seconds in result.stages.items()}
        figures = {name: f"{value:.3g}" for name, value in result.adaptation.items()}
        sections = [("seconds a frame", stages), ("refinement", result.refinements), ("adaptation", figures)]
        sections.append(("absent", absence_lines(result.absences)))
        return "".join(
            f"\n  {title}: " + ", ".join(f"{name} {value}" for name, value in values.items())
            for title, values in sections
            if values
        )

    @staticmethod
    def _record(result: ClipResult, score: SequenceScore | None) -> dict[str, Any]:
        return {
            "event": "clip",
            "sequence": result.name,
            **scores_of(score),
            "frames": result.frames,
            "seconds_per_frame": result.seconds_per_frame,
            "seconds_by_stage": dict(result.stages),
            "refinements": dict(result.refinements),
            "adaptation": dict(result.adaptation),
            "absences": {str(object_id): spans for object_id, spans in result.absences.items()},
            "warning": result.warning,
            "defect": result.defect,
        }
