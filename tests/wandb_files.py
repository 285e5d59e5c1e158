"""Reads what an offline W&B run wrote: LevelDB's log format around W&B's own protocol buffers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

__all__ = ["offline_runs", "records"]

_BLOCK, _HEADER, _FILE_HEADER = 32768, 7, 7


def records(path: Path) -> Iterator[wandb_internal_pb2.Record]:
    """The records of a `.wandb` file."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    place, parts = _FILE_HEADER, b""
    while place + _HEADER <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:  # the rest of a block is empty
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + _HEADER : place + _HEADER + length]
        place += _HEADER + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


class OfflineRun:
    """What one run logged.

    Attributes:
        files: the folder of its media.
        config: by key.
        history: the rows that were logged, in order.
        summary: by key.
        exit_code: with which it ended, or None.
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
                    self._take(self.config, record.run.config.update)
                case "config":
                    self._take(self.config, record.config.update)
                case "history":
                    row: dict[str, Any] = {}
                    self._take(row, record.history.item)
                    self.history.append(row)
                case "summary":
                    self._take(self.summary, record.summary.update)
                case "exit":
                    self.exit_code = record.exit.exit_code

    @staticmethod
    def _take(into: dict[str, Any], items: Any) -> None:
        for item in items:
            first, *inner = item.nested_key or [item.key]
            target, last = into, first
            for key in inner:  # a picture or a table comes in parts
                target, last = target.setdefault(last, {}), key
            target[last] = json.loads(item.value_json)

    def values(self, key: str) -> list[Any]:
        """What was logged under a key, in order."""
        return [row[key] for row in self.history if key in row]


def offline_runs(folder: Path) -> list[OfflineRun]:
    """The runs below a folder, in the order in which they began."""
    found = sorted((folder / "wandb").glob("offline-run-*"))
    return [OfflineRun(one) for one in found]
