"""JPEGs of sampled frames of each clip, for report and dashboards: overlays and error maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from drift.clip import Clip
from drift.formats.overlay import draw_overlay, draw_points
from drift.formats.writer import FrameWriter, SegmentedFrame, atomic_path
from drift.reporting.attention_maps import jpeg
from drift.reporting.never_fatal import never_fatal

__all__ = ["ERROR_COLOURS", "SampledFrames", "draw_errors", "errors_path", "sampled_indices"]

ERROR_COLOURS = {"missed": (230, 120, 0), "spurious": (40, 120, 255), "wrong object": (220, 40, 160)}
"""RGB colours of the error types, distinguishable with red-green colour blindness."""

_MAX_SIDE = 640  # pixels


class SampledFrames(FrameWriter):
    """Writes overlays `FRAME.jpg`, and error maps `FRAME.errors.jpg` of frames that have a ground-truth mask.

    Args:
        folder: folder of the clip's JPEGs.
        clip: the clip.
        indices: indices of the frames to write.
    """

    resumable = True

    def __init__(self, folder: Path, clip: Clip, indices: Sequence[int]) -> None:
        self.folder, self.clip, self.indices = folder, clip, frozenset(indices)

    def add(self, segmented: SegmentedFrame) -> None:
        """See `FrameWriter.add`; frames that are not in `indices` are ignored."""
        if segmented.index not in self.indices:
            return
        truth = self.clip.true_mask(segmented.index, segmented.mask.shape)
        with never_fatal(f"{self.clip.name}: no picture of frame {segmented.index}"):
            self._add(segmented, truth)

    def _add(self, segmented: SegmentedFrame, truth: np.ndarray | None) -> None:
        overlay = draw_overlay(segmented.frame, segmented.mask)
        if segmented.points:
            overlay = draw_points(overlay, [segmented.points])
        path = self.folder / f"{segmented.index:05d}.jpg"
        _write(path, overlay)
        if truth is not None:
            # Objects that have not been given yet are not missed.
            truth = np.where(np.isin(truth, list(segmented.objects)), truth, np.uint8(0))
            _write(errors_path(path), draw_errors(segmented.frame, segmented.mask, truth))


def _write(path: Path, image: np.ndarray) -> None:
    with atomic_path(path) as partial:
        partial.write_bytes(jpeg(image, max_side=_MAX_SIDE))


def sampled_indices(clip: Clip, count: int) -> list[int]:
    """Indices of at most `count` evenly spaced frames, from the first given frame to the last frame."""
    if not count:
        return []
    count = min(count, len(clip) - clip.start)
    return np.unique(np.linspace(clip.start, len(clip) - 1, count).round().astype(int)).tolist()


def errors_path(overlay: Path) -> Path:
    """Path of the error map that belongs to an overlay."""
    return overlay.with_suffix(".errors.jpg")


def draw_errors(
    frame: UInt8[np.ndarray, "height width 3"],
    mask: UInt8[np.ndarray, "height width"],
    truth: UInt8[np.ndarray, "height width"],
) -> UInt8[np.ndarray, "height width 3"]:
    """Draws errors in `ERROR_COLOURS` on a darkened grey frame; correct object pixels are light grey.

    Args:
        frame: RGB.
        mask: predicted object ids.
        truth: ground-truth object ids.

    Returns:
        RGB.
    """
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) * 0.5
    drawn = np.repeat(grey[..., None], 3, axis=-1)
    drawn[(mask == truth) & (truth > 0)] += 110
    errors = {
        "missed": (truth > 0) & (mask == 0),
        "spurious": (truth == 0) & (mask > 0),
        "wrong object": (truth > 0) & (mask > 0) & (mask != truth),
    }
    for kind, pixels in errors.items():
        drawn[pixels] = 0.25 * drawn[pixels] + 0.75 * np.array(ERROR_COLOURS[kind], np.float32)
    return drawn.round().astype(np.uint8)
