"""A checkpoint as a folder in diffusers' layout: one folder for each part, and `model_index.json`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler, ModelMixin
from torch import nn

from drift.checkpoint_files import check_memory, load_part, load_weights, read_json
from drift.errors import InputError

__all__ = ["CheckpointFolder", "load_scheduler"]

_RESIDENT = ("unet", "transformer", "vae")  # text encoders are freed once the prompt is encoded
_DRIFT_MODULE = re.compile(r"drift(\.[a-z]\w*)*")


class CheckpointFolder:
    """The parts of a checkpoint. Models are loaded when they are asked for.

    Args:
        path: the folder.
        source: the checkpoint as the user named it, for error messages.
        dtype: data type of weights and activations.
        needed: parts without which the checkpoint is incomplete.

    Raises:
        InputError: the folder lacks a part, a configuration cannot be read, or more memory is needed than is free.
    """

    def __init__(self, path: Path, source: str, dtype: torch.dtype, needed: Sequence[str]) -> None:
        self.path, self.dtype = path, dtype
        self.where = f"backbone.checkpoint={source}: "
        self.require("model_index.json", *needed)
        self.index = read_json(path / "model_index.json")
        if torch.get_default_device().type != "meta":
            check_memory([path / part for part in _RESIDENT if part in needed], dtype)

    def require(self, *parts: str) -> None:
        """Raises InputError if the checkpoint lacks one of the parts."""
        missing = [part for part in parts if not (self.path / part).exists()]
        if missing:
            raise InputError(
                f"{self.path}: incomplete checkpoint, lacks {', '.join(missing)} of diffusers' layout"
            )

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a model."""
        return read_json(self.path / part / "config.json")

    def model(self, part: str, kind: type[nn.Module], dtype: torch.dtype | None = None) -> Any:
        """A model with its weights, in `dtype` or that of the checkpoint."""
        load = partial(load_weights, kind, dtype=dtype or self.dtype, preferred=self.dtype)
        return load_part(self.path / part, load)

    def autoencoder(self, dtype: torch.dtype | None = None) -> Any:
        """The autoencoder, of the class that the checkpoint names."""
        return self.model("vae", self.autoencoder_class(), dtype)

    def autoencoder_class(self) -> type[nn.Module]:
        """The class that `model_index.json` names for `vae`: of diffusers, or one that ships with drift."""
        named = self.index.get("vae") or ("diffusers", AutoencoderKL.__name__)
        library, name = named if isinstance(named, Sequence) and len(named) == 2 else (named, "")
        module: Any = None
        if library == "diffusers":
            module = diffusers
        elif isinstance(library, str) and _DRIFT_MODULE.fullmatch(library):  # never code of the checkpoint
            with suppress(ModuleNotFoundError):
                module = importlib.import_module(library)
        kind = getattr(module, str(name), None)
        if not isinstance(kind, type) or not issubclass(kind, ModelMixin):
            raise InputError(
                f"{self.path / 'model_index.json'}: vae {library}.{name} is not a model of diffusers or drift"
            )
        return kind

    def scheduler(self) -> Any:
        """The noise schedule; see `load_scheduler`."""
        return load_part(self.path / "scheduler", load_scheduler)


def load_scheduler(folder: Path) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler:
    """The checkpoint's noise schedule, of diffusion or rectified flow, whichever scheduler it was published with."""
    config = read_json(folder / "scheduler_config.json")
    rectified_flow = "Flow" in str(config.get("_class_name"))
    return (FlowMatchEulerDiscreteScheduler if rectified_flow else DDIMScheduler).from_config(config)
