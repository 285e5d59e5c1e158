"""Lightning callbacks of a prediction run: results on disk and dashboards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch.distributed
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.loggers import WandbLogger

from drift.metrics.davis import DavisScores
from drift.module import TrackingModule
from drift.reporting.loggers import finish
from drift.reporting.results import ClipResult, scores_of, write_results
from drift.reporting.run_log import RunLog

__all__ = ["Dashboard", "ResultsWriter"]


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
            line = self.run_log.clip(prediction, pl_module.score.so_far(prediction.name))
            pl_module.progress.clip_done(line)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Gathers all processes' results."""
        assert isinstance(pl_module, TrackingModule)
        if trainer.world_size > 1:
            gathered: list[list[ClipResult]] = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(gathered, self.clips)
            order = {name: place for place, name in enumerate(pl_module.score.sequences)}
            merged = {clip.name: clip for clips in gathered for clip in clips}
            self.clips = sorted(merged.values(), key=lambda clip: order[clip.name])
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
        if write and self.clips:
            write_results(module.output.root, self.clips, self.scores, config=self.config)


class Dashboard(L.Callback):
    """Hands each clip's scores, overlay and attention figure to the trainer's loggers."""

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: ClipResult | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Logs one clip; its step is the number of the clip."""
        assert isinstance(pl_module, TrackingModule)
        if outputs is None:
            return
        numbers = {f"{outputs.name}/seconds_per_frame": outputs.seconds_per_frame}
        numbers |= {f"{outputs.name}/adaptation/{key}": value for key, value in outputs.adaptation.items()}
        numbers |= {f"{outputs.name}/refinements/{key}": count for key, count in outputs.refinements.items()}
        scores = scores_of(pl_module.score.so_far(outputs.name))
        numbers |= {f"{outputs.name}/{name}": value for name, value in scores.items() if value is not None}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=batch_idx)
            if isinstance(logger, WandbLogger):
                if outputs.attention is not None:
                    logger.log_image(f"{outputs.name}/attention", [str(outputs.attention)], step=batch_idx)
                if outputs.overlay is not None:
                    logger.log_video(
                        f"{outputs.name}/overlay", [str(outputs.overlay)], step=batch_idx, format=["mp4"]
                    )

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Ends a W&B run that failed, so that the next run of a sweep has one of its own."""
        finish(trainer, exit_code=1)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the scores of the whole set."""
        assert isinstance(pl_module, TrackingModule)
        scores = pl_module.score.compute()
        for logger in trainer.loggers:
            if scores.sequences:
                logger.log_metrics(
                    {"J": scores.jaccard.mean, "F": scores.boundary.mean, "J&F": scores.j_and_f}
                )
        finish(trainer)
