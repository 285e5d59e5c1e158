"""The objects cut out of their ground: RGBA pictures, or a WebM whose alpha video editors understand."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from drift.formats.video_encoding import VideoEncoder
from drift.formats.writer import FrameWriter, SegmentedFrame

__all__ = ["CutoutPictures", "CutoutVideo"]


def _cut_out(segmented: SegmentedFrame) -> np.ndarray:
    """`(height, width, 4)` uint8 RGBA: all objects opaque, all else transparent and black."""
    alpha = (segmented.mask > 0).astype(np.uint8) * 255
    return np.dstack([np.where(alpha[..., None] > 0, segmented.frame, np.uint8(0)), alpha])


class CutoutPictures(FrameWriter):
    """One RGBA PNG for each frame: `cutouts/SEQUENCE/FRAME.png`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, segmented: SegmentedFrame) -> None:
        """See `FrameWriter.add`."""
        path = self.folder / f"{segmented.name}.png"
        partial = path.with_name(f".{path.stem}.partial.png")
        if not cv2.imwrite(str(partial), cv2.cvtColor(_cut_out(segmented), cv2.COLOR_RGBA2BGRA)):
            raise OSError(f"{path}: cannot be written; is the disk full?")
        os.replace(partial, path)


class CutoutVideo(FrameWriter):
    """A VP9 video with alpha: `cutouts/SEQUENCE.webm`."""

    def __init__(self, path: Path) -> None:
        # Realtime: the best quality takes seconds a frame, more than the model does.
        options = {"crf": "30", "b": "0", "deadline": "realtime", "cpu-used": "6", "auto-alt-ref": "0"}
        self._video = VideoEncoder(path, codec="libvpx-vp9", pixels="yuva420p", options=options)

    def add(self, segmented: SegmentedFrame) -> None:
        """See `FrameWriter.add`."""
        self._video.add(_cut_out(segmented), segmented.time)

    def close(self) -> None:
        """See `FrameWriter.close`."""
        self._video.close()
