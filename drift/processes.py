"""Several processes that share the clips of a run: who does what, and what happens when one of them dies."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from drift.errors import DriftError

if TYPE_CHECKING:
    import lightning as L
with suppress(ImportError):  # not on Windows
    import fcntl

__all__ = ["claim_gpu", "longest_first", "watched", "workers"]

_EVERY = 0.5  # seconds between two looks
_MOST_ON_CPU = 4  # processes: each takes 2 GB

_claimed: list[IO[str]] = []


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


def workers() -> int:
    """How many runs of a sweep this machine does at once: one for each GPU, or for each of up to four cores."""
    return torch.cuda.device_count() or min(os.cpu_count() or 1, _MOST_ON_CPU)


def claim_gpu(folder: Path) -> None:
    """Takes one of the machine's GPUs for this process, which sees no other from here on; call it before one is used.

    It is this process' until it ends. Where there are more processes than GPUs, some share one.

    Args:
        folder: one for all processes that share the GPUs, on a local disk.
    """
    if _claimed:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]
    for gpu in gpus if len(gpus) > 1 else ():
        file = (folder / f".gpu-{gpu}.lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another process'
            file.close()
            continue
        _claimed.append(file)  # open, and so locked, as long as the process lives
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        return
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[os.getpid() % len(gpus)]


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
    except Exception as error:
        done.set()
        time.sleep(_EVERY)  # a process that died may still be on its way out
        dead = _dead(trainer)
        _end_all(_started(trainer))
        if dead and not isinstance(error, DriftError):  # what the others' silence looks like from here
            raise DriftError(dead) from error
        raise
    finally:
        done.set()
        thread.join()


def _watch(trainer: L.Trainer, done: threading.Event) -> None:
    while not done.wait(_EVERY):
        dead = _dead(trainer)
        if dead and not done.wait(_EVERY):  # this process may have heard of it, and be about to tell
            print(f"error: {dead}", file=sys.stderr, flush=True)
            _end_all(_started(trainer))
            os._exit(2)  # the main thread may be waiting for the dead one, and cannot be interrupted


def _dead(trainer: L.Trainer) -> str | None:
    """What became of the first process that ended badly; None where none did."""
    for rank, one in enumerate(_started(trainer), start=1):
        if status := one.poll():
            why = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            return (
                f"process {rank} of {trainer.world_size} {why}; the run is stopped, what was written is whole"
            )
    return None


def _started(trainer: L.Trainer) -> Sequence[Any]:
    return list(getattr(trainer.strategy.launcher, "procs", None) or ())


def _end_all(processes: Sequence[Any]) -> None:
    for one in processes:
        if one.poll() is None:
            one.kill()
