"""The LightningDataModule that streams clips; a data set says which there are and where their files lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import lightning as L
from torch.utils.data import DataLoader, Dataset

from drift.clip import Clip, FrameFiles, MaskFiles
from drift.download import Archive, fetch_and_extract
from drift.errors import InputError, OptionError
from drift.options import choice, whole_number
from drift.submission import Submission

__all__ = ["ClipDataModule", "clip_of_files", "folders_in", "frames_in", "masks_in", "read_lines"]


class _Clips(Dataset[Clip]):
    def __init__(self, clips: Sequence[Clip]) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
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

    Raises:
        OptionError: `root` is missing, or an option is not allowed.
        InputError: the data set cannot be fetched.
    """

    scores_last_frame = False
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
        """One clip at a time, as it is."""
        self.setup()
        assert self._clips is not None
        return DataLoader(_Clips(self._clips), batch_size=None, shuffle=False)

    def _fetch(self) -> None:
        archive = self.archive()
        if archive is None:
            raise InputError(
                f"data.download=true: this data set cannot be fetched by a program; {self.by_hand}"
            )
        fetch_and_extract(archive, self.root)


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
    """The pictures of a sequence in the order of their names.

    Raises:
        InputError: the folder is missing or holds no picture.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of frames")
    frames = sorted(
        p for p in folder.iterdir() if p.suffix.lower() in {".jpg", ".jpeg", ".png"} and p.name[0] != "."
    )
    if not frames:
        raise InputError(f"{folder}: the clip is empty, it holds no .jpg or .png frame")
    return frames


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
