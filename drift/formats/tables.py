"""CSV tables per clip: `boxes/SEQUENCE.csv`, `contours/SEQUENCE.csv` and `keypoints/SEQUENCE.csv`."""

from __future__ import annotations

import csv
import io
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np

from drift.errors import InputError
from drift.formats.writer import FrameWriter, SegmentedFrame, append, atomic_path
from drift.propagation.keypoints import TrackedPoint

__all__ = ["BoxTable", "ContourTable", "KeypointTable", "points_by_frame"]

_FRAME = ("frame", "name", "seconds")  # the first columns of every table


class _Table(FrameWriter):
    """Appends the rows of one frame at a time to a CSV file."""

    columns: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_lines([(*_FRAME, *self.columns)]), encoding="utf-8")

    @abstractmethod
    def rows(self, segmented: SegmentedFrame) -> Iterator[Sequence[object]]:
        """Yields the rows of a frame: values of `columns`."""

    def add(self, segmented: SegmentedFrame) -> None:
        """See `FrameWriter.add`."""
        frame = (segmented.index, segmented.name, f"{segmented.time:.4f}")
        append(self.path, _lines((*frame, *row) for row in self.rows(segmented)))


class BoxTable(_Table):
    """Bounding box and area of each visible object, in pixels."""

    columns = ("object", "x", "y", "width", "height", "area")

    def rows(self, segmented: SegmentedFrame) -> Iterator[Sequence[object]]:
        """One row per visible object."""
        for object_id in segmented.objects:
            mask = (segmented.mask == object_id).astype(np.uint8)
            if area := int(mask.sum()):
                yield (object_id, *cv2.boundingRect(mask), area)


class ContourTable(_Table):
    """Contours of each visible object, including holes; `points` is `x y x y ...` in pixels."""

    columns = ("object", "contour", "is_hole", "points")

    def rows(self, segmented: SegmentedFrame) -> Iterator[Sequence[object]]:
        """One row per closed contour."""
        for object_id in segmented.objects:
            mask = (segmented.mask == object_id).astype(np.uint8)
            contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
            for number, contour in enumerate(contours):
                is_hole = int(hierarchy[0, number, 3] >= 0)
                yield object_id, number, is_hole, " ".join(map(str, contour.ravel()))


class KeypointTable(_Table):
    """Position in pixels and confidence in [0, 1] of each tracked point.

    Args:
        path: path of the CSV file.
        done: number of frames whose rows are kept when a run is resumed.

    Raises:
        InputError: the file of the earlier run cannot be read.
    """

    columns = ("point", "x", "y", "confidence")
    resumable = True

    def __init__(self, path: Path, *, done: int = 0) -> None:
        if not done:
            super().__init__(path)
            return
        self.path = path
        with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow((*_FRAME, *self.columns))
            for frame, rows in _rows_by_frame(path):
                if frame >= done:
                    break
                writer.writerows(list(row.values()) for row in rows)

    def rows(self, segmented: SegmentedFrame) -> Iterator[Sequence[object]]:
        """One row per point."""
        for point in segmented.points:
            yield point.name, f"{point.x:.2f}", f"{point.y:.2f}", f"{point.confidence:.4f}"


def points_by_frame(path: Path) -> Iterator[tuple[int, tuple[TrackedPoint, ...]]]:
    """Reads a `KeypointTable`; yields `(frame index, points)` for every frame with points, in order.

    Raises:
        InputError: the file is missing or malformed.
    """
    for frame, rows in _rows_by_frame(path):
        yield frame, tuple(_point(row) for row in rows)


def _rows_by_frame(path: Path) -> Iterator[tuple[int, list[dict[str, str]]]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            if "frame" not in (table.fieldnames or ()):
                raise ValueError("no column frame")
            for frame, rows in groupby(table, key=lambda row: int(row["frame"])):
                frame_rows = list(rows)
                for row in frame_rows:
                    _point(row)  # raises if the row is malformed
                yield frame, frame_rows
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path}: cannot resume from this file ({error}); set output.resume=false to track the clip again"
        ) from None


def _point(row: Mapping[str, str]) -> TrackedPoint:
    return TrackedPoint(row["point"], float(row["x"]), float(row["y"]), float(row["confidence"]))


def _lines(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
