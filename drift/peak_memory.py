"""How much memory the work has taken at most."""

from __future__ import annotations

import sys
from contextlib import suppress

import torch

with suppress(ImportError):  # not on Windows
    import resource

__all__ = ["peak_memory", "watch_peak_memory"]


def watch_peak_memory(device: torch.device) -> None:
    """Starts to watch anew; a CPU's processes are watched from their start, whatever is done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU what PyTorch held there since `watch_peak_memory`, on a CPU the process since it began.

    Where the system does not tell, 0.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if "resource" not in globals():
        return 0
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024
