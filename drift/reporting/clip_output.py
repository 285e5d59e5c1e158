"""The files of one clip, written and scored in a thread while the model works on later frames."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from drift.clip import Clip
from drift.errors import InputError
from drift.formats import SegmentedFrame, make_writers
from drift.formats.masks import MaskWriter
from drift.image_files import read_mask
from drift.metrics.davis import DavisScore
from drift.prefetch import BackgroundConsumer
from drift.propagation.keypoints import TrackedPoint
from drift.propagation.tracker import TrackerState
from drift.resuming import ClipProgress, ProgressFolder
from drift.stopwatch import Stopwatch

__all__ = ["ClipOutput", "OutputFolder"]

_SAVED_EVERY = 10.0  # seconds


@dataclass(frozen=True)
class OutputFolder:
    """Where a run writes.

    Attributes:
        root: `output.dir`.
        formats: what is written of each clip, from `FORMATS`.
        progress: how far earlier runs came.
    """

    root: Path
    formats: Sequence[str]
    progress: ProgressFolder

    def masks(self, clip: Clip) -> Path:
        """The folder of a clip's indexed PNGs."""
        return self.root / "masks" / clip.name

    def overlay(self, clip: Clip) -> Path | None:
        """The overlay video of a clip, where one is made."""
        return self.root / "overlays" / f"{clip.name}.mp4" if "overlay" in self.formats else None

    def attention(self, clip: Clip) -> Path:
        """The attention figure of a clip."""
        return self.root / "attention" / f"{clip.name}.png"

    def shown(self, clip: Clip) -> Path:
        """The picture of what was made of a clip's box and clicks."""
        return self.root / "shown" / f"{clip.name}.png"

    def keypoints(self, clip: Clip) -> Path:
        """The table of a clip's keypoints."""
        return self.root / "keypoints" / f"{clip.name}.csv"


@dataclass
class ClipOutput:
    """Takes a clip's segmented frames in order; use it in a `with` block.

    Attributes:
        clip: what is segmented.
        folder: where to write.
        score: takes the scores of frames that have a true mask.
        earlier: how far an earlier run came: what it did is read, and not done again.
        stopwatch: counts the stages `write` and `score`, in the writer's thread.
    """

    clip: Clip
    folder: OutputFolder
    score: DavisScore
    earlier: ClipProgress = field(default_factory=ClipProgress)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def __enter__(self) -> ClipOutput:
        self._stack = ExitStack()
        lacking = set(self.folder.formats) - set(self.earlier.formats)
        is_whole = self.earlier.done == len(self.clip) and not lacking
        past = list(_past(self.clip, self.folder)) if self.earlier.done and self.clip.keypoints else []
        self._writers = [] if is_whole else make_writers(self.folder.formats, self.clip, self.folder.root)
        for writer in self._writers:
            self._stack.callback(writer.close)
        if self.earlier.done:
            self._again(past)
        self._saved_at = time.monotonic()
        self._consumer = BackgroundConsumer[Callable[[], None]](lambda job: job())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            try:
                self._consumer.close()
            except BaseException:
                if error is None:  # else the first error is the one to tell
                    raise

    def add(self, segmented: SegmentedFrame) -> None:
        """Queues a frame for writing and scoring."""
        self._consumer.put(lambda: self._write(segmented))

    def keep(self, progress: Callable[[], ClipProgress], state: Callable[[], TrackerState]) -> None:
        """Keeps how far the clip has come with all frames that were added, where that has not been done for a while.

        Args:
            progress: gives the figures.
            state: gives the tracker's state.
        """
        now = time.monotonic()
        if "masks" not in self.folder.formats or now - self._saved_at < _SAVED_EVERY:
            return
        self._saved_at = now
        kept = replace(progress(), formats=tuple(self.folder.formats), tracker=state())
        self._consumer.put(lambda: self.folder.progress.save(self.clip, kept))

    def finish(self, progress: ClipProgress) -> None:
        """Keeps that the clip is done. Call it when the block is left."""
        if "masks" in self.folder.formats:
            whole = replace(progress, done=len(self.clip), formats=tuple(self.folder.formats), tracker=None)
            self.folder.progress.save(self.clip, whole)

    def _write(self, segmented: SegmentedFrame, *, again: bool = False) -> None:
        with self.stopwatch.stage("write"):
            for writer in self._writers:
                if not (again and isinstance(writer, MaskWriter)):
                    writer.add(segmented)
        with self.stopwatch.stage("score"):
            truth = self.clip.true_mask(segmented.index, segmented.mask.shape)
            if truth is not None:
                self.score.update(
                    torch.from_numpy(segmented.mask),
                    torch.from_numpy(truth),
                    sequence=self.clip.name,
                    frame=segmented.index,
                    frames=len(self.clip),
                    objects=tuple(segmented.objects),
                )

    def _again(self, past: Sequence[tuple[TrackedPoint, ...]]) -> None:
        """Gives the writers and the score what an earlier run found, from its masks."""
        objects: tuple[int, ...] = ()
        frames = iter(self.clip.frames) if self._writers else None
        for index in range(self.earlier.done):
            if index in self.clip.given:
                there = (int(one) for one in np.unique(self.clip.given[index]) if one)
                objects += tuple(one for one in there if one not in objects)
            name = self.clip.frame_names[index]
            mask = read_mask(self.folder.masks(self.clip) / f"{name}.png")
            frame = next(frames) if frames is not None else np.zeros((*mask.shape, 3), np.uint8)
            points = past[index] if index < len(past) else ()
            segmented = SegmentedFrame(index, name, self.clip.time(index), frame, mask, objects, points)
            self._write(segmented, again=True)


def _past(clip: Clip, folder: OutputFolder) -> Iterator[tuple[TrackedPoint, ...]]:
    """The points that an earlier run found, frame by frame."""
    path = folder.keypoints(clip)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            by_frame = groupby(csv.DictReader(file), key=lambda row: int(row["frame"]))
            found = {
                frame: tuple(
                    TrackedPoint(row["point"], float(row["x"]), float(row["y"]), float(row["confidence"]))
                    for row in rows
                )
                for frame, rows in by_frame
            }
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be gone on from ({error}); output.resume=false does the clip again"
        ) from None
    for frame in range(len(clip)):
        yield found.get(frame, ())
