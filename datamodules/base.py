"""The LightningDataModule that streams clips; a data set says which there are and where their files lie."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import lightning as L
from torch.utils.data import DataLoader, Dataset

from drift.clip import Clip
from drift.errors import InputError, OptionError

__all__ = ["ClipDataModule", "frames_in", "read_lines"]


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

    Raises:
        OptionError: `root` is missing, or `sequences` is no list of names.
    """

    def __init__(self, root: str | Path | None, *, sequences: Sequence[str] | None = None) -> None:
        super().__init__()
        if root is None:
            raise OptionError("root", "null", "the data set's folder: data.root=FOLDER")
        is_list = sequences is None or (sequences and not isinstance(sequences, str))
        if not is_list or (sequences and len(set(sequences)) < len(sequences)):
            raise OptionError(
                "sequences", sequences, "a list of names, [a,b], each once, or null for the whole split"
            )
        self.root = Path(root).expanduser()
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
