"""The formats by the names that configurations give them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from drift.clip import Clip, FrameFiles
from drift.errors import OptionError
from drift.formats.coco import CocoWriter
from drift.formats.cutouts import CutoutPictures, CutoutVideo
from drift.formats.masks import MaskWriter
from drift.formats.overlay import OverlayWriter
from drift.formats.tables import BoxTable, ContourTable, KeypointTable
from drift.formats.writer import FrameWriter

__all__ = ["FORMATS", "check_formats", "make_writers"]

FORMATS = ("masks", "overlay", "cutout_png", "cutout_webm", "coco", "boxes", "contours")
"""What `output.formats` may name. Keypoints are written wherever points are followed."""


def check_formats(formats: object) -> None:
    """Raises OptionError unless `formats` is a list of names from `FORMATS`, each once; it may be empty."""
    allowed = "a list from " + ", ".join(FORMATS)
    if isinstance(formats, str) or not isinstance(formats, Sequence):
        raise OptionError("formats", formats, allowed)
    for name in formats:
        if name not in FORMATS or list(formats).count(name) > 1:
            raise OptionError("formats", list(formats), allowed + ", each once")


def make_writers(formats: Sequence[str], clip: Clip, root: Path, *, done: int = 0) -> list[FrameWriter]:
    """The writers of a clip's chosen formats.

    Args:
        formats: from `FORMATS`.
        clip: what is written of.
        root: the folder below which all goes.
        done: how many frames an earlier run has written, which goes on.
    """
    writers: list[FrameWriter] = []
    for name in formats:
        match name:
            case "masks":
                writers.append(MaskWriter(root / "masks" / clip.name))
            case "overlay":
                writers.append(OverlayWriter(root / "overlays" / f"{clip.name}.mp4", audio=clip.audio))
            case "cutout_png":
                writers.append(CutoutPictures(root / "cutouts" / clip.name))
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
    """Of the pictures that the clip is made of; of a video's frames, that of pictures one would make of them."""
    return clip.frames.paths[0].suffix if isinstance(clip.frames, FrameFiles) else ".png"
