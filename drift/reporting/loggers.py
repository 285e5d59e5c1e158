"""The loggers behind `logger=`: made for a run that must go on whatever happens to its dashboard."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import Logger, WandbLogger

from drift.options import choice
from drift.reporting.never_fatal import never_fatal, warn

__all__ = ["GuardedLoggers", "no_logger", "wandb_logger"]

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
    with never_fatal("W&B cannot be used", "the run goes on without it"):
        Path(save_dir).mkdir(parents=True, exist_ok=True)
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
        modes = [mode, "offline"] if mode == "online" else [mode]
    for place, one in enumerate(modes):
        then = (
            "the run goes on without it" if place == len(modes) - 1 else "it is kept offline, for wandb sync"
        )
        with never_fatal(f"W&B did not start {one}", then):
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
    # Lightning hands it on, and W&B tells every user that it has no effect.
    logger._wandb_init.pop("anonymous", None)
    logger.experiment  # noqa: B018 - starts the run, here, where a failure can still be told
    return logger


class GuardedLoggers:
    """Hands things to a trainer's loggers; one kind of things that fails once is left out for the rest of the run.

    No failure of a dashboard changes or ends a run.

    Args:
        trainer: whose loggers they are.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = trainer
        self._failed: set[str] = set()

    def log(self, log: Callable[[Logger], None], *, kind: str = "figures") -> None:
        """Calls `log` with each logger, in the process that has them."""
        if self._trainer.is_global_zero and kind not in self._failed:
            for logger in self._trainer.loggers:
                self._guarded(kind, partial(log, logger))

    def finish(self, exit_code: int = 0) -> None:
        """Saves what they hold, and ends W&B's run: else the next run of a sweep would go on in it."""
        for logger in self._trainer.loggers:
            self._guarded("end", logger.save)
            if isinstance(logger, WandbLogger) and self._trainer.is_global_zero:
                self._guarded("end", partial(_end_run, logger, exit_code))

    def _guarded(self, kind: str, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # whatever a dashboard's client raises
            if not self._failed:
                warn("the dashboard failed", error)
            self._failed.add(kind)


def _end_run(logger: WandbLogger, exit_code: int) -> None:
    logger.experiment.finish(exit_code=exit_code)
