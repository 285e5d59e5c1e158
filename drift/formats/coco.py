"""COCO's JSON with run-length masks: `coco/SEQUENCE.json`, one `track_id` for each object."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as run_lengths

from drift.formats.writer import FrameWriter, SegmentedFrame, write_whole

__all__ = ["CocoWriter"]

_RECORD = 48  # bytes of a picture's record besides its name and the digits of its sizes
_END = b"\n]}\n"


class CocoWriter(FrameWriter):
    """A JSON that is whole after every frame, and whose frames cost the same however long the clip is.

    Place for the records of all pictures is kept free at the file's head, as blanks, which JSON allows; annotations are
    added at its end.

    Args:
        path: of the JSON.
        names: of all frames of the clip, without suffix.
        suffix: of the frames' files, with its dot.
    """

    def __init__(self, path: Path, names: Sequence[str], *, suffix: str = ".png") -> None:
        self.path, self.suffix = path, suffix
        self._record = _RECORD + max(len(json.dumps(name + suffix)) for name in names) + 36
        self._count = len(names)
        self._tracks: dict[int, int] = {}
        self._annotations = 0
        self._file: int | None = None

    def add(self, segmented: SegmentedFrame) -> None:
        """See `FrameWriter.add`."""
        if self._file is None:
            self._start()
        rows = [
            self._annotation(segmented, object_id, mask)
            for object_id in segmented.objects
            if (mask := segmented.mask == object_id).any()
        ]
        if rows:
            head = "," if self._annotations > len(rows) else ""
            self._close_with((head + ",".join("\n" + json.dumps(row) for row in rows)).encode())
        height, width = segmented.mask.shape
        picture = {
            "id": segmented.index + 1,
            "file_name": segmented.name + self.suffix,
            "width": width,
            "height": height,
        }
        record = (", " if segmented.index else "") + json.dumps(picture)
        assert self._file is not None
        os.pwrite(self._file, record.encode(), self._pictures + segmented.index * self._record)

    def close(self) -> None:
        """See `FrameWriter.close`."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _start(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        head = b'{"info": {"description": "masks by drift"}, "categories": [{"id": 1, "name": "object"}],\n"images": ['
        blank = b" " * (self._record * self._count)
        middle = b'],\n"annotations": ['
        self._pictures, self._end = len(head), len(head) + len(blank) + len(middle)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        write_whole(self._file, head + blank + middle + _END, 0)

    def _annotation(self, segmented: SegmentedFrame, object_id: int, mask: np.ndarray) -> dict[str, object]:
        encoded = run_lengths.encode(np.asfortranarray(mask.astype(np.uint8)))
        self._annotations += 1
        return {
            "id": self._annotations,
            "image_id": segmented.index + 1,
            "category_id": 1,
            "track_id": object_id,
            "segmentation": {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")},
            "area": int(mask.sum()),
            "bbox": [float(one) for one in run_lengths.toBbox(encoded)],
            "iscrowd": 0,
        }

    def _close_with(self, content: bytes) -> None:
        """Adds annotations in one go: neither half a frame nor an unclosed list is left by a kill or a full disk."""
        assert self._file is not None
        try:
            write_whole(self._file, content + _END, self._end)
        except OSError as error:
            os.pwrite(self._file, _END, self._end)  # it was there before, so there is room for it
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._end += len(content)
