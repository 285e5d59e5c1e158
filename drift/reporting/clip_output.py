"""The files of one clip, written and scored in a thread while the model works on later frames."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from drift.clip import Clip
from drift.image_files import write_mask
from drift.metrics.davis import DavisScore
from drift.prefetch import BackgroundConsumer
from drift.reporting.overlay import OverlayVideo, draw_overlay
from drift.stopwatch import Stopwatch

__all__ = ["ClipOutput", "OutputFolder"]


@dataclass(frozen=True)
class OutputFolder:
    """Where a run writes.

    Attributes:
        root: `output.dir`.
        overlays: whether overlay videos are made.
    """

    root: Path
    overlays: bool = True

    def masks(self, clip: Clip) -> Path:
        """The folder of a clip's indexed PNGs."""
        return self.root / "masks" / clip.name

    def overlay(self, clip: Clip) -> Path:
        """The overlay video of a clip."""
        return self.root / "overlays" / f"{clip.name}.mp4"

    def attention(self, clip: Clip) -> Path:
        """The attention figure of a clip."""
        return self.root / "attention" / f"{clip.name}.png"


@dataclass(frozen=True)
class _Segmented:
    index: int
    frame: np.ndarray
    mask: np.ndarray
    objects: tuple[int, ...]


@dataclass
class ClipOutput:
    """Takes a clip's segmented frames in order; use it in a `with` block.

    Attributes:
        clip: what is segmented.
        folder: where to write.
        score: takes the scores of frames that have a true mask.
        stopwatch: counts the stages `write` and `score`, in the writer's thread.
    """

    clip: Clip
    folder: OutputFolder
    score: DavisScore
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def __enter__(self) -> ClipOutput:
        self._stack = ExitStack()
        self.folder.masks(self.clip).mkdir(parents=True, exist_ok=True)
        self._video: OverlayVideo | None = None
        if self.folder.overlays:
            path = self.folder.overlay(self.clip)
            path.parent.mkdir(parents=True, exist_ok=True)
            video = OverlayVideo(path, frames_per_second=self.clip.frames_per_second)
            self._video = self._stack.enter_context(video)
        self._consumer = BackgroundConsumer(self._write)
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

    def add(self, index: int, frame: np.ndarray, mask: np.ndarray, objects: tuple[int, ...]) -> None:
        """Queues frame `index` for writing.

        Args:
            index: of the frame in the clip.
            frame: `(height, width, 3)` uint8 RGB.
            mask: `(height, width)` uint8 predicted object ids.
            objects: the ids of the objects known so far.
        """
        self._consumer.put(_Segmented(index, frame, mask, objects))

    def _write(self, segmented: _Segmented) -> None:
        with self.stopwatch.stage("write"):
            name = self.clip.frame_names[segmented.index]
            write_mask(self.folder.masks(self.clip) / f"{name}.png", segmented.mask)
            if self._video is not None:
                self._video.add(draw_overlay(segmented.frame, segmented.mask))
        with self.stopwatch.stage("score"):
            truth = self.clip.true_mask(segmented.index, segmented.mask.shape)
            if truth is not None:
                self.score.update(
                    torch.from_numpy(segmented.mask),
                    torch.from_numpy(truth),
                    sequence=self.clip.name,
                    frame=segmented.index,
                    frames=len(self.clip),
                    objects=segmented.objects,
                )
