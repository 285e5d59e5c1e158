"""What layers read of frames, kept on disk: the runs of a sweep share what does not depend on what is swept."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from drift.backbone.interface import LayerReading
from drift.errors import InputError
from drift.options import positive
from drift.tensor_files import save_tensors

__all__ = ["ReadingCache", "reading_key"]

_SUFFIX = ".safetensors"
_ENTRY = re.compile(r"[0-9a-f]{40}\.safetensors")
_PARTS = ("queries", "keys", "inputs", "prompt_queries")
_NOISE = "noise"
_LOOKED_AGAIN = 60.0  # seconds until other processes' entries are counted anew
_ABANDONED = 3600.0  # seconds after which a file that is still being written has no writer


def reading_key(
    described: Mapping[str, object],
    images: Tensor,
    noise: Tensor,
    condition: Tensor | None,
    cross: Sequence[str],
) -> str:
    """A name for what is read: equal names mean equal readings.

    Args:
        described: the model and how it is read, `LatentDiffusion.description` with the precision.
        images: `(batch, 3, height, width)`, RGB in [0, 1].
        noise: the state of the generator before.
        condition: the prompt's embeddings; None for the model's own prompt, which `described` holds.
        cross: layers whose cross-attention is read too.
    """
    told = hashlib.sha256(json.dumps([described, sorted(cross)], sort_keys=True).encode())
    for tensor in (images, noise, condition):
        told.update(b"none" if tensor is None else f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        if tensor is not None:
            told.update(tensor.detach().contiguous().cpu().view(torch.uint8).numpy().data)
    return told.hexdigest()[:40]


class ReadingCache:
    """A folder of readings, which several processes may use at once.

    An entry is written whole or not at all, and taken only where its checksum holds; else it is computed anew. Where
    the folder is full, entries that were last used before this process began make room; where there are none, or the
    disk is full, nothing more is kept, which is said once. A run never fails for its cache, and files of the folder
    that are not the cache's are left alone.

    Args:
        folder: made where it does not exist.
        gigabytes: the most that all entries together take; above 0.

    Raises:
        OptionError: the size is not allowed.
    """

    def __init__(self, folder: Path, gigabytes: float) -> None:
        positive("cache_gigabytes", gigabytes)
        self.folder, self.most = folder.expanduser(), int(gigabytes * 1e9)
        self._bytes = 0
        self._counted_at = -_LOOKED_AGAIN
        self._told: set[str] = set()
        _began()

    def load(self, key: str) -> tuple[list[LayerReading], Tensor] | None:
        """The readings of that name, and the state of the noise's generator after them; None where there are none."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                told = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if told.get("key") != key or told.get("checksum") != _checksum(tensors):
                raise SafetensorError("its checksum does not hold")
        except Exception as error:  # missing, damaged, or removed by another process while it was read
            if isinstance(error, SafetensorError | ValueError):
                with suppress(OSError):
                    path.unlink()
            return None
        with suppress(OSError):  # another user's
            os.utime(path)  # was used
        noise = tensors.pop(_NOISE)
        return [
            _reading(name, number, tensors) for number, name in enumerate(json.loads(told["layers"]))
        ], noise

    def save(self, key: str, readings: Sequence[LayerReading], noise: Tensor) -> None:
        """Keeps readings under a name, with the generator's state after them, where there is room."""
        tensors = {_NOISE: noise.cpu()}
        for number, reading in enumerate(readings):
            parts = {part: getattr(reading, part) for part in _PARTS}
            tensors |= {f"{number}.{part}": _smallest(one) for part, one in parts.items() if one is not None}
        size = sum(one.nbytes for one in tensors.values())
        told = {
            "key": key,
            "layers": json.dumps([reading.name for reading in readings]),
            "checksum": _checksum(tensors),
        }
        try:
            if not self._has_room(size):
                self._tell(f"is full ({self.most / 1e9:g} GB); backbone.cache_gigabytes=N gives it more")
                return
            path, partial = self._path(key), self.folder / f".partial-{os.getpid()}" / f"{key}{_SUFFIX}"
            save_tensors(partial, tensors, told)
            path.parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial, path)
            self._bytes += size
        except (OSError, InputError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._tell(f"cannot be written ({reason}); what is not there is computed anew")

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{_SUFFIX}"

    def _has_room(self, size: int) -> bool:
        """Whether so many bytes more may be kept; makes room where that is possible."""
        now = time.monotonic()
        if self._bytes + size <= self.most and now - self._counted_at < _LOOKED_AGAIN:
            return True
        if self._told and now - self._counted_at < _LOOKED_AGAIN:
            return False
        self._counted_at = now
        entries = self._entries()
        self._bytes = sum(entry_size for _, entry_size, _ in entries)
        for used, entry_size, path in sorted(entries):
            if self._bytes + size <= self.most or used >= _began():
                break
            with suppress(OSError):
                path.unlink()
            self._bytes -= entry_size
        return self._bytes + size <= self.most

    def _entries(self) -> list[tuple[float, int, Path]]:
        """When each entry was last used, its size and its file; what a killed process left half-written is removed."""
        found = []
        for path in (*self.folder.glob("[0-9a-f][0-9a-f]/*"), *self.folder.glob(".partial-*/*")):
            try:
                status = path.stat()
            except OSError:  # another process made room
                continue
            if _ENTRY.fullmatch(path.name) and not path.parent.name.startswith("."):
                found.append((status.st_mtime, status.st_size, path))
            elif path.parent.name.startswith(".") and time.time() - status.st_mtime > _ABANDONED:
                with suppress(OSError):
                    path.unlink()
        return found

    def _tell(self, what: str) -> None:
        if not self._told:
            print(f"warning: backbone.cache={self.folder}: {what}", file=sys.stderr)
        self._told.add(what)


@cache
def _began() -> float:
    """When this process first looked for room: about when its first run began."""
    return time.time()


def _reading(name: str, number: int, tensors: Mapping[str, Tensor]) -> LayerReading:
    parts = {part: tensors.get(f"{number}.{part}") for part in _PARTS}
    return LayerReading(name, **{part: None if one is None else one.float() for part, one in parts.items()})  # type: ignore[arg-type]


def _smallest(values: Tensor) -> Tensor:
    """In bfloat16 where that loses nothing, as with what was computed in it."""
    values = values.detach().cpu().contiguous()
    halved = values.to(torch.bfloat16)
    return halved if torch.equal(halved.to(values.dtype), values) else values


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    sum_ = 0
    for name in sorted(tensors):
        flat = tensors[name].contiguous().view(-1)
        sum_ = zlib.crc32(flat.view(torch.uint8).numpy().data, zlib.crc32(name.encode(), sum_))
    return f"{sum_:08x}"
