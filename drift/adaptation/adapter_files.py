"""Adapters on disk: one file per clip, written atomically and used only for what it was learned for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from drift.adaptation.adaptation import Adaptation, GivenFrames
from drift.adaptation.schemes import Uniform
from drift.backbones.interface import Backbone
from drift.clip import Clip
from drift.errors import InputError, OptionError
from drift.propagation.adapter import Adapter
from drift.propagation.heads import PropagationOptions
from drift.tensor_files import save_tensors

__all__ = ["AdapterFolder", "load_adapter", "origin", "save_adapter"]

_SUFFIX = ".safetensors"
_EMBEDDING, _WEIGHTS = "embeddings.", "head_weights."


def origin(
    given: GivenFrames, backbone: Backbone, adaptation: Adaptation, propagation: PropagationOptions
) -> dict[str, str]:
    """What an adapter depends on, as one line per part: adapters of equal origin are equal."""
    frames, masks = hashlib.sha256(), hashlib.sha256()
    for index, (frame, mask) in sorted(given.items()):
        frames.update(np.ascontiguousarray(frame).tobytes())
        masks.update(index.to_bytes(4, "big") + np.ascontiguousarray(mask).tobytes())
    parts = {f"backbone.{name}": value for name, value in backbone.description.items()}
    parts["adaptation.seed"] = adaptation.seed
    for name in ("textual_inversion", "head_weighting"):
        options: Any = getattr(adaptation, name)
        parts[f"adaptation.{name}"] = "none" if options is None else type(options).__name__
        values = {} if options is None else asdict(options)
        parts |= {f"adaptation.{name}.{option}": value for option, value in values.items()}
    if adaptation.head_weighting.learned:
        parts |= {f"propagation.{name}": value for name, value in asdict(propagation).items()}
    lines = {name: json.dumps(value, sort_keys=True, default=str) for name, value in parts.items()}
    return lines | {"frames with a mask": frames.hexdigest(), "masks": masks.hexdigest()}


def save_adapter(path: Path, adapter: Adapter, origin: Mapping[str, str]) -> None:
    """Writes an adapter atomically: neither an interrupt nor a full disk leaves a partial file."""
    tensors = {f"{_EMBEDDING}{number:04d}": value for number, value in enumerate(adapter.embeddings)}
    tensors |= {_WEIGHTS + layer: weights for layer, weights in adapter.head_weights.items()}
    metadata = {
        "origin": json.dumps(dict(origin)),
        "figures": json.dumps(dict(adapter.figures)),
        "losses": json.dumps({name: list(values) for name, values in adapter.losses.items()}),
        "warning": json.dumps(adapter.warning),
    }
    save_tensors(path, {name: tensor.float() for name, tensor in tensors.items()}, metadata)


def load_adapter(path: Path, expected: Mapping[str, str]) -> Adapter:
    """Reads an adapter, without the prompts that its embeddings make up; see `Adaptation.with_prompts`.

    Args:
        path: the file.
        expected: the origin that it must have, see `origin`.

    Raises:
        InputError: the file is missing, corrupt or not an adapter, or its origin differs; says what differs.
    """
    tensors, metadata = _read(path)
    found = metadata["origin"]
    differing = [name for name in expected if found.get(name) != expected[name]]
    if differing:
        differences = "; ".join(
            f"{name} is {_short(expected[name])}, it was {_short(found.get(name))}" for name in differing
        )
        raise InputError(
            f"{path}: learned for something else: {differences}; pass the options it was learned with, "
            "or learn it again: python train.py output.dir=FOLDER"
        )
    weights = {n.removeprefix(_WEIGHTS): t for n, t in tensors.items() if n.startswith(_WEIGHTS)}
    return Adapter(
        head_weights=weights,
        embeddings=[tensors[name] for name in sorted(tensors) if name.startswith(_EMBEDDING)],
        figures=metadata["figures"],
        losses=metadata.get("losses", {}),
        warning=metadata["warning"],
    )


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of an adapter, and what is written beside them."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if not metadata.keys() >= {"origin", "figures", "warning"}:
                raise InputError(f"{path}: not an adapter; adapters are written by train.py")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        values = {name: json.loads(text) for name, text in metadata.items()}
        if not all(isinstance(values.get(name, {}), dict) for name in ("origin", "figures", "losses")):
            raise ValueError("its metadata is damaged")
        return tensors, values
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such adapter; learn it with python train.py output.dir={path.parent}"
        ) from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: truncated or corrupt adapter ({error}); delete it and run train.py again"
        ) from None


def _short(value: str | None) -> str:
    if value is None:
        return "unknown"
    return value if len(value) <= 40 else value[:12] + "..."


@dataclass(frozen=True)
class AdapterFolder:
    """The adapters of a data set's clips, learned where they are missing.

    Attributes:
        adaptation: what is learned.
        propagation: how labels are going to be propagated.
        root: the folder; the file of a clip is named after it.
        learns: whether missing adapters are learned; otherwise they are an error.
        replaces: whether a corrupt adapter, or one of another origin, is learned again; otherwise it is an error.
        shared: cache folder for adapters, shared by several runs; file names contain a hash of the origin. None for no
            cache.
    """

    adaptation: Adaptation
    propagation: PropagationOptions
    root: Path
    learns: bool = True
    replaces: bool = False
    shared: Path | None = None

    @staticmethod
    def to_read(
        adaptation: Adaptation, propagation: PropagationOptions, root: Path, *, shared: Path | None = None
    ) -> AdapterFolder:
        """What `evaluate.py` uses: the folder `adaptation.checkpoints`, or `root`, where missing adapters are learned.

        Raises:
            OptionError: there is no such folder.
        """
        if adaptation.checkpoints is None:
            return AdapterFolder(adaptation, propagation, root, replaces=True, shared=shared)
        if not adaptation.learns:
            allowed = "null where nothing is learned; give the adaptation or experiment of train.py"
            raise OptionError("checkpoints", adaptation.checkpoints, allowed)
        folder = Path(adaptation.checkpoints).expanduser()
        if not folder.is_dir():
            raise OptionError("checkpoints", adaptation.checkpoints, "a folder that train.py wrote, or null")
        nested = folder / "adapters"  # of a folder that evaluate.py wrote
        return AdapterFolder(adaptation, propagation, nested if nested.is_dir() else folder, learns=False)

    def path(self, clip: Clip) -> Path:
        """The file of a clip."""
        return self.root / f"{clip.name}{_SUFFIX}"

    def adapter(self, clip: Clip, backbone: Backbone) -> Adapter:
        """The adapter of a clip, read from its file, or learned and written.

        Raises:
            InputError: a given frame or mask, or the adapter's file, cannot be used; names the clip.
        """
        try:
            return self._adapter(clip, backbone)
        except InputError as error:
            raise error if clip.name in str(error) else InputError(f"{clip.name}: {error}") from None

    def _adapter(self, clip: Clip, backbone: Backbone) -> Adapter:
        if not (self.adaptation.learns and clip.given):
            return self.adaptation.unadapted(backbone)
        given, path = clip.given_frames(), self.path(clip)
        came_from = origin(given, backbone, self.adaptation, self.propagation)
        adapter = self._stored(path, came_from)
        if adapter is None:
            adapter = self._shared_or_learned(clip, given, backbone, came_from)
            save_adapter(path, adapter, came_from)
        return self.adaptation.with_prompts(adapter, given, backbone)

    def _shared_or_learned(
        self, clip: Clip, given: GivenFrames, backbone: Backbone, came_from: Mapping[str, str]
    ) -> Adapter:
        """Loads the adapter from the cache; if it is missing, learns it with the prompts in the cache."""
        if self.shared is None:
            return self.adaptation.learn(given, backbone, self.propagation)
        digest = hashlib.sha256(json.dumps(came_from, sort_keys=True).encode()).hexdigest()
        path = self.shared / f"{clip.name}-{digest[:16]}{_SUFFIX}"
        with suppress(InputError):  # missing or corrupt
            return load_adapter(path, came_from)
        prompts = None
        of_prompts = replace(self.adaptation, head_weighting=Uniform())
        if of_prompts.learns and of_prompts != self.adaptation:
            only_prompts = replace(self, adaptation=of_prompts)
            origin_of_prompts = origin(given, backbone, of_prompts, self.propagation)
            prompts = only_prompts._shared_or_learned(clip, given, backbone, origin_of_prompts)
        adapter = self.adaptation.learn(given, backbone, self.propagation, prompts)
        with suppress(OSError):  # the cache is optional
            save_adapter(path, adapter, came_from)
        return adapter

    def _stored(self, path: Path, came_from: Mapping[str, str]) -> Adapter | None:
        """The adapter in a file; None if it has to be learned."""
        if self.learns and not path.exists():
            return None
        try:
            return load_adapter(path, came_from)
        except InputError:
            if not self.replaces:
                raise
        return None
