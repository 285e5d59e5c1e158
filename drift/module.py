"""The LightningModule whose `predict_step` runs one clip."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch

from drift.adaptation.adapter_files import AdapterFolder
from drift.backbones.interface import Backbone
from drift.clip import Clip
from drift.directions import BackwardMasks, backward_clip
from drift.metrics.davis import DavisScore
from drift.peak_memory import peak_memory, watch_peak_memory
from drift.prefetch import prefetched
from drift.propagation.adapter import Adapter
from drift.propagation.tracker import Tracker
from drift.refinement.refinement import Refinement
from drift.reporting.clip_attention import keep_clip_attention
from drift.reporting.clip_output import ClipOutput
from drift.reporting.never_fatal import never_fatal
from drift.reporting.output_folder import OutputFolder
from drift.reporting.progress import ProgressBars
from drift.reporting.results import ClipResult
from drift.reporting.shown_objects import with_shown_objects
from drift.resuming import ClipProgress, ProgressFile
from drift.segmenting import Decoded, features_ahead, segment_frame
from drift.stopwatch import Stopwatch

__all__ = ["TrackingModule"]

_log = logging.getLogger(__name__)


class TrackingModule(L.LightningModule):
    """Tracks the objects of each clip, writes and scores the masks.

    Args:
        backbone: the frozen backbone; an `nn.Module` is moved by the trainer.
        make_tracker: returns a new tracker for a clip, given the backbone, an adapter, a refiner and a stopwatch.
        refiner: refines propagated masks and turns boxes and clicks into masks; None for neither.
        adapters: reads or learns the adapter of each clip.
        score: metric that is updated with every clip.
        output: the output folder.
        progress: progress bars, or None.
        waits_for_device: whether the stages of the stopwatch wait for the accelerator.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        make_tracker: Callable[..., Tracker],
        refiner: Refinement | None = None,
        adapters: AdapterFolder,
        score: DavisScore,
        output: OutputFolder,
        progress: ProgressBars | None = None,
        waits_for_device: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.adapters, self.progress = backbone, adapters, progress
        self.make_tracker, self.refiner = make_tracker, refiner
        self.score, self.output, self.waits_for_device = score, output, waits_for_device

    def transfer_batch_to_device(
        self, batch: Clip | None, device: torch.device, dataloader_idx: int
    ) -> Clip | None:
        """Clips stay where they are: their frames are moved one at a time."""
        return batch

    def predict_step(self, clip: Clip | None, batch_idx: int = 0) -> ClipResult | None:
        """Adapts to a clip and tracks it. Its files are written meanwhile, and complete on return.

        With several processes, a process without a clip gets None.
        """
        if clip is None:
            return None
        if self.progress:
            self.progress.start_clip(clip.name, len(clip))
        clip = with_shown_objects(clip, self.refiner, self.output.shown(clip))
        kept = self.output.progress.of(clip)
        earlier = kept.earlier()
        if earlier.done < len(clip):
            earlier, absences = self._adapted_and_tracked(clip, kept, earlier)
        else:
            with ClipOutput(clip, self.output, self.score, kept, earlier) as written:
                pass
            written.finish(earlier)
            absences = written.absences
        return ClipResult(
            name=clip.name,
            frames=len(clip),
            seconds=earlier.seconds,
            stages=earlier.stages,
            overlay=self.output.overlay(clip),
            attention=self.output.attention(clip) if self._shows_attention(clip) else None,
            samples=self.output.samples(clip) if self.output.pictures(clip) else None,
            adaptation=earlier.adaptation,
            losses=earlier.losses,
            head_weights=earlier.head_weights,
            frame_scores=self.score.frame_scores(clip.name),
            peak_memory=earlier.peak_memory,
            refinements=earlier.refinements,
            absences=absences,
            warning="; ".join(filter(None, (clip.warning(), earlier.warning))) or None,
            defect=clip.defect,
        )

    def _adapted_and_tracked(
        self, clip: Clip, kept: ProgressFile, earlier: ClipProgress
    ) -> tuple[ClipProgress, Mapping[int, Sequence[tuple[int, int]]]]:
        """Processes the remaining frames of a clip; the figures, and the absences of objects, are of the whole clip."""
        if not earlier.done:
            self.output.forget_pictures(clip)
        watch_peak_memory(self.backbone.device)
        adapter = self.adapters.adapter(clip, self.backbone)
        if adapter.warning:
            _log.warning("%s: %s", clip.name, adapter.warning)
        stopwatch = Stopwatch(self.backbone.device if self.waits_for_device else None)
        decoding, start = Stopwatch(), time.perf_counter()
        tracker = self._tracker(clip, adapter, stopwatch)
        with (
            TemporaryDirectory(prefix="drift-") as scratch,
            ClipOutput(clip, self.output, self.score, kept, earlier) as written,
        ):
            backward = self._tracked_backwards(clip, stopwatch, Path(scratch))

            def so_far(done: int = len(clip)) -> ClipProgress:
                seconds = (decoding.seconds, stopwatch.seconds, written.stopwatch.seconds)
                return ClipProgress(
                    done=done,
                    # Without figures of attention, so that clips compare.
                    seconds=earlier.seconds + time.perf_counter() - start - stopwatch.seconds["attention"],
                    stages=_summed(earlier.stages, *seconds),
                    refinements=_summed(earlier.refinements, tracker.refinements),
                    adaptation=adapter.figures,
                    losses=adapter.losses,
                    head_weights={layer: w.tolist() for layer, w in adapter.head_weights.items()},
                    warning=adapter.warning,
                    peak_memory=max(earlier.peak_memory, peak_memory(self.backbone.device)),
                )

            if earlier.tracker is not None:
                tracker.restore(earlier.tracker, lambda index: clip.reduced_frame(clip.frames[index]))
            for _ in range(earlier.done):
                self._frame_done()
            decoded = prefetched(_decoded(clip, decoding, earlier.done))
            read = prefetched(features_ahead(tracker, clip, decoded), depth=1)
            for index, frame, given, features in read:
                segmented, _ = segment_frame(tracker, clip, index, frame, given, features)
                segmented = backward.merged_with(segmented)
                written.add(segmented)
                if index == max(len(clip) // 2, clip.start + 1) and self._shows_attention(clip):
                    with (
                        stopwatch.stage("attention"),
                        never_fatal(f"{clip.name}: no picture of its attention"),
                    ):
                        keep_clip_attention(
                            tracker, clip, segmented, self.output, self.output.attention_points
                        )
                written.keep(partial(so_far, index + 1), tracker.state)
                self._frame_done()
        done = so_far()
        written.finish(done)
        return done, written.absences

    def _shows_attention(self, clip: Clip) -> bool:
        return self.output.attention_shown and self.output.pictures(clip)

    def _frame_done(self) -> None:
        if self.progress:
            self.progress.frame_done()

    def _tracked_backwards(self, clip: Clip, stopwatch: Stopwatch, folder: Path) -> BackwardMasks:
        """The masks of the frames that are tracked towards the start of the clip, written to `folder`."""
        masks, part = BackwardMasks(clip, folder), backward_clip(clip)
        if part is None:
            return masks
        tracker = self._tracker(part, self.adapters.adapter(part, self.backbone), stopwatch)
        decoded = prefetched(_decoded(part, stopwatch, part.start))
        for index, frame, given, features in prefetched(features_ahead(tracker, part, decoded), depth=1):
            masks.add(len(clip) - 1 - index, segment_frame(tracker, part, index, frame, given, features)[0])
        return masks

    def _tracker(self, clip: Clip, adapter: Adapter, stopwatch: Stopwatch) -> Tracker:
        """A tracker at the first frame of the clip that it is going to process."""
        tracker = self.make_tracker(self.backbone, adapter=adapter, refiner=self.refiner, stopwatch=stopwatch)
        tracker.skip(clip.start)
        return tracker


def _decoded(clip: Clip, stopwatch: Stopwatch, first: int) -> Iterator[Decoded]:
    """Index, frame and given mask of every frame from `first` on, decoded on demand."""
    frames = iter(clip.frames[first:])
    for index in range(first, len(clip)):
        with stopwatch.stage("decode"):
            frame = next(frames)
            given = clip.given_mask(index, frame.shape[:2])
        yield index, frame, given


def _summed(*several: Mapping[str, float]) -> dict[str, Any]:
    total: Counter[str] = Counter()
    for figures in several:
        total.update(figures)
    return dict(total)
