"""The LightningModule whose `predict_step` learns one clip's adapter and leaves it in its file."""

from __future__ import annotations

from collections.abc import Mapping

from drift.clip import Clip
from drift.errors import InputError
from drift.module import ClipModule
from drift.reporting.loggers import GuardedLoggers

__all__ = ["AdaptersModule"]


class AdaptersModule(ClipModule):
    """Learns what `evaluate.py` would learn before it tracks."""

    _loggers: GuardedLoggers | None = None

    def on_predict_start(self) -> None:
        """Draws the bar of clips."""
        self._loggers = GuardedLoggers(self.trainer)
        if self.progress:
            self.progress.start(int(sum(self.trainer.num_predict_batches)))

    def predict_step(self, clip: Clip | None, batch_idx: int = 0) -> None:
        """Learns one clip's adapter, unless it is there; a process without a clip is given None."""
        if clip is None:
            return
        if not clip.given:
            raise InputError(f"{clip.name}: adapters are learned from masks; give data.mask")
        known = self.adapters.path(clip).exists()
        adapter = self.adapted(clip)
        figures = {f"{clip.name}/adaptation/{key}": value for key, value in adapter.figures.items()}
        assert self._loggers
        self._loggers.log(lambda logger: logger.log_metrics(figures, step=batch_idx))
        if self.progress:
            said = adapter.warning or ("already there" if known else _line(adapter.figures))
            self.progress.clip_done(f"[bold]{clip.name}[/]  {said}")

    def on_predict_end(self) -> None:
        """Ends a W&B run."""
        self.end_loggers()

    def end_loggers(self, exit_code: int = 0) -> None:
        """Ends a W&B run, so that the next run of a sweep has one of its own."""
        if self._loggers:
            self._loggers.finish(exit_code)
            self._loggers = None


def _line(figures: Mapping[str, float]) -> str:
    """What was learned, in a line: of every objective its steps and its loss before and after."""
    parts = [f"{figures['seconds']:.1f} s"]
    for key in figures:
        if key.endswith("_steps"):
            name = key.removesuffix("_steps")
            first, last = figures[f"{name}_first_loss"], figures[f"{name}_loss"]
            parts.append(
                f"{name.replace('_', ' ')}: {figures[key]:.0f} steps, loss {first:.3f} to {last:.3f}"
            )
    return ", ".join(parts)
