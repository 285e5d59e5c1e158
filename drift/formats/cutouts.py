"""Objects on a transparent background: RGBA PNGs, or a WebM video with alpha."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from drift.formats.video_encoding import VideoEncoder
from drift.formats.writer import FrameWriter, SegmentedFrame, atomic_path

__all__ = ["CutoutImages", "CutoutVideo"]


def _cutout(segmented: SegmentedFrame) -> np.ndarray:
    """`(height, width, 4)` uint8 RGBA: objects opaque, background transparent and black."""
    alpha = (segmented.mask > 0).astype(np.uint8) * 255
    return np.dstack([np.where(alpha[..., None] > 0, segmented.frame, np.uint8(0)), alpha])


class CutoutImages(FrameWriter):
    """Writes one RGBA PNG per frame: `cutouts/SEQUENCE/FRAME.png`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, segmented: SegmentedFrame) -> None:
        """See `FrameWriter.add`."""
        path = self.folder / f"{segmented.name}.png"
        with atomic_path(path) as partial:
            if not cv2.imwrite(str(partial), cv2.cvtColor(_cutout(segmented), cv2.COLOR_RGBA2BGRA)):
                raise OSError(f"{path}: cannot be written; check permissions and free disk space")


class CutoutVideo(FrameWriter):
    """Writes a VP9 video with alpha: `cutouts/SEQUENCE.webm`."""

    def __init__(self, path: Path) -> None:
        # `deadline=realtime`: the slower modes take seconds per frame, longer than the model.
        options = {"crf": "30", "b": "0", "deadline": "realtime", "cpu-used": "6", "auto-alt-ref": "0"}
        self._video = VideoEncoder(path, codec="libvpx-vp9", pixels="yuva420p", options=options)

    def add(self, segmented: SegmentedFrame) -> None:
        """See `FrameWriter.add`."""
        self._video.add(_cutout(segmented), segmented.time)

    def close(self) -> None:
        """See `FrameWriter.close`."""
        self._video.close()
