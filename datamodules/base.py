"""The LightningDataModule that streams clips; a data set says which there are and where their files lie."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import lightning as L
from torch.utils.data import DataLoader, Dataset

from drift.clip import Clip, FrameFiles, MaskFiles
from drift.download import Archive, fetch_and_extract
from drift.errors import InputError, OptionError
from drift.options import choice, whole_number
from drift.processes import longest_first
from drift.submission import Submission

__all__ = [
    "ClipDataModule",
    "FolderOfSplits",
    "clip_of_files",
    "folders_in",
    "frames_in",
    "masks_from_first",
    "masks_in",
    "read_lines",
]

_GOLDEN = 0.6180339887


class _Clips(Dataset[Clip | None]):
    def __init__(self, clips: Sequence[Clip | None]) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip | None:
        return self.clips[index]


class ClipDataModule(L.LightningDataModule, ABC):
    """Clips of a data set in its own layout.

    Args:
        root: the data set's folder.
        sequences: names of the sequences to take, in this order; None for the whole split.
        max_side: to which longer side frames are reduced for the model, in pixels; masks come out at the frames' size.
        download: whether a data set that is not there is fetched into `root`, where its authors let anyone do so.

    Attributes:
        scores_last_frame: whether a clip's last frame is scored.
        turn: which one this is of several runs that share a cache, from 0: they begin with clips that lie far apart, so
            that those that run at once fill it for each other.

    Raises:
        OptionError: `root` is missing, or an option is not allowed.
        InputError: the data set cannot be fetched.
    """

    scores_last_frame = False
    turn = 0
    by_hand = "see the data set's own page"
    """Where the data set is to be had, in words."""

    def __init__(
        self,
        root: str | Path | None,
        *,
        sequences: Sequence[str] | None = None,
        max_side: int | None = None,
        download: bool = False,
    ) -> None:
        super().__init__()
        if root is None:
            raise OptionError("root", "null", "the data set's folder: data.root=FOLDER")
        is_list = sequences is None or (sequences and not isinstance(sequences, str))
        if not is_list or (sequences and len(set(sequences)) < len(sequences)):
            raise OptionError(
                "sequences", sequences, "a list of names, [a,b], each once, or null for the whole split"
            )
        whole_number("max_side", max_side, minimum=16, none_allowed=True)
        choice("download", download, (True, False))
        self.max_side = max_side
        self.root = Path(root).expanduser()
        if download and not self.is_there(self.root):
            self._fetch()
        if not self.root.is_dir():
            raise OptionError("root", root, "a folder that exists")
        self._chosen = None if sequences is None else [str(name) for name in sequences]
        self._clips: list[Clip] | None = None

    @abstractmethod
    def split(self) -> list[str]:
        """The names of all sequences of the split."""

    @abstractmethod
    def clip(self, name: str) -> Clip:
        """One sequence; nothing is decoded yet."""

    def is_there(self, root: Path) -> bool:
        """Whether the data set lies in a folder, as far as its own folders tell."""
        return (root / "JPEGImages").is_dir()

    def archive(self) -> Archive | None:
        """What to fetch where the data set is missing; None where its authors ask for an account or a form."""
        return None

    def submission(self) -> Submission | None:
        """What the data set's server takes; None where the scores are made here."""
        return None

    @property
    def sequences(self) -> list[str]:
        """The names of the clips that are streamed."""
        if self._chosen is None:
            return self.split()
        known = self.split()
        for name in self._chosen:
            if name not in known:
                raise OptionError("sequences", name, "among " + ", ".join(known))
        return self._chosen

    def setup(self, stage: str | None = None) -> None:
        """Finds the files of all clips, so that what is missing is told before the work begins."""
        if self._clips is None:
            self._clips = [self.clip(name) for name in self.sequences]

    def predict_dataloader(self) -> DataLoader:
        """One clip at a time, as it is; of several processes, those that are this one's.

        A process without a clip of its own gets None, once: it too has to take part in what all do together.
        """
        self.setup()
        assert self._clips is not None
        first = int(
            len(self._clips) * (self.turn * _GOLDEN % 1)
        )  # whatever their number, runs are well apart
        clips: list[Clip | None] = [*self._clips[first:], *self._clips[:first]]
        if self.trainer is not None and self.trainer.world_size > 1:
            dealt = longest_first([len(clip) for clip in self._clips], self.trainer.world_size)
            clips = [self._clips[place] for place in dealt[self.trainer.global_rank]] or [None]
        return DataLoader(_Clips(clips), batch_size=None, shuffle=False)

    def _fetch(self) -> None:
        archive = self.archive()
        if archive is None:
            raise InputError(
                f"data.download=true: this data set cannot be fetched by a program; {self.by_hand}"
            )
        fetch_and_extract(archive, self.root)


class FolderOfSplits(ClipDataModule):
    """A data set whose splits are folders below its root, as YouTube-VOS has them; each is there or is not.

    Args:
        root: the folder with the splits' folders, or the folder of the split itself.
        split: the folder below `root`.
        sequences, max_side, download: see `ClipDataModule`.

    Attributes:
        folder: of the split.
    """

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

    def is_there(self, root: Path) -> bool:
        """Whether the split is."""
        return super().is_there(root) or super().is_there(root / self.split_name)


def read_lines(path: Path) -> list[str]:
    """The lines of a list of sequences, without blank ones.

    Raises:
        InputError: the list is missing or empty.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such list of sequences; is data.root the data set's own folder?")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{path}: the list of sequences is empty")
    return lines


def folders_in(folder: Path) -> list[str]:
    """The names of a folder's folders: the split of a data set that has no list.

    Raises:
        InputError: there is none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; is data.root the data set's own folder?")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if not names:
        raise InputError(f"{folder}: holds no sequence")
    return names


def frames_in(folder: Path) -> list[Path]:
    """The pictures of a sequence in the order of their names and of the numbers in them.

    Raises:
        InputError: the folder is missing, holds no picture, or two of one name.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of frames")
    frames = sorted(
        (p for p in folder.iterdir() if p.suffix.lower() in {".jpg", ".jpeg", ".png"} and p.name[0] != "."),
        key=_in_order,
    )
    if not frames:
        raise InputError(f"{folder}: the clip is empty, it holds no .jpg or .png frame")
    if twice := [one for one, other in pairwise(frames) if one.stem == other.stem]:
        raise InputError(
            f"{twice[0]}: there are two pictures of this name; masks go into a folder of their own"
        )
    return frames


def _in_order(path: Path) -> tuple[list[tuple[int, str]], str]:
    """The numbers in a name as numbers: 2 comes before 10."""
    parts = re.split(r"(\d+)", path.stem)
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts], path.name


def masks_in(folder: Path, frames: Sequence[Path]) -> dict[int, Path]:
    """The masks of a sequence by the index of the frame whose name they bear.

    Raises:
        InputError: the folder is missing or empty, or a mask bears no frame's name.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of masks")
    places = {frame.stem: index for index, frame in enumerate(frames)}
    found = sorted(path for path in folder.iterdir() if path.suffix == ".png" and path.name[0] != ".")
    if not found:
        raise InputError(f"{folder}: holds no .png mask")
    for path in found:
        if path.stem not in places:
            raise InputError(f"{path}: there is no frame of this name in {frames[0].parent}")
    return {places[path.stem]: path for path in found}


def masks_from_first(folder: Path, frames: Sequence[Path]) -> dict[int, Path]:
    """Likewise, of a sequence whose first frame must have a mask.

    Raises:
        InputError: it has none, or see `masks_in`.
    """
    masks = masks_in(folder, frames)
    if 0 not in masks:
        raise InputError(f"{folder / frames[0].stem}.png: no such file; the first frame needs a mask")
    return masks


def clip_of_files(
    name: str,
    frames: Sequence[Path],
    given: Mapping[int, Path],
    truth: Mapping[int, Path],
    *,
    objects: Mapping[int, Collection[int]] | None = None,
    max_side: int | None = None,
    frames_per_second: float = 24.0,
) -> Clip:
    """A clip of pictures and indexed masks in files; `objects` as for `MaskFiles`, of the given masks."""
    return Clip(
        name=name,
        frames=FrameFiles(frames),
        frame_names=[path.stem for path in frames],
        given=MaskFiles(given, objects=objects),
        truth=MaskFiles(truth),
        frames_per_second=frames_per_second,
        max_side=max_side,
    )
