"""Features kept on disk: the runs of a sweep share what does not depend on the swept options."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
import zlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from drift.backbones.interface import Backbone, Features, concatenate
from drift.errors import InputError
from drift.noising.interface import Generators
from drift.options import positive
from drift.tensor_files import save_tensors

__all__ = ["CachedBackbone", "FeatureCache", "feature_key"]

_SUFFIX = ".safetensors"
_ENTRY = re.compile(r"[0-9a-f]{40}\.safetensors")
_NOISE = "noise"
_RECOUNT_AFTER = 60.0  # seconds until entries of other processes are counted again
_ABANDONED_AFTER = 3600.0  # seconds after which a partial file has no writer


class CachedBackbone(nn.Module):
    """A backbone whose features are taken from a cache where they are in it. Everything else is the backbone's own.

    Args:
        backbone: any backbone that is a module.
        cache: where features are kept.
    """

    def __init__(self, backbone: Backbone, cache: FeatureCache) -> None:
        super().__init__()
        self.backbone, self.cache = backbone, cache

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("backbone"), name)

    def features(
        self,
        frames: Float[Tensor, "batch 3 height width"],
        generator: Generators,
        *,
        prompt: Float[Tensor, "prompts tokens dim"] | None = None,
        cross: Collection[str] = (),
    ) -> list[Features]:
        """See `Backbone`.

        With one generator per frame, each frame has its own cache entry; otherwise the batch has one. Frames without an
        entry are computed in one forward pass. The final states of the generators do not depend on what was cached.
        """
        per_frame = isinstance(generator, list)
        generators = generator if isinstance(generator, list) else [generator]
        batches = frames.split(1) if per_frame else [frames]
        description = {**self.backbone.description, "device": self.device.type, "torch": torch.__version__}
        keys = [
            feature_key(description, batch, batch_generator.get_state(), prompt, cross)
            for batch, batch_generator in zip(batches, generators, strict=True)
        ]
        cached = [self._load(*pair) for pair in zip(keys, generators, strict=True)]
        missing = [i for i, features in enumerate(cached) if features is None]
        if missing:
            computed = self.backbone.features(
                torch.cat([batches[i] for i in missing]),
                [generators[i] for i in missing] if per_frame else generator,
                prompt=prompt,
                cross=cross,
            )
            by_entry = zip(*(layer.split() for layer in computed), strict=True) if per_frame else [computed]
            for i, features in zip(missing, by_entry, strict=True):
                cached[i] = list(features)
                self.cache.save(keys[i], features, generators[i].get_state())
        return [concatenate(layers) for layers in zip(*filter(None, cached), strict=True)]

    def _load(self, key: str, generator: torch.Generator) -> list[Features] | None:
        """Features of an entry, or None. Sets the generator to its state after their computation."""
        entry = self.cache.load(key)
        if entry is None:
            return None
        features, state = entry
        generator.set_state(state)
        return [layer.to(self.device) for layer in features]


def feature_key(
    description: Mapping[str, object],
    frames: Tensor,
    noise: Tensor,
    prompt: Tensor | None,
    cross: Collection[str],
) -> str:
    """A key that is equal only for equal features.

    Args:
        description: the backbone's description and where it computes.
        frames: `(batch, 3, height, width)`, RGB in [0, 1].
        noise: state of the generator before the features are computed.
        prompt: prompt embeddings; None for the backbone's own prompt, which `description` covers.
        cross: layers whose prompt queries are computed too.
    """
    digest = hashlib.sha256(json.dumps([description, sorted(cross)], sort_keys=True).encode())
    for tensor in (frames, noise, prompt):
        digest.update(b"none" if tensor is None else f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        if tensor is not None:
            digest.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:40]


class FeatureCache:
    """A folder of features, safe for several processes at once.

    Entries are written atomically and used only if their checksum matches; otherwise features are computed again. When
    the folder is full, entries last used before this process started are evicted; if there are none, or the disk is
    full, nothing more is kept and a warning is printed once. A run never fails because of its cache, and other files
    in the folder are left alone.

    Args:
        folder: created if it does not exist.
        gigabytes: largest total size of the entries; above 0.

    Raises:
        OptionError: `gigabytes` is out of range.
    """

    def __init__(self, folder: Path, gigabytes: float) -> None:
        positive("cache_gigabytes", gigabytes)
        self.folder, self.limit = folder.expanduser(), int(gigabytes * 1e9)
        self._bytes = 0
        self._counted_at = -_RECOUNT_AFTER
        self._warned = False
        _process_start()

    def load(self, key: str) -> tuple[list[Features], Tensor] | None:
        """The features stored under `key` and the generator's state after them; None if there are none."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get("key") != key or metadata.get("checksum") != _checksum(tensors):
                raise SafetensorError("checksum mismatch")
            noise = tensors.pop(_NOISE)
            features = [
                _unpacked(layer, number, tensors)
                for number, layer in enumerate(json.loads(metadata["layers"]))
            ]
        except Exception as error:  # missing, damaged, or evicted by another process meanwhile
            if not isinstance(error, OSError):
                with suppress(OSError):
                    path.unlink()
            return None
        with suppress(OSError):  # another user's
            os.utime(path)  # marks it as used
        return features, noise

    def save(self, key: str, features: Sequence[Features], noise: Tensor) -> None:
        """Stores features under `key`, with the generator's state after them, if there is room."""
        tensors = {_NOISE: noise.cpu()}
        for number, layer in enumerate(features):
            tensors |= {f"{number}.{part}": _smallest(tensor) for part, tensor in layer.tensors().items()}
        size = sum(tensor.nbytes for tensor in tensors.values())
        metadata = {
            "key": key,
            "layers": json.dumps([layer.layer for layer in features]),
            "checksum": _checksum(tensors),
        }
        try:
            if not self._has_room(size):
                self._warn(f"is full ({self.limit / 1e9:g} GB); raise backbone.cache_gigabytes")
                return
            path, partial = self._path(key), self.folder / f".partial-{os.getpid()}" / f"{key}{_SUFFIX}"
            save_tensors(partial, tensors, metadata)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial, path)
            self._bytes += size
        except (OSError, InputError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._warn(f"cannot be written ({reason}); features are computed again")

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{_SUFFIX}"

    def _has_room(self, size: int) -> bool:
        """Whether `size` more bytes fit; evicts old entries where that helps."""
        now = time.monotonic()
        if self._bytes + size <= self.limit and now - self._counted_at < _RECOUNT_AFTER:
            return True
        if self._warned and now - self._counted_at < _RECOUNT_AFTER:
            return False
        self._counted_at = now
        entries = self._entries()
        self._bytes = sum(entry_size for _, entry_size, _ in entries)
        for used, entry_size, path in sorted(entries):
            if self._bytes + size <= self.limit or used >= _process_start():
                break
            with suppress(OSError):
                path.unlink()
            self._bytes -= entry_size
        return self._bytes + size <= self.limit

    def _entries(self) -> list[tuple[float, int, Path]]:
        """Last use, size and file of each entry; removes partial files of killed processes."""
        found = []
        for path in (*self.folder.glob("[0-9a-f][0-9a-f]/*"), *self.folder.glob(".partial-*/*")):
            try:
                status = path.stat()
            except OSError:  # evicted by another process
                continue
            if _ENTRY.fullmatch(path.name) and not path.parent.name.startswith("."):
                found.append((status.st_mtime, status.st_size, path))
            elif path.parent.name.startswith(".") and time.time() - status.st_mtime > _ABANDONED_AFTER:
                with suppress(OSError):
                    path.unlink()
        return found

    def _warn(self, problem: str) -> None:
        if not self._warned:
            print(f"warning: backbone.cache={self.folder}: {problem}", file=sys.stderr)
        self._warned = True


@cache
def _process_start() -> float:
    """When this process first used a cache: about when its first run began."""
    return time.time()


def _unpacked(layer: str, number: int, tensors: Mapping[str, Tensor]) -> Features:
    prefix = f"{number}."
    parts = {n.removeprefix(prefix): t.float() for n, t in tensors.items() if n.startswith(prefix)}
    return Features(layer, **parts)


def _smallest(values: Tensor) -> Tensor:
    """In bfloat16 if that is lossless, as for features computed in it."""
    values = values.detach().cpu().contiguous()
    halved = values.to(torch.bfloat16)
    return halved if torch.equal(halved.to(values.dtype), values) else values.clone()  # may share memory


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    total = 0
    for name in sorted(tensors):
        flat = tensors[name].contiguous().view(-1)
        total = zlib.crc32(flat.view(torch.uint8).numpy().data, zlib.crc32(name.encode(), total))
    return f"{total:08x}"
