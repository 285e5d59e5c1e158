"""Runs with several processes: assignment of clips and GPUs, and what happens when a process dies."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from drift.errors import DriftError

if TYPE_CHECKING:
    import lightning as L
with suppress(ImportError):  # not on Windows
    import fcntl

__all__ = ["claim_gpu", "end_with_parent", "fitting_devices", "held", "longest_first", "watched", "workers"]

_POLL_INTERVAL = 0.5  # seconds
_MAX_CPU_WORKERS = 4  # each takes 2 GB of memory

_PARENT = "DRIFT_PARENT"
"""Environment variable: id of the process that starts the other processes of a run."""

_gpu_locks: list[IO[str]] = []


def longest_first(lengths: Sequence[int], processes: int) -> list[list[int]]:
    """Assigns each clip to a process: in order of decreasing length, to the process with the fewest frames.

    Args:
        lengths: numbers of frames of the clips.
        processes: number of processes.

    Returns:
        For each process, the indices of its clips, longest first; empty if there are fewer clips than processes.
    """
    assignment: list[list[int]] = [[] for _ in range(processes)]
    frames = [0] * processes
    for clip in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        rank = frames.index(min(frames))
        assignment[rank].append(clip)
        frames[rank] += lengths[clip]
    return assignment


def workers() -> int:
    """Number of sweep runs that this machine executes in parallel: one per GPU, or one per CPU core, at most four."""
    import torch

    return torch.cuda.device_count() or min(os.cpu_count() or 1, _MAX_CPU_WORKERS)


def fitting_devices(devices: object, *, clips: int) -> object:
    """`trainer.devices`, lowered to the number of clips and of cores, with a warning: each is a process.

    Devices that are not given as a number, and processes that torchrun or SLURM starts, are left as they are.

    Example:
        >>> fitting_devices("auto", clips=1)
        'auto'
    """
    started_elsewhere = "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_NTASKS") or 1) > 1
    if not isinstance(devices, int) or started_elsewhere:
        return devices
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fitting = min(devices, clips, cores)
    if fitting < devices and not _is_child():
        reason = f"there are {clips} clips and {cores} cores"
        print(f"warning: trainer.devices={devices}: {fitting} used, as {reason}", file=sys.stderr)
    return max(fitting, 1) if devices > 0 else devices


def end_with_parent() -> None:
    """Lets this process, if another process of the run started it, end when that one does."""
    if not _is_child():
        os.environ[_PARENT] = str(os.getpid())
    elif parent := os.environ.get(_PARENT):
        threading.Thread(target=_outlive, args=(int(parent),), name="drift-parent", daemon=True).start()


def _outlive(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_INTERVAL)
    os._exit(2)  # the main thread may be blocked in a collective operation


def _is_child() -> bool:
    """Whether Lightning started this process, in another one of the run."""
    return os.environ.get("LOCAL_RANK", "0") != "0" and "TORCHELASTIC_RUN_ID" not in os.environ


def held(file: IO[str]) -> bool:
    """Reserves an open file until it is closed; False if another process, or another run in this one, has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (OSError, NameError):  # a file system without locks; Windows
        return True
    return True


def claim_gpu(folder: Path) -> None:
    """Reserves one GPU for this process until it ends, and hides all others; call it before CUDA is initialised.

    If there are more processes than GPUs, some share a GPU.

    Args:
        folder: for lock files; the same for all processes, on a local disk.
    """
    import torch

    if _gpu_locks:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    for gpu in gpus if len(gpus) > 1 else ():
        file = (folder / f".gpu-{gpu}.lock").open("w")
        if not held(file):
            file.close()
            continue
        _gpu_locks.append(file)  # the lock is released when the file is closed
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        return
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[os.getpid() % len(gpus)]


@contextmanager
def watched(trainer: L.Trainer) -> Iterator[None]:
    """Context manager that stops the run, with an error and exit status 2, when a process started by `trainer` dies.

    Otherwise the remaining processes would wait for it until the collective operation times out (30 minutes). Processes
    started by torchrun or SLURM are supervised by these.
    """
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(trainer, done), name="drift-watch", daemon=True)
    thread.start()
    try:
        yield
    except Exception as error:
        done.set()
        time.sleep(_POLL_INTERVAL)  # a dying process may not have exited yet
        failure = _failure(trainer)
        _kill_all(_children(trainer))
        if failure and not isinstance(error, DriftError):  # caused by the failure: a lost connection
            raise DriftError(failure) from error
        raise
    finally:
        done.set()
        thread.join()


def _watch(trainer: L.Trainer, done: threading.Event) -> None:
    while not done.wait(_POLL_INTERVAL):
        failure = _failure(trainer)
        if failure and not done.wait(_POLL_INTERVAL):  # unless the main thread is about to report it
            print(f"error: {failure}", file=sys.stderr, flush=True)
            _kill_all(_children(trainer))
            os._exit(2)  # the main thread may be blocked in a collective operation


def _failure(trainer: L.Trainer) -> str | None:
    """Error message about the first process that failed, or None."""
    for rank, process in enumerate(_children(trainer), start=1):
        if status := process.poll():
            cause = f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
            return f"process {rank} of {trainer.world_size} {cause}; the run was stopped, finished clips are kept"
    return None


def _children(trainer: L.Trainer) -> Sequence[Any]:
    return list(getattr(trainer.strategy.launcher, "procs", None) or ())


def _kill_all(processes: Sequence[Any]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
