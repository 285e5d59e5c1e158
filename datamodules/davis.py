"""DAVIS-2016 (one object, masks of 0 and 255) and DAVIS-2017 (several, masks of object ids)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datamodules.base import ClipDataModule, frames_in, read_lines
from drift.clip import Clip, FrameFiles, MaskFiles
from drift.download import Archive
from drift.errors import InputError
from drift.submission import Submission

__all__ = ["Davis2016", "Davis2017"]

_SERVER = "https://data.vision.ee.ethz.ch/csergi/share/davis"


class Davis2017(ClipDataModule):
    """DAVIS-2017's semi-supervised task: the first frame's mask is given, all are scored but first and last.

    Layout below `root`: `JPEGImages/480p/SEQUENCE/*.jpg`, `Annotations/480p/SEQUENCE/*.png`,
    `ImageSets/2017/SPLIT.txt`. Of `test-dev`, whose masks are kept by its server, an archive for that server is made.

    Args:
        root: the folder of that layout.
        split: `val`, `train`, `test-dev`, `test-challenge`: the list to read.
        sequences: names to take instead of the whole split.
        resolution: the folder below `JPEGImages` and `Annotations`.
        max_side, download: see `ClipDataModule`.
    """

    binary = False
    by_hand = "see davischallenge.org"

    def __init__(
        self,
        root: str | Path | None,
        *,
        split: str = "val",
        sequences: Sequence[str] | None = None,
        resolution: str = "480p",
        max_side: int | None = None,
        download: bool = False,
    ) -> None:
        self.split_name, self.resolution = split, resolution
        super().__init__(root, sequences=sequences, max_side=max_side, download=download)

    def split(self) -> list[str]:
        """The sequences of the split's list."""
        return read_lines(self.root / "ImageSets" / "2017" / f"{self.split_name}.txt")

    def is_there(self, root: Path) -> bool:
        """Whether the split is, at this resolution: others may lie beside it."""
        listed = (root / "ImageSets" / "2017" / f"{self.split_name}.txt").is_file()
        return listed and (root / "JPEGImages" / self.resolution).is_dir()

    def archive(self) -> Archive | None:
        """The archive of the split at this resolution, as the authors serve it."""
        part = self.split_name if self.split_name.startswith("test") else "trainval"
        resolution = self.resolution if self.resolution == "480p" else "Full-Resolution"
        return Archive(f"{_SERVER}/DAVIS-2017-{part}-{resolution}.zip", folder="DAVIS")

    def submission(self) -> Submission | None:
        """Of the test splits: each sequence's folder at the archive's root."""
        if not self.split_name.startswith("test"):
            return None
        frames = {
            name: [path.stem for path in frames_in(self.root / "JPEGImages" / self.resolution / name)]
            for name in self.sequences
        }
        return Submission(frames)

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
            max_side=self.max_side,
        )


class Davis2016(Davis2017):
    """DAVIS-2016: one object a sequence, every non-zero pixel is it; lists in `ImageSets/480p`."""

    binary = True

    def is_there(self, root: Path) -> bool:
        """See `ClipDataModule.is_there`."""
        return (root / "ImageSets" / self.resolution / f"{self.split_name}.txt").is_file()

    def archive(self) -> Archive | None:
        """All of DAVIS-2016, as the authors serve it."""
        return Archive("https://graphics.ethz.ch/Downloads/Data/Davis/DAVIS-data.zip", folder="DAVIS")

    def split(self) -> list[str]:
        """The sequences of the split's list, whose lines name a frame and its mask each."""
        path = self.root / "ImageSets" / self.resolution / f"{self.split_name}.txt"
        names = dict.fromkeys(Path(line.split()[0]).parent.name for line in read_lines(path))
        if "" in names:
            raise InputError(f"{path}: each line must name a frame and its mask, as DAVIS-2016's lists do")
        return list(names)
