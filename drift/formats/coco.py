"""COCO JSON with run-length encoded masks and one `track_id` per object: `coco/SEQUENCE.json`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as run_lengths

from drift.formats.writer import FrameWriter, SegmentedFrame, write_all

__all__ = ["CocoWriter"]

_RECORD = 48  # bytes of an image record without its file name and digits
_END = b"\n]}\n"


class CocoWriter(FrameWriter):
    """Writes COCO JSON that is valid after every frame, at constant cost per frame.

    Image records overwrite blanks reserved at the head of the file; annotations are appended at its end.

    Args:
        path: path of the JSON file.
        names: names of all frames of the clip, without suffix.
        suffix: suffix of the frames in `file_name`, with its dot.
    """

    def __init__(self, path: Path, names: Sequence[str], *, suffix: str = ".png") -> None:
        self.path, self.suffix = path, suffix
        self._record = _RECORD + max(len(json.dumps(name + suffix)) for name in names) + 36
        self._count = len(names)
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
            self._append((head + ",".join("\n" + json.dumps(row) for row in rows)).encode())
        height, width = segmented.mask.shape
        image = {
            "id": segmented.index + 1,
            "file_name": segmented.name + self.suffix,
            "width": width,
            "height": height,
        }
        record = (", " if segmented.index else "") + json.dumps(image)
        assert self._file is not None
        os.pwrite(self._file, record.encode(), self._images + segmented.index * self._record)

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
        self._images, self._end = len(head), len(head) + len(blank) + len(middle)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        write_all(self._file, head + blank + middle + _END, 0)

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
            "bbox": run_lengths.toBbox(encoded).tolist(),
            "iscrowd": 0,
        }

    def _append(self, content: bytes) -> None:
        """Appends annotations and closes the JSON in one write, so that it stays valid if the process is killed."""
        assert self._file is not None
        try:
            write_all(self._file, content + _END, self._end)
        except OSError as error:
            os.pwrite(self._file, _END, self._end)  # needs no additional space on the disk
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._end += len(content)
