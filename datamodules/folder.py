"""Your own clips as folders of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datamodules.base import ClipDataModule, clip_of_files, folders_in, frames_in, masks_in
from drift.clip import Clip

__all__ = ["Folder"]


class Folder(ClipDataModule):
    """Clips as folders of images.

    Expected layout: `ROOT/frames/CLIP/*.jpg`, `ROOT/masks/CLIP/*.png` with the given masks (of at least one frame) and,
    optionally, `ROOT/truth/CLIP/*.png` with masks to score against. A mask has the name of its frame and contains
    object ids, or one object in black and white.

    Args:
        root: folder with that layout.
        frames_per_second: frame rate of overlay videos.
        sequences, max_side: see `ClipDataModule`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        frames_per_second: float = 24.0,
        sequences: Sequence[str] | None = None,
        max_side: int | None = None,
    ) -> None:
        self.frames_per_second = frames_per_second
        super().__init__(root, sequences=sequences, max_side=max_side)

    def split(self) -> list[str]:
        """Names of the folders in `frames`."""
        return folders_in(self.root / "frames")

    def clip(self, name: str) -> Clip:
        """The clip in folder `name`.

        Raises:
            InputError: a folder is missing or empty, or a mask has no matching frame.
        """
        frames = frames_in(self.root / "frames" / name)
        given = masks_in(self.root / "masks" / name, frames)
        truth_folder = self.root / "truth" / name
        truth = masks_in(truth_folder, frames) if truth_folder.is_dir() else {}
        return clip_of_files(
            name,
            frames,
            given,
            truth,
            binary=None,
            max_side=self.max_side,
            frames_per_second=self.frames_per_second,
        )
