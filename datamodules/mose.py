"""MOSE, validation: crowded and occluded objects, whose masks a server keeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datamodules.base import ClipDataModule, clip_of_files, folders_in, frames_in, masks_in
from drift.clip import Clip
from drift.errors import InputError
from drift.submission import Submission

__all__ = ["Mose"]


class Mose(ClipDataModule):
    """The first frame's mask is given.

    Layout below `root`, or below `root/SPLIT` where that is: `JPEGImages/VIDEO/*.jpg`, `Annotations/VIDEO/*.png`. There
    is no list: the split is what its archive holds. Where all frames have masks, as in `train`, they are scored.

    Args:
        root: the folder of that layout.
        split: the folder below `root`.
        sequences, max_side, download: see `ClipDataModule`.
    """

    by_hand = "fetch valid.tar.gz as github.com/henghuiding/MOSE-api says, and unpack it below data.root"

    def __init__(
        self,
        root: str | Path | None,
        *,
        split: str = "valid",
        sequences: Sequence[str] | None = None,
        max_side: int | None = None,
        download: bool = False,
    ) -> None:
        self.split_name = split
        super().__init__(root, sequences=sequences, max_side=max_side, download=download)
        inner = self.root / split
        self.folder = inner if inner.is_dir() else self.root

    def split(self) -> list[str]:
        """The videos with a mask."""
        return folders_in(self.folder / "Annotations")

    def is_there(self, root: Path) -> bool:
        """See `ClipDataModule.is_there`."""
        return super().is_there(root) or super().is_there(root / self.split_name)

    def clip(self, name: str) -> Clip:
        """A video.

        Raises:
            InputError: frames or the first mask are missing; names them.
        """
        frames = frames_in(self.folder / "JPEGImages" / name)
        folder = self.folder / "Annotations" / name
        masks = masks_in(folder, frames)
        if 0 not in masks:
            raise InputError(f"{folder / frames[0].stem}.png: no such file; the first frame needs a mask")
        truth = masks if len(masks) == len(frames) > 1 else {}
        return clip_of_files(name, frames, {0: masks[0]}, truth, max_side=self.max_side)

    def submission(self) -> Submission | None:
        """Each video's folder at the archive's root; None for a split whose masks are here."""
        self.setup()
        assert self._clips is not None
        if any(len(clip.truth) for clip in self._clips):
            return None
        return Submission({clip.name: list(clip.frame_names) for clip in self._clips})
