"""Pictures of some frames of each clip, for report and dashboards: the overlay, and where the masks are wrong."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from drift.clip import Clip
from drift.formats.overlay import draw_overlay, draw_points
from drift.formats.writer import FrameWriter, SegmentedFrame
from drift.reporting.attention_maps import jpeg
from drift.reporting.never_fatal import never_fatal

__all__ = ["ERROR_COLOURS", "SampledFrames", "draw_errors", "errors_path", "sampled_indices"]

ERROR_COLOURS = {"missed": (230, 120, 0), "spurious": (40, 120, 255), "another object": (220, 40, 160)}
"""Told apart by those who do not see red and green apart. RGB."""

_LONGER_SIDE = 640  # pixels


class SampledFrames(FrameWriter):
    """JPEGs of sampled frames: `FRAME.jpg`, the overlay, and `FRAME.errors.jpg` where there is a true mask.

    Args:
        folder: of the clip's pictures.
        clip: whose frames they are.
        indices: of the frames.
    """

    goes_on = True

    def __init__(self, folder: Path, clip: Clip, indices: Sequence[int]) -> None:
        self.folder, self.clip, self.indices = folder, clip, frozenset(indices)

    def add(self, segmented: SegmentedFrame) -> None:
        """See `FrameWriter.add`; frames that were not chosen are passed over."""
        if segmented.index not in self.indices:
            return
        truth = self.clip.true_mask(segmented.index, segmented.mask.shape)
        with never_fatal(f"{self.clip.name}: no picture of frame {segmented.index}"):
            self._add(segmented, truth)

    def _add(self, segmented: SegmentedFrame, truth: np.ndarray | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        drawn = draw_overlay(segmented.frame, segmented.mask)
        if segmented.points:
            drawn = draw_points(drawn, [segmented.points])
        path = self.folder / f"{segmented.index:05d}.jpg"
        _write(path, jpeg(drawn, longer_side=_LONGER_SIDE))
        if truth is not None:
            # An object that is not known yet cannot be missed.
            truth = np.where(np.isin(truth, list(segmented.objects)), truth, np.uint8(0))
            wrong = draw_errors(segmented.frame, segmented.mask, truth)
            _write(errors_path(path), jpeg(wrong, longer_side=_LONGER_SIDE))


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def sampled_indices(clip: Clip, count: int) -> list[int]:
    """At most so many frames, evenly from the first to the last that is tracked."""
    if not count:
        return []
    return np.unique(np.linspace(clip.start, len(clip) - 1, count).round().astype(int)).tolist()


def errors_path(picture: Path) -> Path:
    """Where the error map of a sampled frame is, beside its overlay."""
    return picture.with_suffix(".errors.jpg")


def draw_errors(
    frame: UInt8[np.ndarray, "height width 3"],
    mask: UInt8[np.ndarray, "height width"],
    truth: UInt8[np.ndarray, "height width"],
) -> UInt8[np.ndarray, "height width 3"]:
    """A frame in grey, light where an object is rightly found, in `ERROR_COLOURS` where the mask is wrong; RGB."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) * 0.5
    drawn = np.repeat(grey[..., None], 3, axis=-1)
    drawn[(mask == truth) & (truth > 0)] += 110
    wrong = {
        "missed": (truth > 0) & (mask == 0),
        "spurious": (truth == 0) & (mask > 0),
        "another object": (truth > 0) & (mask > 0) & (mask != truth),
    }
    for kind, where in wrong.items():
        drawn[where] = 0.25 * drawn[where] + 0.75 * np.array(ERROR_COLOURS[kind], np.float32)
    return drawn.round().astype(np.uint8)
