"""Writers of per-clip outputs, one module per kind: masks, overlays, cut-outs, COCO, boxes, contours, keypoints."""

from drift.formats.registry import FORMATS, make_writers
from drift.formats.writer import FrameWriter, SegmentedFrame

__all__ = ["FORMATS", "FrameWriter", "SegmentedFrame", "make_writers"]
