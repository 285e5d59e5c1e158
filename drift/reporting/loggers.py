"""The loggers behind `logger=`: made for a run that must go on whatever happens to its dashboard."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import WandbLogger

from drift.options import choice

__all__ = ["finish", "no_logger", "wandb_logger"]

_FINISH_SECONDS = 120


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
    modes: list[str] = []
    with _told("W&B cannot be used"):
        Path(save_dir).mkdir(parents=True, exist_ok=True)
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
        modes = [mode, "offline"] if mode == "online" else [mode]
    for one in modes:
        with _told(f"W&B did not start {one}"):
            return _started(one, project=project, name=name, save_dir=save_dir)
    return None


def _logged_in() -> bool:
    import wandb  # here: it takes seconds to import, and not every run has a dashboard

    return bool(wandb.login(prompt=False, verify=False))


def _started(mode: str, **options: str | None) -> WandbLogger:
    import wandb

    # A W&B that is out of reach holds a run up for so long, and no longer; what is not sent stays in its folder.
    settings = wandb.Settings(
        mode=mode,  # type: ignore[arg-type]
        silent=True,
        console="off",
        init_timeout=30,
        finish_timeout=_FINISH_SECONDS,
        finish_timeout_raises=True,
    )
    logger = WandbLogger(**options, settings=settings)  # type: ignore[arg-type]
    logger._wandb_init.pop(
        "anonymous", None
    )  # Lightning hands it on; W&B tells every user that it has no effect
    logger.experiment  # noqa: B018 - starts the run, here, where a failure can still be told
    return logger


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Within it, an error becomes a warning: a dashboard never stops a run."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        print(f"warning: {what} ({reason}); the run goes on without", file=sys.stderr)


def finish(trainer: L.Trainer, exit_code: int = 0) -> None:
    """Saves what the trainer's loggers hold, and ends W&B's run: else the next run of a sweep would go on in it."""
    for logger in trainer.loggers:
        logger.save()
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            logger.experiment.finish(exit_code=exit_code)
