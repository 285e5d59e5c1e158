"""Lightning callback that logs metrics to all loggers, and media to W&B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger, WandbLogger

from drift.callbacks import ResultsWriter
from drift.metrics.davis import DavisScores, SequenceScore
from drift.reporting.head_figure import draw_head_weights
from drift.reporting.loggers import GuardedLoggers
from drift.reporting.results import ClipResult, scores_of, versions
from drift.reporting.sampled_frames import errors_path

__all__ = ["Dashboard"]

_HEADER = ["sequence", "frames", "J", "F", "J&F", "seconds_per_frame", "peak_memory_mb", "adaptation_seconds"]


class Dashboard(L.Callback):
    """Logs each clip when it is finished, and the whole data set at the end. A failing logger does not affect the run.

    Only rank 0 logs; clips of other processes are logged at the end. The media are those that the run writes to its
    output folder (`output.pictured_clips`, `output.sampled_frames`, `output.formats`).

    Args:
        config: the resolved configuration.
        results: collects the results of all processes; must precede this callback in the trainer's list.
    """

    def __init__(self, config: Mapping[str, Any], results: ResultsWriter) -> None:
        self.config, self.results = config, results
        self._logged: list[str] = []
        self._loggers: GuardedLoggers | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the configuration and package versions."""
        hyperparameters = {**self.config, "versions": versions()}
        self._guarded(trainer).log(lambda logger: logger.log_hyperparams(hyperparameters))

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: ClipResult | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Logs a clip; the step is the number of clips logged before it."""
        if outputs is not None and trainer.is_global_zero:
            self._log_clip(trainer, outputs, self.results.score_so_far(pl_module, outputs.name))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the clips of other processes, the mean scores, and a table of all clips."""
        if not trainer.is_global_zero:
            return
        scores = self.results.scores
        by_name = {score.sequence: score for score in scores.sequences} if scores else {}
        for clip in self.results.clips:
            if clip.name not in self._logged:
                self._log_clip(trainer, clip, by_name.get(clip.name))
        self._guarded(trainer).log(lambda logger: self._log_all(logger, scores, by_name))
        self._guarded(trainer).finish()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Marks the W&B run as failed and ends it, so that the next run of a sweep starts a new one."""
        self._guarded(trainer).finish(exit_code=1)

    def _log_clip(self, trainer: L.Trainer, clip: ClipResult, score: SequenceScore | None) -> None:
        step = len(self._logged)
        self._logged.append(clip.name)
        metrics = _metrics(clip, score)
        loggers = self._guarded(trainer)
        loggers.log(lambda logger: logger.log_metrics(metrics, step=step))
        if step < self.config["output"]["pictured_clips"]:
            loggers.log(lambda logger: _log_adapter(logger, clip, step), kind="pictures")
        loggers.log(lambda logger: _log_media(logger, clip, step), kind="pictures")

    def _guarded(self, trainer: L.Trainer) -> GuardedLoggers:
        self._loggers = self._loggers or GuardedLoggers(
            trainer.loggers, is_global_zero=trainer.is_global_zero
        )
        return self._loggers

    def _log_all(
        self, logger: Logger, scores: DavisScores | None, by_name: Mapping[str, SequenceScore]
    ) -> None:
        clips = self.results.clips
        frames = max(sum(clip.frames for clip in clips), 1)
        metrics = {name: value for name, value in scores_of(scores).items() if value is not None}
        metrics["seconds_per_frame"] = sum(clip.seconds for clip in clips) / frames
        metrics["adaptation_seconds"] = sum(clip.adaptation.get("seconds", 0.0) for clip in clips)
        metrics["peak_memory_mb"] = max((clip.peak_memory / 1e6 for clip in clips), default=0.0)
        logger.log_metrics(metrics, step=len(clips))
        if isinstance(logger, WandbLogger):
            rows = [_row(clip, by_name.get(clip.name)) for clip in clips]
            logger.log_table("results", columns=_HEADER, data=rows)
            logger.experiment.summary.update(metrics)


def _metrics(clip: ClipResult, score: SequenceScore | None) -> dict[str, float]:
    metrics = {"seconds_per_frame": clip.seconds_per_frame, "peak_memory_mb": clip.peak_memory / 1e6}
    metrics |= {f"adaptation/{name}": value for name, value in clip.adaptation.items()}
    metrics |= {f"refinements/{name}": count for name, count in clip.refinements.items()}
    metrics |= {name: value for name, value in scores_of(score).items() if value is not None}
    return {f"{clip.name}/{name}": value for name, value in metrics.items()}


def _row(clip: ClipResult, score: SequenceScore | None) -> list[Any]:
    scores = list(scores_of(score).values())
    seconds = clip.adaptation.get("seconds")
    return [clip.name, clip.frames, *scores, clip.seconds_per_frame, clip.peak_memory / 1e6, seconds]


def _log_adapter(logger: Logger, clip: ClipResult, step: int) -> None:
    """Logs to W&B: losses and head weights."""
    if not isinstance(logger, WandbLogger):
        return
    if clip.losses:
        _log_losses(logger, clip, step)
    if clip.head_weights:
        figure = draw_head_weights(clip.head_weights, title=f"{clip.name}: head weights")
        logger.log_image(f"{clip.name}/head_weights", [figure], step=step)


def _log_media(logger: Logger, clip: ClipResult, step: int) -> None:
    """Logs to W&B: attention, sampled frames and the overlay video."""
    if not isinstance(logger, WandbLogger):
        return
    if clip.attention and clip.attention.is_file():
        logger.log_image(f"{clip.name}/attention", [str(clip.attention)], step=step)
    if clip.samples and clip.samples.is_dir():
        overlays = [path for path in sorted(clip.samples.glob("*.jpg")) if path.stem.isdigit()]
        kinds = {"frames": overlays, "errors": [errors_path(path) for path in overlays]}
        for kind, paths in kinds.items():
            images = [str(path) for path in paths if path.is_file()]
            captions = [f"frame {int(path.name.split('.')[0])}" for path in paths if path.is_file()]
            if images:
                logger.log_image(f"{clip.name}/{kind}", images, step, caption=captions)
    if clip.overlay and clip.overlay.is_file() and clip.samples:
        logger.log_video(f"{clip.name}/overlay", [str(clip.overlay)], step=step, format=["mp4"])


def _log_losses(logger: WandbLogger, clip: ClipResult, step: int) -> None:
    import wandb  # takes seconds to import, and is not needed by every run

    losses = [list(values) for values in clip.losses.values()]
    steps = [list(range(len(values))) for values in losses]
    title = f"{clip.name}: losses of the adaptation"
    chart = wandb.plot.line_series(steps, losses, list(clip.losses), title, "step")
    logger.experiment.log({f"{clip.name}/losses": chart, "trainer/global_step": step})
