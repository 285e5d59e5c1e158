"""DAVIS-2016 (one object, masks of 0 and 255) and DAVIS-2017 (several, masks of object ids)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datamodules.base import ClipDataModule, frames_in, read_lines
from drift.clip import Clip, FrameFiles, MaskFiles
from drift.errors import InputError

__all__ = ["Davis2016", "Davis2017"]


class Davis2017(ClipDataModule):
    """DAVIS-2017's semi-supervised task: the first frame's mask is given, all are scored but first and last.

    Layout below `root`: `JPEGImages/480p/SEQUENCE/*.jpg`, `Annotations/480p/SEQUENCE/*.png`,
    `ImageSets/2017/SPLIT.txt`.

    Args:
        root: the folder of that layout.
        split: `val`, `train`, `test-dev`: the list to read.
        sequences: names to take instead of the whole split.
        resolution: the folder below `JPEGImages` and `Annotations`.
    """

    binary = False

    def __init__(
        self,
        root: str | Path | None,
        *,
        split: str = "val",
        sequences: Sequence[str] | None = None,
        resolution: str = "480p",
    ) -> None:
        super().__init__(root, sequences=sequences)
        self.split_name, self.resolution = split, resolution

    def split(self) -> list[str]:
        """The sequences of the split's list."""
        return read_lines(self.root / "ImageSets" / "2017" / f"{self.split_name}.txt")

    def clip(self, name: str) -> Clip:
        """A sequence. Where only the first mask is there (test sets), nothing is scored.

        Raises:
            InputError: frames or masks are missing; names them.
        """
        frames = frames_in(self.root / "JPEGImages" / self.resolution / name)
        masks = {
            i: self.root / "Annotations" / self.resolution / name / f"{f.stem}.png"
            for i, f in enumerate(frames)
        }
        missing = [path for path in masks.values() if not path.is_file()]
        if masks[0] in missing:
            raise InputError(f"{masks[0]}: no such file; the first frame needs a mask")
        if missing and len(missing) < len(masks) - 1:
            raise InputError(f"{missing[0]}: no such file ({len(missing)} masks of {name} are missing)")
        return Clip(
            name=name,
            frames=FrameFiles(frames),
            frame_names=[path.stem for path in frames],
            given=MaskFiles({0: masks[0]}, binary=self.binary),
            truth=MaskFiles({} if missing else masks, binary=self.binary),
        )


class Davis2016(Davis2017):
    """DAVIS-2016: one object a sequence, every non-zero pixel is it; lists in `ImageSets/480p`."""

    binary = True

    def split(self) -> list[str]:
        """The sequences of the split's list, whose lines name a frame and its mask each."""
        path = self.root / "ImageSets" / self.resolution / f"{self.split_name}.txt"
        names = dict.fromkeys(Path(line.split()[0]).parent.name for line in read_lines(path))
        if "" in names:
            raise InputError(f"{path}: each line must name a frame and its mask, as DAVIS-2016's lists do")
        return list(names)
