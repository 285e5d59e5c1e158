"""Loggers of the configuration group `logger`. A failing dashboard never stops a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from lightning.pytorch.loggers import Logger, WandbLogger

from drift.reporting.never_fatal import never_fatal, warn

__all__ = ["GuardedLoggers", "no_logger", "wandb_logger"]

_FINISH_SECONDS = 120


def no_logger() -> None:
    """Disables logging."""
    return None


def wandb_logger(
    *, project: str, save_dir: str, name: str | None = None, mode: str = "auto"
) -> WandbLogger | None:
    """Starts a W&B run.

    Args:
        project: W&B project.
        save_dir: folder of the run's files.
        name: name of the run; None lets W&B choose one.
        mode: `online`, `offline` (upload later with `wandb sync`) or `auto`: the value of `WANDB_MODE` if it is
            set, else online if a user is logged in, else offline.

    Returns:
        The logger, or None (with a warning) if W&B cannot start.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    modes: list[str] = []
    with never_fatal("W&B cannot be used", "the run continues without it"):
        Path(save_dir).mkdir(parents=True, exist_ok=True)
        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
        modes = [mode, "offline"] if mode == "online" else [mode]
    for attempt in modes:
        then = "the run continues without it" if attempt == modes[-1] else "logging offline for wandb sync"
        with never_fatal(f"W&B did not start {attempt}", then):
            return _start(attempt, project=project, name=name, save_dir=save_dir)
    return None


def _logged_in() -> bool:
    import wandb  # takes seconds to import

    return bool(wandb.login(prompt=False, verify=False))


def _start(mode: str, **options: str | None) -> WandbLogger:
    import wandb

    # The timeouts bound the delay if W&B is unreachable; data that is not uploaded stays in the run's folder.
    settings = wandb.Settings(
        mode=mode,  # type: ignore[arg-type]
        silent=True,
        console="off",
        init_timeout=30,
        finish_timeout=_FINISH_SECONDS,
        finish_timeout_raises=True,
        reinit="create_new",  # even if an earlier run in this process failed to finish
    )
    logger = WandbLogger(**options, settings=settings)  # type: ignore[arg-type]
    # Lightning passes this argument, and W&B warns that it has no effect.
    logger._wandb_init.pop("anonymous", None)
    logger.experiment  # noqa: B018 - starts the run here, so that `never_fatal` catches failures
    return logger


class GuardedLoggers:
    """Calls loggers without propagating their errors.

    A kind of data whose logging fails once is skipped for the rest of the run.

    Args:
        loggers: the loggers.
        is_global_zero: whether this is the process of rank 0, the only one that logs.
    """

    def __init__(self, loggers: Sequence[Logger], *, is_global_zero: bool = True) -> None:
        self._loggers, self._is_global_zero = loggers, is_global_zero
        self._failed: set[str] = set()

    def log(self, log: Callable[[Logger], None], *, kind: str = "figures") -> None:
        """Calls `log` with each logger, in the process of rank 0 only."""
        if self._is_global_zero and kind not in self._failed:
            for logger in self._loggers:
                self._guarded(kind, partial(log, logger))

    def finish(self, exit_code: int = 0) -> None:
        """Saves all loggers and finishes the W&B run, so that the next run of a sweep does not log to it."""
        for logger in self._loggers:
            self._guarded("end", logger.save)
            if isinstance(logger, WandbLogger) and self._is_global_zero:
                self._guarded("end", partial(_end_run, logger, exit_code))
                if "end" in self._failed:
                    _end_service()

    def _guarded(self, kind: str, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # clients raise many types
            if not self._failed:
                warn("logging to the dashboard failed", error)
            self._failed.add(kind)


def _end_run(logger: WandbLogger, exit_code: int) -> None:
    logger.experiment.finish(exit_code=exit_code)


def _end_service() -> None:
    """Shuts down the W&B service after a failure. W&B's own exit hook would print a traceback."""
    import wandb

    with suppress(Exception):
        wandb.teardown(exit_code=1)
