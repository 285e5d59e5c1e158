"""DAVIS-2016 (one object per sequence, 0/255 masks) and DAVIS-2017 (several objects, masks of object ids)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datamodules.base import ClipDataModule, clip_of_files, folder_names, frames_in, read_lines
from drift.clip import Clip
from drift.download import Archive
from drift.errors import InputError
from drift.submission import Submission

__all__ = ["Davis2016", "Davis2017"]

_SERVER = "https://data.vision.ee.ethz.ch/csergi/share/davis"


class Davis2017(ClipDataModule):
    """DAVIS-2017, semi-supervised: the mask of the first frame is given; the first and last frame are not scored.

    Expected layout: `ROOT/JPEGImages/480p/SEQUENCE/*.jpg`, `ROOT/Annotations/480p/SEQUENCE/*.png` and
    `ROOT/ImageSets/2017/SPLIT.txt`. The masks of the test splits are not public: for these, an archive for the
    evaluation server is written.

    Args:
        root: folder of the data set.
        split: `val`, `train`, `test-dev` or `test-challenge`.
        resolution: name of the folder in `JPEGImages` and `Annotations`.
        sequences, max_side, download: see `ClipDataModule`.
    """

    binary = False
    download_hint = "see davischallenge.org"

    def __init__(
        self,
        root: str | Path,
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
        """Names listed in `ImageSets/2017/SPLIT.txt`."""
        path = self.root / "ImageSets" / "2017" / f"{self.split_name}.txt"
        return folder_names(path, read_lines(path))

    def is_downloaded(self, root: Path) -> bool:
        """Whether `root` contains the split at this resolution."""
        listed = (root / "ImageSets" / "2017" / f"{self.split_name}.txt").is_file()
        return listed and (root / "JPEGImages" / self.resolution).is_dir()

    def archive(self) -> Archive | None:
        """Official archive of the split at this resolution."""
        split = self.split_name if self.split_name.startswith("test") else "trainval"
        resolution = self.resolution if self.resolution == "480p" else "Full-Resolution"
        return Archive(f"{_SERVER}/DAVIS-2017-{split}-{resolution}.zip", folder="DAVIS")

    def submission(self) -> Submission | None:
        """For the test splits: `SEQUENCE/FRAME.png`."""
        if not self.split_name.startswith("test"):
            return None
        frames = {
            name: [path.stem for path in frames_in(self.root / "JPEGImages" / self.resolution / name)]
            for name in self.sequences
        }
        return Submission(frames)

    def clip(self, name: str) -> Clip:
        """The clip of a sequence; it has no true masks if only the first frame is annotated (test splits).

        Raises:
            InputError: frames or masks are missing.
        """
        frames = frames_in(self.root / "JPEGImages" / self.resolution / name)
        annotations = self.root / "Annotations" / self.resolution / name
        masks = {index: annotations / f"{frame.stem}.png" for index, frame in enumerate(frames)}
        missing = [path for path in masks.values() if not path.is_file()]
        if masks[0] in missing:
            raise InputError(f"{masks[0]}: no such file; the first frame needs a mask")
        if missing and len(missing) < len(masks) - 1:
            raise InputError(f"{missing[0]}: no such file (missing masks of {name}: {len(missing)})")
        truth = {} if missing else masks
        return clip_of_files(name, frames, {0: masks[0]}, truth, binary=self.binary, max_side=self.max_side)


class Davis2016(Davis2017):
    """DAVIS-2016: one object per sequence, the non-zero pixels of a mask; lists in `ImageSets/480p/SPLIT.txt`."""

    binary = True

    def is_downloaded(self, root: Path) -> bool:
        """Whether `root` contains the list of the split."""
        return (root / "ImageSets" / self.resolution / f"{self.split_name}.txt").is_file()

    def archive(self) -> Archive | None:
        """Official archive of the whole data set."""
        return Archive("https://graphics.ethz.ch/Downloads/Data/Davis/DAVIS-data.zip", folder="DAVIS")

    def split(self) -> list[str]:
        """Sequences of `ImageSets/480p/SPLIT.txt`, whose lines are "FRAME_PATH MASK_PATH"."""
        path = self.root / "ImageSets" / self.resolution / f"{self.split_name}.txt"
        names = dict.fromkeys(Path(line.split()[0]).parent.name for line in read_lines(path))
        if "" in names:
            raise InputError(f"{path}: not a DAVIS-2016 list; each line must be FRAME_PATH MASK_PATH")
        return folder_names(path, names)
