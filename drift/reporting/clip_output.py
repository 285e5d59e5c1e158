"""Writes and scores the frames of one clip in a background thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType

import numpy as np
import torch

from drift.clip import Clip
from drift.directions import first_frames
from drift.formats import SegmentedFrame, make_writers
from drift.formats.tables import points_by_frame
from drift.image_files import read_mask
from drift.metrics.davis import DavisScore
from drift.prefetch import BackgroundConsumer
from drift.propagation.keypoints import TrackedPoint
from drift.propagation.tracker import TrackerState
from drift.reporting.output_folder import OutputFolder
from drift.reporting.sampled_frames import SampledFrames, sampled_indices
from drift.resuming import ClipProgress, ProgressFile
from drift.stopwatch import Stopwatch

__all__ = ["ClipOutput"]

_SAVED_EVERY = 10.0  # seconds


@dataclass
class ClipOutput:
    """Context manager that takes the segmented frames of a clip in order.

    Attributes:
        clip: the clip.
        folder: output folder of the run.
        score: metric that is updated with every frame that has a ground-truth mask.
        progress_file: progress file of the clip, for resuming.
        earlier: progress of the run that is resumed. Its masks and points are read back, not computed again.
        stopwatch: times the stages `write` and `score` in the background thread.
        absences: by object, the first and last frame of each span without any of its pixels; see `ClipResult`.
    """

    clip: Clip
    folder: OutputFolder
    score: DavisScore
    progress_file: ProgressFile
    earlier: ClipProgress = field(default_factory=ClipProgress)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    absences: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def __enter__(self) -> ClipOutput:
        formats, done = self.folder.formats, self.earlier.done
        complete = done == len(self.clip) and set(formats) <= set(self.earlier.formats)
        with ExitStack() as stack:
            self._writers = [] if complete else make_writers(formats, self.clip, self.folder.root, done=done)
            if self.folder.pictures(self.clip):
                indices = sampled_indices(self.clip, self.folder.sampled_frames)
                self._writers.append(SampledFrames(self.folder.samples(self.clip), self.clip, indices))
            for writer in self._writers:
                stack.callback(writer.close)
            if done:
                self._replay()
            self._stack = stack.pop_all()
        self._saved_at = time.monotonic()
        self._consumer = BackgroundConsumer[Callable[[], object]](lambda job: job())
        # PyTorch sets a thread's pool size at its first call; this must happen before the kernel starts its workers.
        self._consumer.put(torch.get_num_threads)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            try:
                self._consumer.close()
            except BaseException:
                if error is None:  # otherwise the error of the block takes precedence
                    raise

    def add(self, segmented: SegmentedFrame) -> None:
        """Queues a frame for writing and scoring."""
        self._consumer.put(lambda: self._write(segmented))

    def keep(self, progress: Callable[[], ClipProgress], state: Callable[[], TrackerState]) -> None:
        """Saves a checkpoint after the frames added so far, at most once every 10 seconds.

        Args:
            progress: returns the progress of the clip.
            state: returns the state of the tracker.
        """
        now = time.monotonic()
        if "masks" not in self.folder.formats or now - self._saved_at < _SAVED_EVERY:
            return
        self._saved_at = now
        checkpoint = replace(progress(), formats=tuple(self.folder.formats), tracker=state())
        self._consumer.put(lambda: self.progress_file.save(checkpoint))

    def finish(self, progress: ClipProgress) -> None:
        """Marks the clip as complete. Call it after the `with` block."""
        if "masks" in self.folder.formats:
            formats = tuple(self.folder.formats)
            self.progress_file.save(replace(progress, done=len(self.clip), formats=formats, tracker=None))

    def _write(self, segmented: SegmentedFrame) -> None:
        with self.stopwatch.stage("write"):
            for writer in self._writers:
                writer.add(segmented)
        self._score(segmented)

    def _score(self, segmented: SegmentedFrame) -> None:
        missing = set(segmented.objects).difference(np.unique(segmented.mask).tolist())
        for object_id in sorted(missing):
            spans = self.absences.setdefault(object_id, [])
            continues = bool(spans) and spans[-1][1] == segmented.index - 1
            first = spans.pop()[0] if continues else segmented.index
            spans.append((first, segmented.index))
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

    def _replay(self) -> None:
        """Feeds the masks and points of the earlier run to the score and to the writers that cannot resume."""
        writers = [writer for writer in self._writers if not writer.resumable]
        frames = iter(self.clip.frames) if writers else None
        rows = points_by_frame(self.folder.keypoints(self.clip)) if self.clip.keypoints else iter(())
        next_row = next(rows, None)
        objects = () if self.clip.direction == "forward" else tuple(first_frames(self.clip.given))
        for index in range(self.earlier.done):
            if index in self.clip.given:
                given = np.unique(self.clip.given[index]).tolist()
                objects += tuple(i for i in given if i and i not in objects)
            name = self.clip.frame_names[index]
            mask = read_mask(self.folder.masks(self.clip) / f"{name}.png")
            frame = next(frames) if frames is not None else np.zeros((*mask.shape, 3), np.uint8)
            points: tuple[TrackedPoint, ...] = ()
            if next_row is not None and next_row[0] == index:
                points, next_row = next_row[1], next(rows, None)
            segmented = SegmentedFrame(index, name, self.clip.time(index), frame, mask, objects, points)
            for writer in writers:
                writer.add(segmented)
            self._score(segmented)
