"""Clips of one's own as folders of pictures, with masks where there are some."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datamodules.base import ClipDataModule, clip_of_files, folders_in, frames_in, masks_in
from drift.clip import Clip
from drift.options import positive

__all__ = ["Folder"]


class Folder(ClipDataModule):
    """Every folder of frames is a clip; masks bear the names of their frames.

    Layout below `root`: `frames/CLIP/*.jpg`, `masks/CLIP/*.png` with the masks that are given, on one frame or several,
    and `truth/CLIP/*.png` with masks to score against, where there are any.

    Args:
        root: the folder of that layout.
        frames_per_second: at which overlays are played.
        sequences, max_side: see `ClipDataModule`.
    """

    def __init__(
        self,
        root: str | Path | None,
        *,
        frames_per_second: float = 24.0,
        sequences: Sequence[str] | None = None,
        max_side: int | None = None,
    ) -> None:
        positive("frames_per_second", frames_per_second)
        self.frames_per_second = frames_per_second
        super().__init__(root, sequences=sequences, max_side=max_side)

    def split(self) -> list[str]:
        """The folders of frames."""
        return folders_in(self.root / "frames")

    def clip(self, name: str) -> Clip:
        """A clip.

        Raises:
            InputError: a folder is missing or empty, or a mask bears no frame's name; names it.
        """
        frames = frames_in(self.root / "frames" / name)
        given = masks_in(self.root / "masks" / name, frames)
        truth_folder = self.root / "truth" / name
        truth = masks_in(truth_folder, frames) if truth_folder.is_dir() else {}
        return clip_of_files(
            name, frames, given, truth, max_side=self.max_side, frames_per_second=self.frames_per_second
        )
