"""Several processes that share the clips of a run: who does what, and what happens when one of them dies."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning as L

__all__ = ["longest_first", "watched"]

_EVERY = 0.5  # seconds between two looks


def longest_first(lengths: Sequence[int], shares: int) -> list[list[int]]:
    """Which clips each process takes: each clip once, the longest dealt out first, always to who has least to do.

    Args:
        lengths: of the clips, in frames.
        shares: how many processes there are.

    Returns:
        For each process the places of its clips in `lengths`, longest first; empty where there are too few clips.
    """
    dealt: list[list[int]] = [[] for _ in range(shares)]
    frames = [0] * shares
    for place in sorted(range(len(lengths)), key=lambda one: (-lengths[one], one)):
        least = frames.index(min(frames))
        dealt[least].append(place)
        frames[least] += lengths[place]
    return dealt


@contextmanager
def watched(trainer: L.Trainer) -> Iterator[None]:
    """Within it, a process that `trainer` started and that dies ends the whole run, with one line and status 2.

    Without it the others would wait for it, at the end, for half an hour. Processes that something else started
    (torchrun, SLURM) are looked after by that.
    """
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(trainer, done), name="drift-watch", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        _end_all(_started(trainer))
        raise
    finally:
        done.set()
        thread.join()


def _watch(trainer: L.Trainer, done: threading.Event) -> None:
    while not done.wait(_EVERY):
        processes = _started(trainer)
        dead = [(rank, one.poll()) for rank, one in enumerate(processes, start=1) if one.poll()]
        if dead and not done.is_set():
            rank, status = dead[0]
            why = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            print(
                f"error: process {rank} of {trainer.world_size} {why}; the run is stopped, what was written is whole",
                file=sys.stderr,
                flush=True,
            )
            _end_all(processes)
            os._exit(2)  # the main thread may be waiting for the dead one, and cannot be interrupted


def _started(trainer: L.Trainer) -> Sequence[Any]:
    return list(getattr(trainer.strategy.launcher, "procs", None) or ())


def _end_all(processes: Sequence[Any]) -> None:
    for one in processes:
        if one.poll() is None:
            one.kill()
