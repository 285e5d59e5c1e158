"""What a run writes of each clip: masks, overlay, cut-outs, COCO, boxes, contours, keypoints; a file for each kind."""

from drift.formats.choosing import FORMATS, make_writers
from drift.formats.writer import FrameWriter, SegmentedFrame

__all__ = ["FORMATS", "FrameWriter", "SegmentedFrame", "make_writers"]
