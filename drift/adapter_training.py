"""Learning the adapters of a data set's clips, for `train.py`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from lightning.pytorch.loggers import Logger

from drift.adaptation.adapter_files import AdapterFolder
from drift.backbones.interface import Backbone
from drift.clip import Clip
from drift.errors import InputError
from drift.reporting.loggers import GuardedLoggers
from drift.reporting.progress import ProgressBars

__all__ = ["learn_adapters"]

_log = logging.getLogger(__name__)


def learn_adapters(
    clips: Sequence[Clip | None],
    backbone: Backbone,
    adapters: AdapterFolder,
    *,
    loggers: Sequence[Logger] = (),
    progress: ProgressBars | None = None,
) -> None:
    """Learns the adapter of each clip and writes its file; adapters that exist are kept.

    Args:
        clips: clips of this process; None for a process without a clip.
        backbone: the frozen model.
        adapters: where adapters are written.
        loggers: where seconds, steps and losses are logged; their failure never ends the run.
        progress: bar of the clips, and a line per clip.

    Raises:
        InputError: a clip has no given mask, or a file cannot be used; names the clip.
    """
    guarded = GuardedLoggers(loggers)
    try:
        if progress:
            progress.start(len(clips))
        for number, clip in enumerate(clip for clip in clips if clip is not None):
            if not clip.given:
                raise InputError(f"{clip.name}: adapters are learned from masks; give data.mask")
            exists = adapters.path(clip).exists()
            adapter = adapters.adapter(clip, backbone)
            if adapter.warning:
                _log.warning("%s: %s", clip.name, adapter.warning)
            figures = {f"{clip.name}/adaptation/{name}": value for name, value in adapter.figures.items()}
            guarded.log(lambda logger, f=figures, n=number: logger.log_metrics(f, step=n))  # type: ignore[misc]
            if progress:
                summary = adapter.warning or ("already there" if exists else _summary(adapter.figures))
                progress.clip_done(f"[bold]{clip.name}[/]  {summary}")
    except BaseException:
        guarded.finish(exit_code=1)
        raise
    finally:
        if progress:
            progress.stop()
    guarded.finish()


def _summary(figures: Mapping[str, float]) -> str:
    """Seconds, and steps and losses of each module that was fitted."""
    parts = [f"{figures['seconds']:.1f} s"]
    for key in figures:
        if key.endswith("_steps"):
            name = key.removesuffix("_steps")
            first, last = figures[f"{name}_first_loss"], figures[f"{name}_loss"]
            parts.append(
                f"{name.replace('_', ' ')}: {figures[key]:.0f} steps, loss {first:.3f} to {last:.3f}"
            )
    return ", ".join(parts)
