"""The files of one clip, written and scored in a thread while the model works on later frames."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType

import numpy as np
import torch

from drift.clip import Clip
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
    """Takes a clip's segmented frames in order; use it in a `with` block.

    Attributes:
        clip: what is segmented.
        folder: where to write.
        score: takes the scores of frames that have a true mask.
        kept: the file of the clip's progress.
        earlier: how far an earlier run came: what it did is read, and not done again.
        stopwatch: counts the stages `write` and `score`, in the writer's thread.
    """

    clip: Clip
    folder: OutputFolder
    score: DavisScore
    kept: ProgressFile
    earlier: ClipProgress = field(default_factory=ClipProgress)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def __enter__(self) -> ClipOutput:
        formats, done = self.folder.formats, self.earlier.done
        is_whole = done == len(self.clip) and set(formats) <= set(self.earlier.formats)
        with ExitStack() as stack:
            self._writers = [] if is_whole else make_writers(formats, self.clip, self.folder.root, done=done)
            if self.folder.pictures(self.clip):
                indices = sampled_indices(self.clip, self.folder.sampled_frames)
                self._writers.append(SampledFrames(self.folder.samples(self.clip), self.clip, indices))
            for writer in self._writers:
                stack.callback(writer.close)
            if done:
                self._again()
            self._stack = stack.pop_all()
        self._saved_at = time.monotonic()
        self._consumer = BackgroundConsumer[Callable[[], object]](lambda job: job())
        # Its number of threads is settled when PyTorch is first asked, which the kernel's workers must not be before.
        self._consumer.put(torch.get_num_threads)
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
        self._consumer.put(lambda: self.kept.save(kept))

    def finish(self, progress: ClipProgress) -> None:
        """Keeps that the clip is done. Call it when the block is left."""
        if "masks" in self.folder.formats:
            whole = replace(progress, done=len(self.clip), formats=tuple(self.folder.formats), tracker=None)
            self.kept.save(whole)

    def _write(self, segmented: SegmentedFrame) -> None:
        with self.stopwatch.stage("write"):
            for writer in self._writers:
                writer.add(segmented)
        self._score(segmented)

    def _score(self, segmented: SegmentedFrame) -> None:
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

    def _again(self) -> None:
        """Gives the writers and the score what an earlier run found, from the masks and points that it left."""
        anew = [writer for writer in self._writers if not writer.goes_on]
        frames = iter(self.clip.frames) if anew else None
        points = points_by_frame(self.folder.keypoints(self.clip)) if self.clip.keypoints else iter(())
        upcoming = next(points, None)
        objects: tuple[int, ...] = ()
        for index in range(self.earlier.done):
            if index in self.clip.given:
                there = (int(one) for one in np.unique(self.clip.given[index]) if one)
                objects += tuple(one for one in there if one not in objects)
            name = self.clip.frame_names[index]
            mask = read_mask(self.folder.masks(self.clip) / f"{name}.png")
            frame = next(frames) if frames is not None else np.zeros((*mask.shape, 3), np.uint8)
            shown: tuple[TrackedPoint, ...] = ()
            if upcoming is not None and upcoming[0] == index:
                shown, upcoming = upcoming[1], next(points, None)
            segmented = SegmentedFrame(index, name, self.clip.time(index), frame, mask, objects, shown)
            for writer in anew:
                writer.add(segmented)
            self._score(segmented)
