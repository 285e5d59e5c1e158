"""Indexed PNGs in the DAVIS layout and palette: `masks/SEQUENCE/FRAME.png`."""

from __future__ import annotations

from pathlib import Path

from drift.formats.writer import FrameWriter, SegmentedFrame
from drift.image_files import write_mask

__all__ = ["MaskWriter"]


class MaskWriter(FrameWriter):
    """Writes one PNG of object ids per frame."""

    resumable = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, segmented: SegmentedFrame) -> None:
        """See `FrameWriter.add`."""
        write_mask(self.folder / f"{segmented.name}.png", segmented.mask)
