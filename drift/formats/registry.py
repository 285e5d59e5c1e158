"""Output formats by their names in the configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drift.clip import Clip, FrameFiles
from drift.formats.coco import CocoWriter
from drift.formats.cutouts import CutoutImages, CutoutVideo
from drift.formats.mask_images import MaskWriter
from drift.formats.overlay import OverlayWriter
from drift.formats.tables import BoxTable, ContourTable, KeypointTable
from drift.formats.writer import FrameWriter

__all__ = ["FORMATS", "make_writers"]

FORMATS = ("masks", "overlay", "cutout_png", "cutout_webm", "coco", "boxes", "contours")
"""Allowed values of `output.formats`. Keypoints are always written if a clip has any."""


def make_writers(formats: Sequence[str], clip: Clip, root: Path, *, done: int = 0) -> list[FrameWriter]:
    """Creates the writers of one clip.

    Args:
        formats: names from `FORMATS`.
        clip: the clip whose frames are written.
        root: output folder of the run.
        done: number of frames already written by the run that is resumed.
    """
    writers: list[FrameWriter] = []
    for name in formats:
        match name:
            case "masks":
                writers.append(MaskWriter(root / "masks" / clip.name))
            case "overlay":
                writers.append(OverlayWriter(root / "overlays" / f"{clip.name}.mp4", audio=clip.audio))
            case "cutout_png":
                writers.append(CutoutImages(root / "cutouts" / clip.name))
            case "cutout_webm":
                writers.append(CutoutVideo(root / "cutouts" / f"{clip.name}.webm"))
            case "coco":
                writers.append(
                    CocoWriter(root / "coco" / f"{clip.name}.json", clip.frame_names, suffix=_suffix(clip))
                )
            case "boxes":
                writers.append(BoxTable(root / "boxes" / f"{clip.name}.csv"))
            case "contours":
                writers.append(ContourTable(root / "contours" / f"{clip.name}.csv"))
    if clip.keypoints:
        writers.append(KeypointTable(root / "keypoints" / f"{clip.name}.csv", done=done))
    return writers


def _suffix(clip: Clip) -> str:
    """File suffix of the clip's frames; `.png` for the frames of a video."""
    return clip.frames.paths[0].suffix if isinstance(clip.frames, FrameFiles) else ".png"
