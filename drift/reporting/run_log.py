"""What a run says on the terminal: a line for each clip and a table at the end, or the same as JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from drift.metrics.davis import DavisScores, SequenceScore, scored_frames
from drift.reporting.results import ClipResult, results_table, scores_of

__all__ = ["RunLog"]


class RunLog:
    """The lines of a run.

    Args:
        console: where they are printed.
        as_json: one JSON object a line, and nothing else.
        verbose: says of each clip where its time went, what became of its masks and how it was adapted to.
        last_frame: whether clips' last frames are scored.
    """

    def __init__(
        self, console: Console, *, as_json: bool = False, verbose: bool = False, last_frame: bool = False
    ) -> None:
        self.console, self.as_json, self.verbose, self.last_frame = console, as_json, verbose, last_frame

    def clip(self, result: ClipResult, score: SequenceScore | None) -> str:
        """The line of a clip that is done, in rich's markup."""
        if self.as_json:
            return escape(json.dumps(self._record(result, score)))
        speed = f"{result.frames} frames, {1 / result.seconds_per_frame:.2f} frames/s"
        line = f"[bold]{result.name}[/]  {self._scores(result, score)}  ({speed})"
        if result.warning:
            line += f"\n  [yellow]warning: {result.name}: {result.warning}[/]"
        return line + self._details(result) if self.verbose else line

    def end(
        self, clips: Sequence[ClipResult], scores: DavisScores, folder: Path, submission: Path | None
    ) -> None:
        """Prints what the run comes to, and where its files are.

        Args:
            clips, scores: of the whole run.
            folder: of its files.
            submission: the archive for a server, if one was made.
        """
        if self.as_json:
            told = {"event": "run", **scores_of(scores), "output": str(folder)}
            if submission:
                told["submission"] = str(submission)
            self.console.print(json.dumps(told), soft_wrap=True, highlight=False, markup=False)
            return
        self.console.print(results_table(clips, scores))
        self.console.print(f"masks, overlays and results: {folder}", soft_wrap=True)
        if (report := folder / "report.html").is_file():
            self.console.print(f"to look at: {report}", soft_wrap=True)
        if submission:
            self.console.print(f"for the server: {submission}", soft_wrap=True)

    def _scores(self, result: ClipResult, score: SequenceScore | None) -> str:
        if score is not None:
            j, f = score.jaccard.mean, score.boundary.mean
            return f"J&F {score.j_and_f:.3f}  J {j:.3f}  F {f:.3f}"
        if len(scored_frames(result.frames, last_frame=self.last_frame)):
            return "not scored (no true masks)"
        return "nothing to score (first and last frame are not)"

    @staticmethod
    def _details(result: ClipResult) -> str:
        stages = {stage: f"{seconds / result.frames:.3f}" for stage, seconds in result.stages.items()}
        figures = {name: f"{value:.3g}" for name, value in result.adaptation.items()}
        parts = [("seconds a frame", stages), ("masks", result.refinements), ("adaptation", figures)]
        return "".join(
            f"\n  {what}: " + ", ".join(f"{name} {value}" for name, value in told.items())
            for what, told in parts
            if told
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
            "warning": result.warning,
            "defect": result.defect,
        }
