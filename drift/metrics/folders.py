"""Scores of masks in folders, whatever method wrote them.

Both folders hold one sub-folder per sequence, and that one indexed PNG per frame: `bear/00000.png`.
Whatever is missing or does not fit is an error that names the file, never a score.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from drift.errors import InputError, OptionError
from drift.image_files import read_mask
from drift.metrics.davis import DavisScore, DavisScores, scored_frames

__all__ = ["score_folders"]


def score_folders(
    predictions: Path, annotations: Path, sequences: Sequence[str] | None = None, binary: bool = False
) -> DavisScores:
    """Scores predicted masks against annotated ones, as DAVIS does.

    The objects are those of a sequence's first annotation; ids that appear only later in the annotations
    count as background, as in the official code. Predictions are read for the frames that are scored,
    which leaves out each sequence's first and last; sequences too short to have any are listed as unscored.

    Args:
        predictions: the folder of predictions, with at least a file for each frame that is scored.
        annotations: the folder of annotations; its files say which frames a sequence has.
        sequences: names of the sequences to score; None for all that are annotated.
        binary: whether every non-zero pixel, in both folders, is the one object (DAVIS-2016).

    Raises:
        InputError: a folder, a file or an object is missing, a mask is of the wrong size or cannot be
            read, a prediction holds an object that is not annotated, or there is no frame to score.
        OptionError: `sequences` is empty or names a sequence twice.
    """
    names = _sequence_names(annotations, sequences)
    score = DavisScore(names)
    lengths = [_score_sequence(score, predictions / name, annotations / name, binary) for name in names]
    if not any(scored_frames(length) for length in lengths):
        raise InputError(
            f"{annotations}: nothing to score; it takes 3 frames, as the first and last do not count"
        )
    return score.compute()


def _sequence_names(annotations: Path, sequences: Sequence[str] | None) -> list[str]:
    if sequences is not None:
        if not sequences:
            raise OptionError("sequences", list(sequences), "at least one name")
        return list(sequences)
    _check_folder(annotations)
    names = sorted(path.name for path in annotations.iterdir() if path.is_dir() and path.name[0] != ".")
    if not names:
        raise InputError(f"{annotations}: holds no folder of a sequence")
    return names


def _score_sequence(score: DavisScore, predictions: Path, annotations: Path, binary: bool) -> int:
    """Scores one sequence; returns its number of frames."""
    _check_folder(annotations)
    _check_folder(predictions)
    files = sorted(path for path in annotations.glob("*.png") if path.name[0] != ".")
    if not files:
        raise InputError(f"{annotations}: holds no PNG; give the folder whose sub-folders hold the masks")
    objects = _object_ids(files[0], binary)
    seen: set[int] = set()
    for frame in scored_frames(len(files)):
        truth = read_mask(files[frame], binary=binary)
        prediction = _read_prediction(predictions / files[frame].name, files[frame], truth.shape, binary)
        seen |= _check_objects(predictions / files[frame].name, prediction, objects)
        score.update(
            torch.from_numpy(prediction),
            torch.from_numpy(truth),
            sequence=annotations.name,
            frame=frame,
            frames=len(files),
            objects=objects,
        )
    if scored_frames(len(files)):
        _check_none_missing(set(objects) - seen, predictions, [files[0], files[-1]], binary)
    return len(files)


def _object_ids(path: Path, binary: bool) -> list[int]:
    """The objects of a sequence's first annotation."""
    objects = _ids(read_mask(path, binary=binary))
    if not objects:
        hint = (
            "" if binary else ", though it may be a mask of foreground in 0 and 255; then score with --binary"
        )
        raise InputError(f"{path}: the first annotation holds no object{hint}")
    return sorted(objects)


def _read_prediction(path: Path, annotation: Path, size: tuple[int, ...], binary: bool) -> np.ndarray:
    prediction = read_mask(path, binary=binary)
    if prediction.shape != size:
        raise InputError(
            f"{path}: the mask is {prediction.shape[1]} x {prediction.shape[0]}, "
            f"but {annotation} is {size[1]} x {size[0]}; they must be equal"
        )
    return prediction


def _check_objects(path: Path, prediction: np.ndarray, objects: list[int]) -> set[int]:
    """The objects of a prediction, all of which must be annotated."""
    present = _ids(prediction)
    unknown = sorted(present - set(objects))
    if unknown:
        raise InputError(
            f"{path}: holds object {_listed(unknown)}, but annotated is only {_listed(objects)}; "
            "to score all non-zero pixels as one foreground, use --binary"
        )
    return present


def _check_none_missing(missing: set[int], predictions: Path, unscored: list[Path], binary: bool) -> None:
    """Raises where objects are in no prediction at all: one that was lost would still be where it is given.

    Args:
        missing: the objects that no prediction of a scored frame holds.
        predictions: the sequence's folder.
        unscored: the frames that need not have a prediction, by their annotations.
        binary: as for `score_folders`.
    """
    for path in (predictions / file.name for file in unscored):
        if missing and path.is_file():
            missing = missing - _ids(read_mask(path, binary=binary))
    if missing:
        raise InputError(
            f"{predictions}: none of its masks holds object {_listed(sorted(missing))} of {unscored[0]}; "
            "number the objects as there (if they were lost at once, write the first frame's mask, too)"
        )


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")


def _ids(mask: np.ndarray) -> set[int]:
    # Several times faster than `np.unique`, which sorts.
    return set(np.flatnonzero(np.bincount(mask.ravel())).tolist()) - {0}


def _listed(objects: list[int]) -> str:
    return ", ".join(str(one) for one in objects)
