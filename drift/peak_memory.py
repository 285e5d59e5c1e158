"""Peak memory use of a device."""

from __future__ import annotations

import sys
from contextlib import suppress

import torch

with suppress(ImportError):  # not on Windows
    import resource

__all__ = ["peak_memory", "watch_peak_memory"]


def watch_peak_memory(device: torch.device) -> None:
    """Resets the peak of a GPU; that of a CPU process is counted from its start and cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes; 0 if the system does not report it.

    On a GPU, of the memory allocated by PyTorch since `watch_peak_memory`; on a CPU, of the process since its start.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if "resource" not in globals():
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB on Linux
