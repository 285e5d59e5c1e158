"""The LightningModule whose `predict_step` learns one clip's adapter and leaves it in its file."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from torch import nn

from drift.adaptation.checkpoints import AdapterFolder
from drift.backbone.interface import Backbone
from drift.clip import Clip
from drift.module import adapted
from drift.reporting.progress import ProgressBars

__all__ = ["AdaptersModule"]


class AdaptersModule(L.LightningModule):
    """Learns what `evaluate.py` would learn before it tracks.

    Args:
        backbone: an `nn.Module` that meets `Backbone`; moved by the trainer.
        adapters: the folder to fill.
        progress: where to show progress.
    """

    def __init__(self, backbone: Backbone, *, adapters: AdapterFolder, progress: ProgressBars) -> None:
        super().__init__()
        assert isinstance(backbone, nn.Module)
        self.backbone = backbone
        self.adapters = adapters
        self.progress = progress

    def transfer_batch_to_device(self, batch: Clip, device: torch.device, dataloader_idx: int) -> Clip:
        """A clip stays where it is: its given frames are moved one at a time."""
        return batch

    def on_predict_start(self) -> None:
        """Draws the bar of clips."""
        self.progress.start(int(sum(self.trainer.num_predict_batches)))

    def predict_step(self, clip: Clip, batch_idx: int = 0) -> None:
        """Learns one clip's adapter, unless it is there."""
        known = self.adapters.path(clip).exists()
        adapter = adapted(clip, self.backbone, self.adapters)
        for logger in self.trainer.loggers:
            figures = {f"{clip.name}/adaptation/{key}": value for key, value in adapter.figures.items()}
            logger.log_metrics(figures, step=batch_idx)
        self.progress.clip_done(
            f"[bold]{clip.name}[/]  "
            + (adapter.warning or ("already there" if known else _line(adapter.figures)))
        )

    def on_predict_end(self) -> None:
        """Ends a W&B run, so that the next run of a sweep has one of its own."""
        for logger in self.trainer.loggers:
            logger.save()
            if isinstance(logger, WandbLogger) and self.trainer.is_global_zero:
                logger.experiment.finish()


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
