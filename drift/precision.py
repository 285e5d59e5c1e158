"""The meaning of `precision`, one for the backbone and the refiner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from drift.options import choice

__all__ = ["PRECISIONS", "full_precision", "resolved_precision"]

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
"""`auto`: float16 on an accelerator, bfloat16 on a CPU with matrix instructions for it (AMX), float32 on any other
CPU: the bfloat16 instructions of AVX-512 alone make products and attention slower than in float32."""


def resolved_precision(precision: str, device: torch.device | str) -> torch.dtype:
    """The data type of a model's weights and activations.

    float16 runs on every CPU, but slower than float32 on most.

    Args:
        precision: one of `PRECISIONS`.
        device: where the model computes.

    Raises:
        OptionError: `precision` is not one of `PRECISIONS`.

    Example:
        >>> resolved_precision("auto", "cuda")
        torch.float16
        >>> resolved_precision("float32", "cuda")
        torch.float32
    """
    choice("precision", precision, PRECISIONS)
    if precision == "auto":
        if torch.device(device).type != "cpu":
            return torch.float16
        return torch.bfloat16 if torch.cpu.get_capabilities().get("amx_bf16") else torch.float32
    dtype: torch.dtype = getattr(torch, precision)
    return dtype


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Disables autocast on a device, as code that sets its own data types needs under `Trainer(precision="16-mixed")`.

    Args:
        device_type: `torch.device.type` of the tensors, "cuda" or "cpu".
    """
    if not torch.amp.is_autocast_available(device_type):  # as of the meta device
        yield
        return
    with torch.autocast(device_type, enabled=False):
        yield
