"""`load_backbone`: a checkpoint as a backbone, whatever its family.

A family of models is one file of this package. Folders in diffusers' layout and single files belong to
`stable_diffusion_checkpoints`; a folder in transformers' layout belongs to the module named after the `model_type` of
its `config.json`. A family's module defines `from_checkpoint(path, *, source, dtype, **options)`, which returns a
`Backbone` that is a `torch.nn.Module`; its further keyword arguments are the family's options.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from drift.backbones import stable_diffusion_checkpoints
from drift.backbones.cache import CachedBackbone, FeatureCache
from drift.backbones.checkpoint_files import find_checkpoint, needed_files, read_json
from drift.backbones.interface import Backbone
from drift.errors import InputError, OptionError
from drift.precision import resolved_precision

__all__ = ["load_backbone"]


def load_backbone(
    checkpoint: str | Path = "embedded:tiny",
    *,
    device: torch.device | str = "cpu",
    precision: str = "auto",
    revision: str | None = None,
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
        device: where the model computes.
        precision: data type of weights and activations: `auto`, `float32`, `bfloat16` or `float16`; see
            `drift.precision`. `.fp16.safetensors` weights are used with `float16` and where there are no others.
        revision: branch, tag or commit of a Hub id; None for `main`.
        cache: a folder that keeps features; see `FeatureCache`. None for no cache.
        cache_gigabytes: largest size of that folder.
        options: options of the model's family. Stable Diffusion and the embedded model: `layers`, `timestep`, `noise`,
            `prompt`, `prediction_type`, `lora`, `config`; see `stable_diffusion_checkpoints.from_checkpoint`.

    Raises:
        InputError: the checkpoint is missing, incomplete, corrupt or of a kind that is not supported, or the Hub
            cannot be reached.
        OptionError: an option is out of range, or the family has no such option.

    Example:
        >>> backbone = load_backbone("embedded:tiny", timestep=20)
        >>> backbone.stride
        8
    """
    if cache is not None and (not isinstance(cache, str) or not cache):
        raise OptionError("cache", cache, "a folder, or null")
    checkpoint = str(checkpoint)
    dtype = resolved_precision(precision, device)
    path = find_checkpoint(checkpoint, partial(needed_files, dtype=dtype), revision=revision)
    source = checkpoint if revision is None else f"{checkpoint}@{revision}"
    from_checkpoint = _family(path, source).from_checkpoint
    _check_options(from_checkpoint, options)
    backbone = from_checkpoint(path, source=source, dtype=dtype, **options).to(device)
    return backbone if cache is None else CachedBackbone(backbone, FeatureCache(Path(cache), cache_gigabytes))


def _family(path: Path, source: str) -> ModuleType:
    """The module that loads a checkpoint."""
    if path.is_file() or (path / "model_index.json").exists():
        return stable_diffusion_checkpoints
    if (path / "config.json").exists():
        model_type = str(read_json(path / "config.json").get("model_type"))
        found = f"config.json with model_type {model_type}"
        families = _transformers_families()
        if model_type in families:
            return families[model_type]
    else:
        found = "neither model_index.json nor config.json"
        families = _transformers_families()
    raise InputError(
        f"backbone.checkpoint={source}: {found}; supported are folders with model_index.json and single files of "
        f"Stable Diffusion 1.x or 2.x, and folders with config.json of model_type {' or '.join(families)}"
    )


def _transformers_families() -> dict[str, ModuleType]:
    """The modules of this package that load transformers checkpoints, by `model_type`."""
    package = importlib.import_module("drift.backbones")
    names = [info.name for info in pkgutil.iter_modules(package.__path__)]
    modules = {name: importlib.import_module(f"{package.__name__}.{name}") for name in names}
    return {
        name: module
        for name, module in modules.items()
        if hasattr(module, "from_checkpoint") and module is not stable_diffusion_checkpoints
    }


def _check_options(from_checkpoint: Callable, options: dict[str, Any]) -> None:
    """Raises OptionError unless each option is a keyword argument of `from_checkpoint`."""
    known = [
        name
        for name in inspect.signature(from_checkpoint).parameters
        if name not in ("path", "source", "dtype")
    ]
    for name, value in options.items():
        if name not in known:
            raise OptionError(name, value, f"no value: options of this checkpoint are {', '.join(known)}")
