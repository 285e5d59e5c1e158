"""Boxes, contours and keypoints as CSV: `boxes/SEQUENCE.csv`, `contours/SEQUENCE.csv`, `keypoints/SEQUENCE.csv`."""

from __future__ import annotations

import csv
import io
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np

from drift.errors import InputError
from drift.formats.writer import FrameWriter, SegmentedFrame, appended
from drift.propagation.keypoints import TrackedPoint

__all__ = ["BoxTable", "ContourTable", "KeypointTable", "points_by_frame"]

_FRAME = ("frame", "name", "seconds")  # the first columns of all tables


class _Table(FrameWriter):
    """A CSV that grows by whole frames; its first columns say which frame a row is of."""

    columns: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_lines([(*_FRAME, *self.columns)]), encoding="utf-8")

    @abstractmethod
    def rows(self, segmented: SegmentedFrame) -> Iterator[Sequence[object]]:
        """What is told of a frame, in this table's own columns."""

    def add(self, segmented: SegmentedFrame) -> None:
        """See `FrameWriter.add`."""
        frame = (segmented.index, segmented.name, f"{segmented.time:.4f}")
        appended(self.path, _lines((*frame, *row) for row in self.rows(segmented)))


class BoxTable(_Table):
    """The smallest box around each visible object, in pixels."""

    columns = ("object", "x", "y", "width", "height", "area")

    def rows(self, segmented: SegmentedFrame) -> Iterator[Sequence[object]]:
        """One row for each object that is visible."""
        for object_id in segmented.objects:
            inside = (segmented.mask == object_id).astype(np.uint8)
            if area := int(inside.sum()):
                yield (object_id, *cv2.boundingRect(inside), area)


class ContourTable(_Table):
    """The outlines of each visible object, holes among them, as `x y` in pixels, one after the other."""

    columns = ("object", "contour", "is_hole", "points")

    def rows(self, segmented: SegmentedFrame) -> Iterator[Sequence[object]]:
        """One row for each closed outline."""
        for object_id in segmented.objects:
            inside = (segmented.mask == object_id).astype(np.uint8)
            outlines, tree = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
            for number, outline in enumerate(outlines):
                is_hole = int(tree[0, number, 3] >= 0)
                yield object_id, number, is_hole, " ".join(str(one) for one in outline.ravel())


class KeypointTable(_Table):
    """Where each point is, in pixels, and how sure that is, from 0 to 1.

    Args:
        path: of the CSV.
        done: how many frames of an earlier run are kept in it.

    Raises:
        InputError: what an earlier run left cannot be read.
    """

    columns = ("point", "x", "y", "confidence")
    goes_on = True

    def __init__(self, path: Path, *, done: int = 0) -> None:
        if not done:
            super().__init__(path)
            return
        self.path = path
        kept = path.with_name(f".{path.name}.partial")
        with kept.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow((*_FRAME, *self.columns))
            for frame, rows in _rows_by_frame(path):
                if frame >= done:
                    break
                writer.writerows(list(row.values()) for row in rows)
        os.replace(kept, path)

    def rows(self, segmented: SegmentedFrame) -> Iterator[Sequence[object]]:
        """One row for each point."""
        yield from self._told(segmented.points)

    @staticmethod
    def _told(points: Iterable[TrackedPoint]) -> Iterator[Sequence[object]]:
        for point in points:
            yield point.name, f"{point.x:.2f}", f"{point.y:.2f}", f"{point.confidence:.4f}"


def points_by_frame(path: Path) -> Iterator[tuple[int, tuple[TrackedPoint, ...]]]:
    """The frames of a `KeypointTable` that have points, one after the other, with their points.

    Raises:
        InputError: the file is missing or broken.
    """
    for frame, rows in _rows_by_frame(path):
        yield frame, tuple(_point(row) for row in rows)


def _rows_by_frame(path: Path) -> Iterator[tuple[int, list[dict[str, str]]]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for frame, rows in groupby(csv.DictReader(file), key=lambda row: int(row["frame"])):
                several = list(rows)
                for row in several:
                    _point(row)
                yield frame, several
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be gone on from ({error}); output.resume=false does the clip again"
        ) from None


def _point(row: Mapping[str, str]) -> TrackedPoint:
    return TrackedPoint(row["point"], float(row["x"]), float(row["y"]), float(row["confidence"]))


def _lines(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
