"""Adapters in files: one for each clip, whole or not at all, and only for what they were learned for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from drift.adaptation.adapting import adapt
from drift.adaptation.clip_task import clip_appearances, prompted
from drift.adaptation.head_weighting import Propagation
from drift.adaptation.settings import AdaptationSettings
from drift.backbone.latent_diffusion import LatentDiffusion
from drift.clip import Clip
from drift.errors import InputError
from drift.propagation.adapter import Adapter
from drift.tensor_files import save_tensors

__all__ = ["AdapterFolder", "load_adapter", "origin", "save_adapter"]

_SUFFIX = ".safetensors"
_EMBEDDING, _WEIGHTS = "embeddings.", "head_weights."


def origin(
    clip: Clip, backbone: LatentDiffusion, settings: AdaptationSettings, propagation: Propagation
) -> dict[str, str]:
    """What an adapter is learned for, each part as one line; two adapters of one origin are equal."""
    frames, masks = hashlib.sha256(), hashlib.sha256()
    for index in sorted(clip.given):
        frames.update(np.ascontiguousarray(clip.reduced_frame(clip.frames[index])).tobytes())
        mask = clip.reduced_mask(clip.given[index])
        masks.update(index.to_bytes(4, "big") + np.ascontiguousarray(mask).tobytes())
    parts = {f"backbone.{name}": value for name, value in backbone.description.items()}
    parts |= {
        f"adaptation.{name}": value for name, value in asdict(settings).items() if name != "checkpoints"
    }
    if settings.head_weighting == "learned":
        parts |= {f"propagation.{name}": value for name, value in asdict(propagation).items()}
    lines = {name: json.dumps(value, sort_keys=True, default=str) for name, value in parts.items()}
    return lines | {"frames with a mask": frames.hexdigest(), "masks": masks.hexdigest()}


def save_adapter(path: Path, adapter: Adapter, came_from: Mapping[str, str]) -> None:
    """Writes an adapter, whole or not at all: neither an interrupt nor a full disk leaves half a file of that name."""
    tensors = {f"{_EMBEDDING}{n:04d}": one for n, one in enumerate(adapter.embeddings)}
    tensors |= {_WEIGHTS + layer: weights for layer, weights in adapter.head_weights.items()}
    told = {
        "origin": json.dumps(dict(came_from)),
        "figures": json.dumps(dict(adapter.figures)),
        "losses": json.dumps({name: list(course) for name, course in adapter.losses.items()}),
        "warning": json.dumps(adapter.warning),
    }
    save_tensors(path, {name: one.float() for name, one in tensors.items()}, told)


def load_adapter(
    path: Path,
    clip: Clip,
    backbone: LatentDiffusion,
    settings: AdaptationSettings,
    expected: Mapping[str, str],
) -> Adapter:
    """The adapter that was learned for this clip, by this backbone, in this way.

    Raises:
        InputError: the file is missing, truncated or no adapter, or was learned for something else; says what
            differs.
    """
    tensors, told = _read(path)
    found = json.loads(told["origin"])
    differing = [name for name in expected if found.get(name) != expected[name]]
    if differing:
        differences = "; ".join(
            f"{name} is {_short(expected[name])}, it was {_short(found.get(name))}" for name in differing
        )
        raise InputError(
            f"{path}: learned for something else: {differences}; give the options it was learned with, "
            "or learn it anew: python train.py output.dir=FOLDER"
        )
    embeddings = [tensors[name] for name in sorted(tensors) if name.startswith(_EMBEDDING)]
    when = clip_appearances(clip, backbone) if embeddings else []
    adapter = Adapter(
        head_weights={
            name.removeprefix(_WEIGHTS): tensors[name] for name in tensors if name.startswith(_WEIGHTS)
        },
        embeddings=embeddings,
        figures=json.loads(told["figures"]),
        losses=json.loads(told.get("losses", "{}")),
        warning=json.loads(told["warning"]),
    )
    return prompted(adapter, when, backbone, settings)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            if not told.keys() >= {"origin", "figures", "warning"}:
                raise InputError(f"{path}: is no adapter; adapters are written by train.py")
            return {name: file.get_tensor(name) for name in file.keys()}, told  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such adapter; python train.py output.dir={path.parent} learns it"
        ) from None
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: truncated or corrupt adapter ({error}); delete it and run train.py again"
        ) from None


def _short(value: str | None) -> str:
    if value is None:
        return "unknown"
    return value if len(value) <= 40 else value[:12] + "..."


@dataclass(frozen=True)
class AdapterFolder:
    """The adapters of many clips, learned where they are missing.

    Attributes:
        settings: what is learned, and how.
        propagation: how labels are going to be carried.
        root: the folder; a clip's file bears its name.
        learns: whether missing adapters are learned; else they are an error.
        replaces: whether an adapter of another origin, or a broken one, is learned anew; else it is an error.
    """

    settings: AdaptationSettings
    propagation: Propagation
    root: Path
    learns: bool = True
    replaces: bool = False

    def path(self, clip: Clip) -> Path:
        """The file of a clip."""
        return self.root / f"{clip.name}{_SUFFIX}"

    def adapter(self, clip: Clip, backbone: LatentDiffusion) -> Adapter:
        """A clip's adapter: from its file, or learned and written there.

        Raises:
            InputError: see `load_adapter` and `adapt`.
            OptionError: see `adapt`.
        """
        if not self.settings.learns:
            return adapt(clip, backbone, self.settings, self.propagation)
        came_from = origin(clip, backbone, self.settings, self.propagation)
        path = self.path(clip)
        if path.exists() or not self.learns:
            try:
                return load_adapter(path, clip, backbone, self.settings, came_from)
            except InputError:
                if not self.replaces:
                    raise
        adapter = adapt(clip, backbone, self.settings, self.propagation)
        save_adapter(path, adapter, came_from)
        return adapter
