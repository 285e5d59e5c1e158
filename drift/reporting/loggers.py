"""The loggers behind `logger=`: made for a run that must go on whatever happens to its dashboard."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import WandbLogger

from drift.options import choice

__all__ = ["finish", "no_logger", "wandb_logger"]


def no_logger() -> None:
    """No logger at all."""
    return None


def wandb_logger(
    *, project: str, save_dir: str, name: str | None = None, mode: str = "auto"
) -> WandbLogger | None:
    """A W&B run: online where someone is logged in, else offline, to be sent later with `wandb sync`.

    Args:
        project: W&B project.
        save_dir: where the run's files go.
        name: of the run; None lets W&B choose.
        mode: `auto`, `online` or `offline`. The variable `WANDB_MODE` goes before `auto`.

    Returns:
        The logger; None, with a warning, where W&B cannot start.
    """
    choice("mode", mode, ("auto", "online", "offline"))
    os.environ.setdefault("WANDB_SILENT", "true")
    Path(save_dir).mkdir(parents=True, exist_ok=True)
    try:
        import wandb  # here: it takes seconds to import, and not every run has a dashboard

        if mode == "auto":
            logged_in = wandb.login(prompt=False, verify=False)
            mode = os.environ.get("WANDB_MODE") or ("online" if logged_in else "offline")
        settings = wandb.Settings(mode=mode, silent=True, console="off")  # type: ignore[arg-type]
        logger = WandbLogger(project=project, name=name, save_dir=save_dir, settings=settings)
        logger.experiment  # noqa: B018 - starts the run, here, where a failure can still be told
    except Exception as error:  # a dashboard never stops a run
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        print(f"warning: W&B did not start ({reason}); the run goes on without it", file=sys.stderr)
        return None
    return logger


def finish(trainer: L.Trainer, exit_code: int = 0) -> None:
    """Saves what the trainer's loggers hold, and ends W&B's run: else the next run of a sweep would go on in it."""
    for logger in trainer.loggers:
        logger.save()
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            logger.experiment.finish(exit_code=exit_code)
