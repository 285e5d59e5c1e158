"""`DavisScore`: the scores of a data set, gathered frame by frame and merged between processes."""

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

_KEYS = 3  # columns of a row that say what it scores: sequence, object, frame
_COLUMNS = _KEYS + 2 + 4  # then the counts of J and of F


def scored_frames(frames: int, *, last_frame: bool = False) -> range:
    """The frames that are scored in a clip of `frames`: all but the first, which is given, and DAVIS' last.

    Args:
        frames: how many frames the clip has; one of one or two frames has no score by DAVIS' rule.
        last_frame: whether the last frame is scored too, as Long Videos' authors do.
    """
    return range(1, frames if last_frame else frames - 1)


class FrameScore(NamedTuple):
    """One object's scores in one frame: J and F."""

    object_id: int
    frame: int
    jaccard: float
    boundary: float


@dataclass(frozen=True)
class ObjectScore:
    """One object's scores in one sequence.

    Attributes:
        sequence: the sequence's name.
        object_id: the object's id in the masks.
        frames: how many frames were scored.
        jaccard: of J, the region.
        boundary: of F, the boundary.
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
    """The means over objects' scores, each object counting the same; NaN over none."""

    __slots__ = ()

    def _scores(self) -> tuple[ObjectScore, ...]:
        """The objects' scores."""
        return self.objects  # type: ignore[attr-defined]

    @property
    def jaccard(self) -> Statistics:
        """The means, over the objects, of J's mean, recall and decay."""
        return _mean([score.jaccard for score in self._scores()])

    @property
    def boundary(self) -> Statistics:
        """The means, over the objects, of F's mean, recall and decay."""
        return _mean([score.boundary for score in self._scores()])

    @property
    def j_and_f(self) -> float:
        """The mean of J's and F's means."""
        return (self.jaccard.mean + self.boundary.mean) / 2


@dataclass(frozen=True)
class SequenceScore(_MeanOverObjects):
    """One sequence's scores: its objects', each counting the same.

    Attributes:
        sequence: the sequence's name.
        objects: its objects, by id; at least one.
    """

    sequence: str
    objects: tuple[ObjectScore, ...]


class DavisScores(_MeanOverObjects):
    """A data set's scores: the means over all objects of all sequences, as DAVIS takes them.

    They are NaN only where nothing at all was scored. Immutable, but no dataclass: torchmetrics takes
    apart the dataclasses that `compute` returns, and refuses frozen ones.

    Args:
        sequences: the sequences with a score.
        unscored: names of the sequences without one: no frame of them was scored. They count nowhere.
    """

    __slots__ = ("_sequences", "_unscored")

    def __init__(self, sequences: Sequence[SequenceScore], unscored: Sequence[str] = ()) -> None:
        self._sequences = tuple(sequences)
        self._unscored = tuple(unscored)

    @property
    def sequences(self) -> tuple[SequenceScore, ...]:
        """The sequences with a score, in the order in which `DavisScore` was given them."""
        return self._sequences

    @property
    def unscored(self) -> tuple[str, ...]:
        """Names of the sequences of which no frame was scored."""
        return self._unscored

    @property
    def objects(self) -> tuple[ObjectScore, ...]:
        """The objects of all sequences, one after the other."""
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
    """J, F and J&F of DAVIS' semi-supervised task, over the objects of many sequences.

    Each update scores one frame and keeps nine whole numbers per object, so any split of the frames
    between processes, in any order, gives the same scores. A frame that was scored more than once (a
    distributed sampler repeats clips to give each process as many) counts once, with the mean of its scores.

    Args:
        sequences: the names of all sequences, in the same order in every process.
        tolerance: of the boundary measure, see `functional.boundary_f`.
        last_frame: whether a clip's last frame is scored, which DAVIS leaves out.
        **options: those of `torchmetrics.Metric`.

    Raises:
        OptionError: a sequence is named twice, or the tolerance is negative.
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
            raise OptionError("sequences", list(sequences), "a list that names each sequence once")
        self.sequences = tuple(sequences)
        self.tolerance, self.last_frame = tolerance, last_frame
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forgets every frame."""
        super().reset()
        # Never an empty list: torchmetrics stands in for it with a tensor of one dimension, which cannot be
        # gathered with the rows of a process that has some.
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
        """Scores one frame; the first and, by DAVIS' rule, the last of the clip are checked, but not scored.

        Args:
            prediction: `(height, width)` object ids, 0 for the background, of any whole-number type.
            truth: likewise, of the same size.
            sequence: the name of the sequence.
            frame: the frame's index in the clip, from 0.
            frames: how many frames the clip has.
            objects: the ids to score: those that the method was given up to this frame. One that the
                prediction lacks has an empty prediction; all other ids are background, in both masks.

        Raises:
            InputError: the sequence is not among those of this score, or the sizes differ.
            ValueError: `frame` is no frame of the clip, or `objects` holds an id twice or one
                that is not in 1 to 255.
        """
        self._check(prediction, truth, sequence, frame, frames, objects)
        if frame not in scored_frames(frames, last_frame=self.last_frame) or not objects:
            return
        index, truth = self.sequences.index(sequence), truth.to(prediction.device)
        counts = torch.stack([self._counts(prediction == one, truth == one) for one in objects])
        keys = torch.tensor([[index, one, frame] for one in objects], device=counts.device)
        assert isinstance(
            self.rows, list
        )  # a tensor only while processes are in sync, when updates are refused
        self.rows.append(torch.cat([keys, counts], dim=1).to(self.device))

    def compute(self) -> DavisScores:
        """The scores of all frames so far, of all processes."""
        objects = list(self._objects(*self._by_frame()))
        by_sequence = groupby(objects, key=lambda score: score.sequence)
        scores = [SequenceScore(name, tuple(members)) for name, members in by_sequence]
        scored = {score.sequence for score in scores}
        return DavisScores(scores, [name for name in self.sequences if name not in scored])

    def so_far(self, sequence: str) -> SequenceScore | None:
        """The score of a sequence whose frames this process has scored; None where there are none.

        Other processes are not asked, so that it may be called at any time.
        """
        scores = type(self).compute(self).sequences  # torchmetrics' own wrapper would wait for all processes
        return next((score for score in scores if score.sequence == sequence), None)

    def frame_scores(self, sequence: str) -> list[FrameScore]:
        """The scores of a sequence's frames that this process has scored, by object and frame; asks no other."""
        keys, values = self._by_frame()
        own = keys[:, 0] == self.sequences.index(sequence)
        scored = zip(keys[own][:, 1:].tolist(), values[own].tolist(), strict=True)
        return [FrameScore(*key, *value) for key, value in scored]

    def _by_frame(self) -> tuple[Tensor, Tensor]:
        """Sequence, object and frame of all scores, sorted, each once; and their J and F."""
        rows = dim_zero_cat(self.rows).cpu()
        keys, duplicate_of, times = rows[:, :_KEYS].unique(dim=0, return_inverse=True, return_counts=True)
        values = torch.zeros((len(keys), 2), dtype=torch.float64).index_add(0, duplicate_of, _values(rows))
        return keys, values / times[:, None]

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
            raise InputError(
                f"{sequence}: is not among the sequences of this score ({', '.join(self.sequences)})"
            )
        if not 0 <= frame < frames:
            raise ValueError(f"{sequence}: frame {frame} is not one of the clip's {frames} frames")
        if len(set(objects)) != len(objects) or not all(1 <= one <= 255 for one in objects):
            raise ValueError(f"{sequence}: objects must be ids from 1 to 255, each once, not {list(objects)}")
        if prediction.ndim != 2 or prediction.shape != truth.shape:
            raise InputError(
                f"{sequence}, frame {frame}: the prediction is {_size(prediction)}, "
                f"but the true mask is {_size(truth)}; they must be equal"
            )

    def _counts(self, prediction: Tensor, truth: Tensor) -> Tensor:
        return torch.cat(
            [region_counts(prediction, truth), boundary_counts(prediction, truth, self.tolerance)]
        )

    def _objects(self, keys: Tensor, values: Tensor) -> Iterator[ObjectScore]:
        """One score per object; `keys` are sorted by sequence, object and frame."""
        objects, frames = keys[:, :2].unique_consecutive(dim=0, return_counts=True)
        for (index, object_id), own in zip(objects.tolist(), values.split(frames.tolist()), strict=True):
            yield ObjectScore(
                sequence=self.sequences[index],
                object_id=object_id,
                frames=len(own),
                jaccard=statistics(own[:, 0]),
                boundary=statistics(own[:, 1]),
            )


def _values(rows: Tensor) -> Tensor:
    """J and F of each row, `(rows, 2)`."""
    region, boundary = rows[:, _KEYS:].split([2, 4], dim=1)
    return torch.stack([jaccard_of_counts(region), boundary_f_of_counts(boundary)], dim=1)


def _mean(members: Sequence[Statistics]) -> Statistics:
    if not members:
        return Statistics(float("nan"), float("nan"), float("nan"))
    return Statistics(
        mean=fmean(each.mean for each in members),
        recall=fmean(each.recall for each in members),
        decay=fmean(each.decay for each in members),
    )


def _size(mask: Tensor) -> str:
    return " x ".join(str(length) for length in reversed(mask.shape))
