"""Reader of offline W&B runs: protocol buffers of W&B in the log format of LevelDB."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

__all__ = ["offline_runs", "records"]

_BLOCK, _HEADER, _FILE_HEADER = 32768, 7, 7


def records(path: Path) -> Iterator[wandb_internal_pb2.Record]:
    """Records of a `.wandb` file."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    offset, parts = _FILE_HEADER, b""
    while offset + _HEADER <= len(content):
        remaining = _BLOCK - offset % _BLOCK
        if remaining < _HEADER:  # padding at the end of a block
            offset += remaining
            continue
        length, kind = int.from_bytes(content[offset + 4 : offset + 6], "little"), content[offset + 6]
        parts += content[offset + _HEADER : offset + _HEADER + length]
        offset += _HEADER + length
        if kind in (1, 4):  # a complete record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


class OfflineRun:
    """The logged data of a run.

    Attributes:
        files: folder of the media.
        config: by key.
        history: logged rows, in order.
        summary: by key.
        exit_code: of the run, or None.
    """

    def __init__(self, folder: Path) -> None:
        (log,) = folder.glob("*.wandb")
        self.files = folder / "files"
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.exit_code: int | None = None
        for record in records(log):
            match record.WhichOneof("record_type"):
                case "run":
                    self._update(self.config, record.run.config.update)
                case "config":
                    self._update(self.config, record.config.update)
                case "history":
                    row: dict[str, Any] = {}
                    self._update(row, record.history.item)
                    self.history.append(row)
                case "summary":
                    self._update(self.summary, record.summary.update)
                case "exit":
                    self.exit_code = record.exit.exit_code

    @staticmethod
    def _update(into: dict[str, Any], items: Any) -> None:
        for item in items:
            first, *inner = item.nested_key or [item.key]
            target, last = into, first
            for key in inner:  # images and tables are nested
                target, last = target.setdefault(last, {}), key
            target[last] = json.loads(item.value_json)

    def values(self, key: str) -> list[Any]:
        """Logged values of a key, in order."""
        return [row[key] for row in self.history if key in row]


def offline_runs(folder: Path) -> list[OfflineRun]:
    """Runs in an output folder, in order of their start."""
    return [OfflineRun(path) for path in sorted((folder / "wandb").glob("offline-run-*"))]
