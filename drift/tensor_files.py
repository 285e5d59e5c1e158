"""Tensors in safetensors files, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from drift.errors import InputError

__all__ = ["save_tensors"]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], told: Mapping[str, str]) -> None:
    """Writes tensors and what is told of them: neither an interrupt nor a full disk leaves half a file of that name.

    Raises:
        InputError: the file cannot be written; names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(
            {name: one.detach().cpu().contiguous() for name, one in tensors.items()}, partial, dict(told)
        )
    except SafetensorError as error:  # what safetensors makes of the system's own errors
        partial.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error})") from None
    os.replace(partial, path)
