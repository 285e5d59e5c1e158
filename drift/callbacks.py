"""Lightning callbacks that write the results and the report of a run."""

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
    """Writes the results after every clip, so that a run that ends early leaves those of all finished clips.

    With several processes the first one merges and writes them at the end.

    Args:
        config: the resolved configuration, stored with the results.
        log: prints a line per clip.

    Attributes:
        clips: results so far; at the end, those of all processes.
        scores: scores of all clips, at the end.
    """

    def __init__(self, config: Mapping[str, Any], log: RunLog) -> None:
        super().__init__(write_interval="batch")
        self.config, self.run_log = config, log
        self.clips: list[ClipResult] = []
        self.scores: DavisScores | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Shows the progress bar of the clips."""
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
        """Adds the result of a clip; a single process writes all results so far."""
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
        """Score of a sequence, if this process scored it."""
        assert isinstance(module, TrackingModule)
        return module.score.so_far(sequence)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gathers the results of all processes."""
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
        """Removes the progress bars before the error is printed."""
        if isinstance(pl_module, TrackingModule) and pl_module.progress:
            pl_module.progress.stop()

    def _write(self, module: TrackingModule, *, write: bool = True) -> None:
        self.scores = module.score.compute()
        self.clips.sort(key=lambda clip: module.score.sequences.index(clip.name))
        if write and self.clips:
            write_results(module.output.root, self.clips, self.scores, config=self.config)


class ReportWriter(L.Callback):
    """Writes `report.html` at the end of a run, also after an error if any clip is finished.

    Args:
        folder: folder of the run.
        results: the callback that writes the results; must precede this one.
    """

    def __init__(self, folder: Path, results: ResultsWriter) -> None:
        self.folder, self.results = folder, results

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the report."""
        self._write(trainer)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Writes the report of the finished clips."""
        if trainer.world_size == 1:
            self._write(trainer)

    def _write(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero or not self.results.clips:
            return
        with never_fatal("no report.html"):
            write_report(self.folder)
