"""`load_backbone`: a checkpoint as a backbone, whatever its family; see `families.py`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from drift.backbones.cache import CachedBackbone, FeatureCache
from drift.backbones.families import family_of
from drift.backbones.interface import Backbone
from drift.checkpoint_files import find_checkpoint, needed_files
from drift.errors import OptionError
from drift.options import whole_number
from drift.precision import resolved_precision

__all__ = ["check_options", "load_backbone", "wrap_backbone"]

_SAMPLES = 4  # frames times draws of noise per forward pass, with batch="auto"


def load_backbone(
    checkpoint: str | Path = "embedded:tiny",
    *,
    family: str | None = None,
    device: torch.device | str = "cpu",
    precision: str = "auto",
    revision: str | None = None,
    batch: int | str = "auto",
    cache: str | None = None,
    cache_gigabytes: float = 20.0,
    **options: Any,
) -> Backbone:
    """Loads a frozen image model as a backbone.

    Args:
        checkpoint: one of

            - `embedded:NAME`, a model that ships with drift;
            - a local folder in the layout of diffusers or transformers, as a snapshot in the Hub's cache;
            - a single `.safetensors` or `.ckpt` file in the original layout of Stable Diffusion;
            - a Hub id (owner/name), downloaded unless it is cached. Offline, the cached snapshot is used.
        family: the family of models that the checkpoint must be of, as "stable_diffusion"; None for any.
        device: where the model computes.
        precision: data type of weights and activations: `auto`, `float32`, `bfloat16` or `float16`; see
            `drift.precision`. `.fp16.safetensors` weights are used with `float16` and where there are no others.
        revision: branch, tag or commit of a Hub id; None for `main`.
        batch: number of frames of a clip per forward pass, 1 or more. `auto`: 1 on a CPU; on other devices 4 divided by
            the number of draws of noise per frame, at least 1.
        cache: a folder that keeps features; see `FeatureCache`. None for no cache.
        cache_gigabytes: largest size of that folder.
        options: options of the model's family, see `from_checkpoint` of its module. Stable Diffusion and the embedded
            model: `layers`, `timestep`, `noise`, `prompt`, `prediction_type`, `lora`, `config`.

    Raises:
        InputError: the checkpoint is missing, incomplete, corrupt, of another family or of a kind that is not
            supported, the Hub cannot be reached, or the weights need more memory than is free.
        OptionError: an option is out of range, or the family has no such option.

    Example:
        >>> backbone = load_backbone("embedded:tiny", timestep=20)
        >>> backbone.stride
        8
    """
    checkpoint = str(checkpoint)
    dtype = resolved_precision(precision, device)
    path = find_checkpoint(checkpoint, partial(needed_files, dtype=dtype), revision=revision)
    source = checkpoint if revision is None else f"{checkpoint}@{revision}"
    from_checkpoint = family_of(path, source, family).load().from_checkpoint
    check_options(from_checkpoint, options)
    backbone = from_checkpoint(path, source=source, dtype=dtype, **options).to(device)
    return wrap_backbone(backbone, batch=batch, cache=cache, cache_gigabytes=cache_gigabytes)


def wrap_backbone(
    backbone: Any, *, batch: int | str = "auto", cache: str | None = None, cache_gigabytes: float = 20.0
) -> Backbone:
    """Sets the batch size of a backbone and adds a feature cache; for the arguments see `load_backbone`.

    Raises:
        OptionError: `batch`, `cache` or `cache_gigabytes` is out of range.
    """
    if cache is not None and (not isinstance(cache, str) or not cache):
        raise OptionError("cache", cache, "a folder, or null")
    if batch == "auto":
        draws = getattr(getattr(backbone, "noise", None), "ensemble", 1)
        batch = 1 if backbone.device.type == "cpu" else max(1, _SAMPLES // draws)
    whole_number("batch", batch, minimum=1)
    backbone.batch = batch
    return backbone if cache is None else CachedBackbone(backbone, FeatureCache(Path(cache), cache_gigabytes))


def check_options(from_checkpoint: Callable, options: dict[str, Any]) -> None:
    """Raises OptionError unless each option is a keyword argument of `from_checkpoint`."""
    known = [
        name
        for name in inspect.signature(from_checkpoint).parameters
        if name not in ("path", "source", "dtype")
    ]
    for name, value in options.items():
        if name not in known:
            raise OptionError(name, value, f"no value: options of this checkpoint are {', '.join(known)}")
