"""MOSE: crowded scenes and occluded objects; the validation split is scored by a server."""

from __future__ import annotations

from datamodules.base import FolderOfSplits, clip_of_files, folders_in, frames_in, masks_from_first
from drift.clip import Clip
from drift.submission import Submission

__all__ = ["Mose"]


class Mose(FolderOfSplits):
    """MOSE: the mask of the first frame is given.

    Expected layout: `ROOT/SPLIT/JPEGImages/VIDEO/*.jpg` and `ROOT/SPLIT/Annotations/VIDEO/*.png`. A video is scored
    locally if all its frames are annotated, as in `train`.
    """

    download_hint = "download valid.tar.gz (see github.com/henghuiding/MOSE-api) and unpack it in data.root"

    def split(self) -> list[str]:
        """Names of the folders in `Annotations`."""
        return folders_in(self.folder / "Annotations")

    def clip(self, name: str) -> Clip:
        """The clip of a video.

        Raises:
            InputError: frames or the first mask are missing.
        """
        frames = frames_in(self.folder / "JPEGImages" / name)
        masks = masks_from_first(self.folder / "Annotations" / name, frames)
        truth = masks if len(masks) == len(frames) > 1 else {}
        return clip_of_files(name, frames, {0: masks[0]}, truth, max_side=self.max_side)

    def submission(self) -> Submission | None:
        """`VIDEO/FRAME.png` for every frame; None for a split with public masks."""
        self.setup()
        assert self._clips is not None
        if any(len(clip.truth) for clip in self._clips):
            return None
        return Submission({clip.name: list(clip.frame_names) for clip in self._clips})
