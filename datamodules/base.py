"""The LightningDataModule that streams clips, and helpers to find a data set's frames and masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import lightning as L
from torch.utils.data import DataLoader, Dataset

from drift.clip import Clip, FrameFiles, MaskFiles
from drift.download import Archive, fetch_and_extract
from drift.errors import InputError, OptionError
from drift.frame_sources import frames_in
from drift.processes import longest_first
from drift.submission import Submission

__all__ = [
    "ClipDataModule",
    "FolderOfSplits",
    "clip_of_files",
    "folder_names",
    "folders_in",
    "frames_in",
    "masks_from_first",
    "masks_in",
    "read_lines",
]

_GOLDEN_RATIO = 0.6180339887


class _ClipDataset(Dataset[Clip | None]):
    def __init__(self, clips: Sequence[Clip | None]) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip | None:
        return self.clips[index]


class ClipDataModule(L.LightningDataModule, ABC):
    """Base class of all data sets: streams the clips of a split, one per batch.

    Subclasses implement `split` and `clip`.

    Args:
        root: folder of the data set.
        sequences: names of the sequences to use, in this order; None for the whole split.
        max_side: longer side, in pixels, to which frames are downscaled before they reach the model; None for full
            size. Predicted masks always have the size of the original frames.
        download: whether to download a missing data set into `root`, where its licence allows it.

    Attributes:
        scores_last_frame: whether the benchmark scores the last frame of a clip.
        turn: number of this run, from 0, among runs that share a feature cache. Each run starts with a different
            clip, so that concurrent runs fill the cache for each other.
        download_hint: how to get the data set manually, used in error messages.

    Raises:
        OptionError: `root` does not exist.
        InputError: the data set cannot be downloaded.
    """

    scores_last_frame = False
    turn = 0
    download_hint = "see the web page of the data set"

    def __init__(
        self,
        root: str | Path,
        *,
        sequences: Sequence[str] | None = None,
        max_side: int | None = None,
        download: bool = False,
    ) -> None:
        super().__init__()
        self.max_side = max_side
        self.root = Path(root).expanduser()
        if download and not self.is_downloaded(self.root):
            self._download()
        if not self.root.is_dir():
            raise OptionError("root", root, "a folder that exists")
        self._selected = None if sequences is None else [str(name) for name in sequences]
        self._clips: list[Clip] | None = None

    @abstractmethod
    def split(self) -> list[str]:
        """Names of all sequences of the split."""

    @abstractmethod
    def clip(self, name: str) -> Clip:
        """The clip of a sequence; frames and masks are not decoded yet."""

    def is_downloaded(self, root: Path) -> bool:
        """Whether `root` contains the data set."""
        return (root / "JPEGImages").is_dir()

    def archive(self) -> Archive | None:
        """Archive to download, or None if the data set requires an account or a form."""
        return None

    def submission(self) -> Submission | None:
        """Format of the archive for the evaluation server, or None if masks are scored locally."""
        return None

    @property
    def sequences(self) -> list[str]:
        """Names of the clips, in the order of the results."""
        names = self.split()
        if self._selected is None:
            return names
        for name in self._selected:
            if name not in names:
                raise OptionError("sequences", name, "one of " + ", ".join(names))
        return self._selected

    def setup(self, stage: str | None = None) -> None:
        """Locates the files of all clips, so that missing files are reported before the first clip is processed."""
        if self._clips is None:
            self._clips = [self.clip(name) for name in self.sequences]

    def clips_of(self, rank: int, world_size: int) -> list[Clip | None]:
        """The clips that one of several processes works on.

        Clips are assigned by `drift.processes.longest_first`, so that all processes get a similar number of frames.
        A single process gets all clips, starting at a clip that depends on `turn`.

        Args:
            rank: of the process, in [0, world_size).
            world_size: number of processes.

        Returns:
            The clips of the process; `[None]` if there are fewer clips than processes, because a process without a
            clip still takes part in collective operations.
        """
        self.setup()
        assert self._clips is not None
        if world_size > 1:
            assignment = longest_first([len(clip) for clip in self._clips], world_size)
            return [self._clips[index] for index in assignment[rank]] or [None]
        # Multiples of the golden ratio, modulo 1, are evenly spread for any number of runs.
        first = int(len(self._clips) * (self.turn * _GOLDEN_RATIO % 1))
        return [*self._clips[first:], *self._clips[:first]]

    def predict_dataloader(self) -> DataLoader:
        """The clips of this process, one per batch, not collated; see `clips_of`."""
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        return DataLoader(_ClipDataset(self.clips_of(rank, world_size)), batch_size=None, shuffle=False)

    def _download(self) -> None:
        archive = self.archive()
        if archive is None:
            raise InputError(
                f"data.download=true: this data set cannot be downloaded automatically; {self.download_hint}"
            )
        fetch_and_extract(archive, self.root)


class FolderOfSplits(ClipDataModule):
    """Base class of data sets with one folder per split, such as YouTube-VOS.

    Args:
        root: folder that contains the folder of the split, or that folder itself.
        split: name of the split and its folder.
        sequences, max_side, download: see `ClipDataModule`.

    Attributes:
        folder: folder of the split.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        split: str = "valid",
        sequences: Sequence[str] | None = None,
        max_side: int | None = None,
        download: bool = False,
    ) -> None:
        self.split_name = split
        super().__init__(root, sequences=sequences, max_side=max_side, download=download)
        folder = self.root / split
        self.folder = folder if folder.is_dir() else self.root

    def is_downloaded(self, root: Path) -> bool:
        """Whether `root` contains the split, or is its folder."""
        return super().is_downloaded(root) or super().is_downloaded(root / self.split_name)


def read_lines(path: Path) -> list[str]:
    """Non-empty lines of a list of sequences.

    Raises:
        InputError: the list is missing, empty, or not in UTF-8.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such list of sequences; set data.root to the folder of the data set")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error}); save it as UTF-8") from None
    if not lines:
        raise InputError(f"{path}: the list of sequences is empty")
    return lines


def folder_names(path: Path, names: Iterable[str]) -> list[str]:
    """The names of sequences in a list, each of which is that of one folder below those of the data set.

    Args:
        path: the list, for error messages.
        names: the names.

    Raises:
        InputError: a name is a path, which could lead out of the data set and out of `output.dir`.
    """
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise InputError(
                f"{path}: sequence {name!r} is not the name of a folder; list names without a path"
            )
    return list(names)


def folders_in(folder: Path) -> list[str]:
    """Names of all subfolders, sorted: the split of a data set without a list of sequences.

    Raises:
        InputError: the folder is missing or has no subfolder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; set data.root to the folder of the data set")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if not names:
        raise InputError(f"{folder}: contains no sequence; expected one folder per sequence")
    return names


def masks_in(folder: Path, frames: Sequence[Path]) -> dict[int, Path]:
    """Mask files of a sequence by frame index; a mask has the name of its frame.

    Raises:
        InputError: the folder is missing or empty, or a mask has no matching frame.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of masks")
    indices = {frame.stem: index for index, frame in enumerate(frames)}
    masks = sorted(path for path in folder.iterdir() if path.suffix == ".png" and path.name[0] != ".")
    if not masks:
        raise InputError(f"{folder}: contains no .png mask")
    for path in masks:
        if path.stem not in indices:
            raise InputError(
                f"{path}: no frame of this name in {frames[0].parent}; rename or remove the mask"
            )
    return {indices[path.stem]: path for path in masks}


def masks_from_first(folder: Path, frames: Sequence[Path]) -> dict[int, Path]:
    """Same as `masks_in`, for data sets that annotate the first frame of every sequence.

    Raises:
        InputError: the first frame has no mask; or see `masks_in`.
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
    binary: bool | None = False,
    objects: Mapping[int, Collection[int]] | None = None,
    max_side: int | None = None,
    frames_per_second: float = 24.0,
) -> Clip:
    """A clip whose frames and masks are image files.

    Args:
        name: of the sequence.
        frames: image files in temporal order.
        given: mask files for the tracker, by frame index.
        truth: mask files to score against, by frame index.
        binary: how mask files are read, see `read_mask`.
        objects: see `MaskFiles`; applies to `given`.
        max_side, frames_per_second: see `Clip`.
    """
    return Clip(
        name=name,
        frames=FrameFiles(frames),
        frame_names=[path.stem for path in frames],
        given=MaskFiles(given, binary=binary, objects=objects),
        truth=MaskFiles(truth, binary=binary),
        frames_per_second=frames_per_second,
        max_side=max_side,
    )
