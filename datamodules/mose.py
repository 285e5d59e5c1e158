"""MOSE, validation: crowded and occluded objects, whose masks a server keeps."""

from __future__ import annotations

from datamodules.base import FolderOfSplits, clip_of_files, folders_in, frames_in, masks_from_first
from drift.clip import Clip
from drift.submission import Submission

__all__ = ["Mose"]


class Mose(FolderOfSplits):
    """The first frame's mask is given.

    Layout below `root/SPLIT`: `JPEGImages/VIDEO/*.jpg`, `Annotations/VIDEO/*.png`. There is no list: the split is what
    its archive holds. Where all frames have masks, as in `train`, they are scored.
    """

    by_hand = "fetch valid.tar.gz as github.com/henghuiding/MOSE-api says, and unpack it below data.root"

    def split(self) -> list[str]:
        """The videos with a mask."""
        return folders_in(self.folder / "Annotations")

    def clip(self, name: str) -> Clip:
        """A video.

        Raises:
            InputError: frames or the first mask are missing; names them.
        """
        frames = frames_in(self.folder / "JPEGImages" / name)
        masks = masks_from_first(self.folder / "Annotations" / name, frames)
        truth = masks if len(masks) == len(frames) > 1 else {}
        return clip_of_files(name, frames, {0: masks[0]}, truth, max_side=self.max_side)

    def submission(self) -> Submission | None:
        """Each video's folder at the archive's root; None for a split whose masks are here."""
        self.setup()
        assert self._clips is not None
        if any(len(clip.truth) for clip in self._clips):
            return None
        return Submission({clip.name: list(clip.frame_names) for clip in self._clips})
