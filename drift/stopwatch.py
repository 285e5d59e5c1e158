"""Seconds spent in each stage of a run."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["Stopwatch"]


class Stopwatch:
    """Adds up the seconds of named stages.

    Args:
        device: accelerator to wait for at the end of each stage, so that its work counts to the stage that started it.
            None to never wait: a stage then counts the time until its work is queued.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the seconds of the block to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.device is not None and self.device.type != "cpu":
                torch.accelerator.synchronize(self.device)
            self.seconds[name] += time.perf_counter() - start
