"""Boxes, contours and keypoints as CSV: `boxes/SEQUENCE.csv`, `contours/SEQUENCE.csv`, `keypoints/SEQUENCE.csv`."""

from __future__ import annotations

import csv
import io
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from drift.formats.writer import FrameWriter, SegmentedFrame, appended

__all__ = ["BoxTable", "ContourTable", "KeypointTable"]


class _Table(FrameWriter):
    """A CSV that grows by whole frames; its first columns say which frame a row is of."""

    columns: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_lines([("frame", "name", "seconds", *self.columns)]), encoding="utf-8")

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
    """Where each point is, in pixels, and how sure that is, from 0 to 1."""

    columns = ("point", "x", "y", "confidence")

    def rows(self, segmented: SegmentedFrame) -> Iterator[Sequence[object]]:
        """One row for each point."""
        for point in segmented.points:
            yield point.name, f"{point.x:.2f}", f"{point.y:.2f}", f"{point.confidence:.4f}"


def _lines(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
