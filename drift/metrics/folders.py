"""DAVIS scores of masks in folders, written by any method.

Both folders contain one sub-folder per sequence with one indexed PNG per frame, e.g. `bear/00000.png`.
A missing or mismatched file is an error that names the file, not a score of 0.
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
    """Scores predicted masks against annotations by the DAVIS protocol.

    The objects of a sequence are those in its first annotation; ids that appear only in later annotations
    count as background, as in the official code. The first and the last frame of each sequence are not
    scored and need no prediction. Sequences of one or two frames are returned as unscored.

    Args:
        predictions: folder of predictions, with a file for every scored frame.
        annotations: folder of annotations; its files define the frames of each sequence.
        sequences: names of the sequences to score; None for all sequences in `annotations`.
        binary: treat all non-zero pixels of both masks as a single object (DAVIS-2016).

    Raises:
        InputError: a folder, file or object is missing, a mask has the wrong size or cannot be read, a
            prediction contains an object that is not annotated, or no frame can be scored.
        OptionError: `sequences` is empty or contains duplicates.
    """
    names = _sequence_names(annotations, sequences)
    score = DavisScore(names)
    lengths = [_score_sequence(score, predictions / name, annotations / name, binary) for name in names]
    if not any(scored_frames(length) for length in lengths):
        raise InputError(
            f"{annotations}: nothing to score; a sequence needs at least 3 frames, its first and last are not scored"
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
        raise InputError(f"{annotations}: no sequence folders found")
    return names


def _score_sequence(score: DavisScore, predictions: Path, annotations: Path, binary: bool) -> int:
    """Scores one sequence; returns its number of frames."""
    _check_folder(annotations)
    _check_folder(predictions)
    files = sorted(path for path in annotations.glob("*.png") if path.name[0] != ".")
    if not files:
        raise InputError(
            f"{annotations}: no PNG files found; pass the folder that contains the sequence folders"
        )
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
    """Ids of the objects in a sequence's first annotation."""
    objects = _ids(read_mask(path, binary=binary))
    if not objects:
        hint = "" if binary else "; if foreground is stored as 255, use --binary"
        raise InputError(f"{path}: the first annotation contains no object{hint}")
    return sorted(objects)


def _read_prediction(path: Path, annotation: Path, size: tuple[int, ...], binary: bool) -> np.ndarray:
    prediction = read_mask(path, binary=binary)
    if prediction.shape != size:
        raise InputError(
            f"{path}: the mask is {prediction.shape[1]} x {prediction.shape[0]}, "
            f"but {annotation} is {size[1]} x {size[0]}; sizes must match"
        )
    return prediction


def _check_objects(path: Path, prediction: np.ndarray, objects: list[int]) -> set[int]:
    """Returns the object ids of a prediction and checks that all of them are annotated."""
    present = _ids(prediction)
    if unknown := sorted(present - set(objects)):
        raise InputError(
            f"{path}: contains object {_listed(unknown)}, but the annotated objects are {_listed(objects)}; "
            "to score all non-zero pixels as a single object, use --binary"
        )
    return present


def _check_none_missing(missing: set[int], predictions: Path, unscored: list[Path], binary: bool) -> None:
    """Raises if an object is in no prediction at all, which indicates different numbering.

    A tracker that loses an object immediately still has it in the prediction of the first frame.

    Args:
        missing: objects without a pixel in the predictions of all scored frames.
        predictions: prediction folder of the sequence.
        unscored: annotations of the frames for which predictions are optional.
        binary: see `score_folders`.
    """
    for path in (predictions / file.name for file in unscored):
        if missing and path.is_file():
            missing = missing - _ids(read_mask(path, binary=binary))
    if missing:
        raise InputError(
            f"{predictions}: no mask contains object {_listed(sorted(missing))} of {unscored[0]}; use the same "
            "object ids as the annotations (if the object was lost immediately, also save the first frame's mask)"
        )


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise InputError(f"{path}: no such folder")


def _ids(mask: np.ndarray) -> set[int]:
    # Several times faster than `np.unique`, which sorts the pixels.
    return set(np.flatnonzero(np.bincount(mask.ravel())).tolist()) - {0}


def _listed(objects: list[int]) -> str:
    return ", ".join(map(str, objects))
