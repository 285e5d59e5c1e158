"""The Long Videos data set (AFB-URR, Liang et al., NeurIPS 2020): thousands of frames per video, few annotated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datamodules.base import (
    ClipDataModule,
    clip_of_files,
    folder_names,
    folders_in,
    frames_in,
    masks_from_first,
    read_lines,
)
from drift.clip import Clip

__all__ = ["LongVideos"]


class LongVideos(ClipDataModule):
    """Long Videos: the mask of the first frame is given; all other annotated frames are scored, including the last.

    Expected layout: `ROOT/JPEGImages/VIDEO/*.jpg`, `ROOT/Annotations/VIDEO/*.png` and, optionally, a list of videos.

    Args:
        root: folder of the data set.
        split: name of the list in `root`; None for `videos.txt` or, if that is missing, all folders of `Annotations`.
        sequences, max_side, download: see `ClipDataModule`.
    """

    scores_last_frame = True
    download_hint = "download it from kaggle.com/datasets/gvclsu/long-videos"

    def __init__(
        self,
        root: str | Path,
        *,
        split: str | None = None,
        sequences: Sequence[str] | None = None,
        max_side: int | None = None,
        download: bool = False,
    ) -> None:
        super().__init__(root, sequences=sequences, max_side=max_side, download=download)
        self._list = split

    def split(self) -> list[str]:
        """Names of the listed videos."""
        path = self.root / (self._list or "videos.txt")
        if self._list is None and not path.is_file():
            return folders_in(self.root / "Annotations")
        return folder_names(path, read_lines(path))

    def clip(self, name: str) -> Clip:
        """The clip of a video.

        Raises:
            InputError: frames or the first mask are missing.
        """
        frames = frames_in(self.root / "JPEGImages" / name)
        masks = masks_from_first(self.root / "Annotations" / name, frames)
        return clip_of_files(name, frames, {0: masks[0]}, masks, max_side=self.max_side)
