"""Lightning callbacks of a prediction run: what it leaves on the disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed
from lightning.pytorch.callbacks import BasePredictionWriter

from drift.metrics.davis import DavisScores, SequenceScore
from drift.module import TrackingModule
from drift.reporting.never_fatal import never_fatal
from drift.reporting.report import write_report
from drift.reporting.results import ClipResult, write_results
from drift.reporting.run_log import RunLog

__all__ = ["ReportWriter", "ResultsWriter"]


class ResultsWriter(BasePredictionWriter):
    """Writes the results after every clip, so that a run that ends early leaves those of all clips done.

    With several processes, they are merged and written by the first one, and only at the end.

    Args:
        config: the resolved configuration, stored with the results.
        log: says of each clip that it is done.

    Attributes:
        clips: the results so far; at the end, of all processes.
        scores: of all clips, at the end.
    """

    def __init__(self, config: Mapping[str, Any], log: RunLog) -> None:
        super().__init__(write_interval="batch")
        self.config, self.run_log = config, log
        self.clips: list[ClipResult] = []
        self.scores: DavisScores | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws the bar of clips."""
        assert isinstance(pl_module, TrackingModule)
        if pl_module.progress:
            pl_module.progress.start(int(sum(trainer.num_predict_batches)))

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: ClipResult | None,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keeps a clip's result; alone, writes all results so far."""
        assert isinstance(pl_module, TrackingModule)
        if prediction is None:
            return
        self.clips.append(prediction)
        if trainer.world_size == 1:
            self._write(pl_module)
        if pl_module.progress:
            line = self.run_log.clip(prediction, self.score_so_far(pl_module, prediction.name))
            pl_module.progress.clip_done(line)

    @staticmethod
    def score_so_far(module: L.LightningModule, sequence: str) -> SequenceScore | None:
        """A sequence's score, where this process scored it."""
        assert isinstance(module, TrackingModule)
        return module.score.so_far(sequence)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gathers all processes' results."""
        assert isinstance(pl_module, TrackingModule)
        if trainer.world_size > 1:
            gathered: list[list[ClipResult]] = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(gathered, self.clips)
            merged = {clip.name: clip for clips in gathered for clip in clips}
            self.clips = list(merged.values())
        self._write(pl_module, write=trainer.is_global_zero)
        if pl_module.progress:
            pl_module.progress.stop()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Clears the bars, so that the error stands alone."""
        if isinstance(pl_module, TrackingModule) and pl_module.progress:
            pl_module.progress.stop()

    def _write(self, module: TrackingModule, *, write: bool = True) -> None:
        self.scores = module.score.compute()
        self.clips.sort(key=lambda clip: module.score.sequences.index(clip.name))
        if write and self.clips:
            write_results(module.output.root, self.clips, self.scores, config=self.config)


class ReportWriter(L.Callback):
    """Writes `report.html` when all is done, or what ended the run has left something to show.

    Args:
        folder: of the run.
        results: writes the results, before.
    """

    def __init__(self, folder: Path, results: ResultsWriter) -> None:
        self.folder, self.results = folder, results

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes it."""
        self._write(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Writes it, of the clips that are done."""
        if trainer.world_size == 1:
            self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero or not self.results.clips:
            return
        with never_fatal("no report.html"):
            write_report(self.folder)
