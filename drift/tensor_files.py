"""Atomic writing of safetensors files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from drift.errors import InputError

__all__ = ["save_tensors"]


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors and metadata to a safetensors file; on failure, an existing file is left unchanged.

    Raises:
        InputError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, partial, dict(metadata))
    except SafetensorError as error:  # safetensors' form of an OSError
        partial.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error})") from None
    os.replace(partial, path)
