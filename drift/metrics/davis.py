"""`DavisScore`: a `torchmetrics.Metric` that scores a data set frame by frame and merges across processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from drift.errors import InputError, OptionError
from drift.metrics.functional import (
    Statistics,
    boundary_counts,
    boundary_f_of_counts,
    jaccard_of_counts,
    region_counts,
    statistics,
)
from drift.options import non_negative

__all__ = ["DavisScore", "DavisScores", "FrameScore", "ObjectScore", "SequenceScore", "scored_frames"]

_KEYS = 3  # leading columns of a row: sequence, object, frame
_COLUMNS = _KEYS + 2 + 4  # followed by the pixel counts of J and F


def scored_frames(frames: int, *, last_frame: bool = False) -> range:
    """Indices of the scored frames of a clip: all but the first, whose mask is given, and the last (DAVIS).

    Args:
        frames: number of frames in the clip. By the DAVIS rule, clips of one or two frames are not scored.
        last_frame: also score the last frame, as in the Long Videos benchmark.
    """
    return range(1, frames if last_frame else frames - 1)


class FrameScore(NamedTuple):
    """J and F of one object in one frame, in [0, 1]."""

    object_id: int
    frame: int
    jaccard: float
    boundary: float


@dataclass(frozen=True)
class ObjectScore:
    """Scores of one object in one sequence.

    Attributes:
        sequence: name of the sequence.
        object_id: id of the object in the masks.
        frames: number of scored frames.
        jaccard: statistics of J (region similarity).
        boundary: statistics of F (boundary accuracy).
    """

    sequence: str
    object_id: int
    frames: int
    jaccard: Statistics
    boundary: Statistics

    @property
    def j_and_f(self) -> float:
        """The mean of J's and F's means."""
        return (self.jaccard.mean + self.boundary.mean) / 2


class _MeanOverObjects:
    """Unweighted means over `objects`; NaN if there are none."""

    __slots__ = ()
    objects: Any  # overridden with the `ObjectScore`s by each subclass

    @property
    def jaccard(self) -> Statistics:
        """Mean, recall and decay of J, averaged over objects."""
        return _mean([score.jaccard for score in self.objects])

    @property
    def boundary(self) -> Statistics:
        """Mean, recall and decay of F, averaged over objects."""
        return _mean([score.boundary for score in self.objects])

    @property
    def j_and_f(self) -> float:
        """The mean of J's and F's means."""
        return (self.jaccard.mean + self.boundary.mean) / 2


@dataclass(frozen=True)
class SequenceScore(_MeanOverObjects):
    """Scores of one sequence: unweighted means over its objects.

    Attributes:
        sequence: name of the sequence.
        objects: scores of its objects, sorted by id; at least one.
    """

    sequence: str
    objects: tuple[ObjectScore, ...]


class DavisScores(_MeanOverObjects):
    """Scores of a data set: unweighted means over all objects of all sequences, as in DAVIS.

    The means are NaN if nothing was scored. Immutable, but not a dataclass: torchmetrics recurses into
    dataclasses returned by `compute` and fails on frozen ones.

    Args:
        sequences: sequences with at least one scored frame.
        unscored: names of the sequences without a scored frame; they are excluded from all means.
    """

    __slots__ = ("_sequences", "_unscored")

    def __init__(self, sequences: Sequence[SequenceScore], unscored: Sequence[str] = ()) -> None:
        self._sequences = tuple(sequences)
        self._unscored = tuple(unscored)

    @property
    def sequences(self) -> tuple[SequenceScore, ...]:
        """Scores per sequence, in the order given to `DavisScore`."""
        return self._sequences

    @property
    def unscored(self) -> tuple[str, ...]:
        """Names of the sequences without a scored frame."""
        return self._unscored

    @property
    def objects(self) -> tuple[ObjectScore, ...]:
        """Scores of the objects of all sequences."""
        return tuple(score for sequence in self._sequences for score in sequence.objects)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DavisScores):
            return NotImplemented
        return (self._sequences, self._unscored) == (other._sequences, other._unscored)

    def __hash__(self) -> int:
        return hash((self._sequences, self._unscored))

    def __repr__(self) -> str:
        return f"DavisScores(sequences={self._sequences!r}, unscored={self._unscored!r})"


class DavisScore(Metric):
    """J, F and J&F of the DAVIS semi-supervised task over the objects of many sequences.

    Each update scores one frame and stores nine integers per object, so the result does not depend on the
    order of the frames or their distribution over processes. A frame that is scored several times (distributed
    samplers repeat clips to even out the processes) counts once, with its mean score.

    Args:
        sequences: names of all sequences, in the same order in every process.
        tolerance: boundary tolerance, see `functional.boundary_f`.
        last_frame: also score the last frame of each clip, which DAVIS excludes.
        **options: keyword arguments of `torchmetrics.Metric`.

    Raises:
        OptionError: `sequences` contains duplicates, or the tolerance is negative.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    rows: list[Tensor] | Tensor

    def __init__(
        self,
        sequences: Sequence[str],
        *,
        tolerance: float = 0.008,
        last_frame: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        non_negative("tolerance", tolerance)
        if len(set(sequences)) != len(sequences):
            raise OptionError("sequences", list(sequences), "a list without duplicates")
        self.sequences = tuple(sequences)
        self.tolerance, self.last_frame = tolerance, last_frame
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Clears all scores."""
        super().reset()
        # Not an empty list: torchmetrics replaces it by a 1-d tensor, which cannot be gathered with the 2-d
        # rows of other processes.
        self.rows = [torch.zeros((0, _COLUMNS), dtype=torch.int64, device=self.device)]

    def update(
        self,
        prediction: Tensor,
        truth: Tensor,
        *,
        sequence: str,
        frame: int,
        frames: int,
        objects: Sequence[int],
    ) -> None:
        """Scores one frame. Frames outside `scored_frames` are validated but not scored.

        Args:
            prediction: `(height, width)` object ids, 0 for the background, of any integer type.
            truth: ground truth of the same shape.
            sequence: name of the sequence.
            frame: index of the frame in the clip, from 0.
            frames: number of frames in the clip.
            objects: ids to score, i.e. the objects given up to this frame. An id that is missing from a mask
                counts as an empty mask; ids not listed are background in both masks.

        Raises:
            InputError: `sequence` is not one of `sequences`, or the shapes differ.
            ValueError: `frame` is out of range, or `objects` contains duplicates or ids outside 1 to 255.
        """
        self._check(prediction, truth, sequence, frame, frames, objects)
        if frame not in scored_frames(frames, last_frame=self.last_frame) or not objects:
            return
        index, truth = self.sequences.index(sequence), truth.to(prediction.device)
        counts = torch.stack([self._counts(prediction == i, truth == i) for i in objects])
        keys = torch.tensor([[index, i, frame] for i in objects], device=counts.device)
        assert isinstance(self.rows, list)  # a tensor only while synced, when torchmetrics rejects updates
        self.rows.append(torch.cat([keys, counts], dim=1).to(self.device))

    def compute(self) -> DavisScores:
        """Scores of all frames of all processes."""
        by_sequence = groupby(self._objects(*self._by_frame()), key=lambda score: score.sequence)
        scores = [SequenceScore(name, tuple(objects)) for name, objects in by_sequence]
        scored = {score.sequence for score in scores}
        return DavisScores(scores, [name for name in self.sequences if name not in scored])

    def so_far(self, sequence: str) -> SequenceScore | None:
        """Score of a sequence from this process' frames only, without synchronisation; None without frames."""
        scores = type(self).compute(self).sequences  # the wrapped `self.compute` would synchronise processes
        return next((score for score in scores if score.sequence == sequence), None)

    def frame_scores(self, sequence: str) -> list[FrameScore]:
        """Scores of a sequence's frames in this process, sorted by object and frame, without synchronisation."""
        keys, values = self._by_frame()
        own = keys[:, 0] == self.sequences.index(sequence)
        scored = zip(keys[own][:, 1:].tolist(), values[own].tolist(), strict=True)
        return [FrameScore(*key, *value) for key, value in scored]

    def _by_frame(self) -> tuple[Tensor, Tensor]:
        """Sorted unique keys `(n, 3)`: sequence, object, frame; and the mean J and F of each, `(n, 2)`."""
        rows = dim_zero_cat(self.rows).cpu()
        keys, inverse, counts = rows[:, :_KEYS].unique(dim=0, return_inverse=True, return_counts=True)
        values = torch.zeros((len(keys), 2), dtype=torch.float64).index_add(0, inverse, _values(rows))
        return keys, values / counts[:, None]

    def _check(
        self,
        prediction: Tensor,
        truth: Tensor,
        sequence: str,
        frame: int,
        frames: int,
        objects: Sequence[int],
    ) -> None:
        if sequence not in self.sequences:
            raise InputError(f"{sequence}: unknown sequence, expected one of {', '.join(self.sequences)}")
        if not 0 <= frame < frames:
            raise ValueError(f"{sequence}: frame {frame} is out of range, the clip has {frames} frames")
        if len(set(objects)) != len(objects) or not all(1 <= i <= 255 for i in objects):
            raise ValueError(f"{sequence}: objects must be unique ids from 1 to 255, not {list(objects)}")
        if prediction.ndim != 2 or prediction.shape != truth.shape:
            raise InputError(
                f"{sequence}, frame {frame}: the prediction is {_size(prediction)}, "
                f"but the ground truth is {_size(truth)}; both must be (height, width) of the same size"
            )

    def _counts(self, prediction: Tensor, truth: Tensor) -> Tensor:
        return torch.cat(
            [region_counts(prediction, truth), boundary_counts(prediction, truth, self.tolerance)]
        )

    def _objects(self, keys: Tensor, values: Tensor) -> Iterator[ObjectScore]:
        """Yields one score per object; arguments as returned by `_by_frame`."""
        objects, frames = keys[:, :2].unique_consecutive(dim=0, return_counts=True)
        for (index, object_id), scores in zip(objects.tolist(), values.split(frames.tolist()), strict=True):
            yield ObjectScore(
                sequence=self.sequences[index],
                object_id=object_id,
                frames=len(scores),
                jaccard=statistics(scores[:, 0]),
                boundary=statistics(scores[:, 1]),
            )


def _values(rows: Tensor) -> Tensor:
    """J and F of each row, `(rows, 2)`."""
    region, boundary = rows[:, _KEYS:].split([2, 4], dim=1)
    return torch.stack([jaccard_of_counts(region), boundary_f_of_counts(boundary)], dim=1)


def _mean(values: Sequence[Statistics]) -> Statistics:
    if not values:
        return Statistics(float("nan"), float("nan"), float("nan"))
    return Statistics(
        mean=fmean(value.mean for value in values),
        recall=fmean(value.recall for value in values),
        decay=fmean(value.decay for value in values),
    )


def _size(mask: Tensor) -> str:
    return " x ".join(str(length) for length in reversed(mask.shape))
