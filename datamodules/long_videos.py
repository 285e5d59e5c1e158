"""The Long Videos of Liang et al. (AFB-URR, NeurIPS 2020): thousands of frames, masks on some of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datamodules.base import (
    ClipDataModule,
    clip_of_files,
    folders_in,
    frames_in,
    masks_from_first,
    read_lines,
)
from drift.clip import Clip

__all__ = ["LongVideos"]


class LongVideos(ClipDataModule):
    """The first frame's mask is given; all other frames that have one are scored, the last among them.

    Layout below `root`: `JPEGImages/VIDEO/*.jpg`, `Annotations/VIDEO/*.png`, and the list of videos.

    Args:
        root: the folder of that layout.
        split: the list's file below `root`; where it is missing and was not asked for, all folders with masks.
        sequences, max_side, download: see `ClipDataModule`.
    """

    scores_last_frame = True
    by_hand = "fetch it from kaggle.com/datasets/gvclsu/long-videos"

    def __init__(
        self,
        root: str | Path | None,
        *,
        split: str | None = None,
        sequences: Sequence[str] | None = None,
        max_side: int | None = None,
        download: bool = False,
    ) -> None:
        super().__init__(root, sequences=sequences, max_side=max_side, download=download)
        self._list = split

    def split(self) -> list[str]:
        """The videos of the list."""
        path = self.root / (self._list or "videos.txt")
        if self._list is None and not path.is_file():
            return folders_in(self.root / "Annotations")
        return read_lines(path)

    def clip(self, name: str) -> Clip:
        """A video.

        Raises:
            InputError: frames or the first mask are missing; names them.
        """
        frames = frames_in(self.root / "JPEGImages" / name)
        masks = masks_from_first(self.root / "Annotations" / name, frames)
        return clip_of_files(name, frames, {0: masks[0]}, masks, max_side=self.max_side)
