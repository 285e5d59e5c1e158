"""In which precision the model computes: half where the processor is faster with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from drift.options import choice

__all__ = ["PRECISIONS", "computing_in"]

PRECISIONS = ("auto", "bfloat16", "float32")
"""`auto`: bfloat16 on an x86 CPU with instructions for it, elsewhere what the trainer says."""


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Within it, matrix products and convolutions on `device` are computed in that precision.

    Raises:
        OptionError: there is no such precision.
    """
    choice("precision", precision, PRECISIONS)
    if precision == "auto":
        if device.type != "cpu" or not _has_bfloat16():
            yield
            return
        precision = "bfloat16"
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        yield


def _has_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
