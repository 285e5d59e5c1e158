"""The LightningModule whose `predict_step` runs one clip."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import lightning as L
import numpy as np
import torch
from torch import nn

from drift.adaptation.checkpoints import AdapterFolder
from drift.backbone.interface import Backbone
from drift.backbone.latent_diffusion import LatentDiffusion
from drift.clip import Clip
from drift.errors import InputError
from drift.metrics.davis import DavisScore, scored_frames
from drift.prefetch import prefetched
from drift.propagation.adapter import Adapter
from drift.propagation.refiner import Refiner
from drift.propagation.tracker import Tracker
from drift.reporting.attention_figure import AttentionView, draw_attention
from drift.reporting.clip_output import ClipOutput, OutputFolder
from drift.reporting.progress import ProgressBars
from drift.reporting.results import ClipResult
from drift.stopwatch import Stopwatch

__all__ = ["ClipModule", "TrackingModule"]

_log = logging.getLogger(__name__)


class ClipModule(L.LightningModule):
    """Works on one clip at a time with a frozen backbone.

    Args:
        backbone: an `nn.Module` that meets `Backbone`; moved by the trainer.
        adapters: gives, or learns, each clip's adapter.
        progress: where to show progress, or None.
    """

    def __init__(
        self, backbone: Backbone, *, adapters: AdapterFolder, progress: ProgressBars | None = None
    ) -> None:
        super().__init__()
        assert isinstance(backbone, nn.Module)
        self.backbone, self.adapters, self.progress = backbone, adapters, progress

    def transfer_batch_to_device(self, batch: Clip, device: torch.device, dataloader_idx: int) -> Clip:
        """A clip stays where it is: its frames are moved one at a time."""
        return batch

    def adapted(self, clip: Clip) -> Adapter:
        """A clip's adapter; one that could not be learned is warned of.

        Raises:
            InputError: a given frame or mask cannot be used, or an adapter is none of this clip's; names the clip.
        """
        assert isinstance(self.backbone, LatentDiffusion)
        try:
            adapter = self.adapters.adapter(clip, self.backbone)
        except InputError as error:
            raise error if clip.name in str(error) else InputError(f"{clip.name}: {error}") from None
        if adapter.warning:
            _log.warning("%s: %s", clip.name, adapter.warning)
        return adapter


class TrackingModule(ClipModule):
    """Tracks the objects of each clip, writes and scores what it finds.

    Args:
        backbone, adapters, progress: see `ClipModule`.
        make_tracker: gives a fresh tracker for a clip, from the backbone, the clip's adapter, the refiner and a
            stopwatch.
        refiner: sharpens predicted masks; None leaves them as propagated.
        sequences: the names of all clips, for the score.
        output: where to write.
        attention_figures: whether a figure of the attention is drawn for each clip.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        make_tracker: Callable[..., Tracker],
        refiner: Refiner | None = None,
        adapters: AdapterFolder,
        sequences: Sequence[str],
        output: OutputFolder,
        progress: ProgressBars | None = None,
        attention_figures: bool = True,
    ) -> None:
        super().__init__(backbone, adapters=adapters, progress=progress)
        self.make_tracker, self.refiner = make_tracker, refiner
        self.score = DavisScore(sequences)
        self.output = output
        self.attention_figures = attention_figures

    def predict_step(self, clip: Clip, batch_idx: int = 0) -> ClipResult:
        """Adapts to one clip, then tracks it. Its files are written while it runs, and whole when it returns."""
        stopwatch, decoding = Stopwatch(self.backbone.device), Stopwatch()
        if self.progress:
            self.progress.start_clip(clip.name, len(clip))
        adapter = self.adapted(clip)
        start = time.perf_counter()
        figure, point = None, (0, 0)
        with ClipOutput(clip, self.output, self.score) as written:
            tracker = self.make_tracker(
                self.backbone, adapter=adapter, refiner=self.refiner, stopwatch=stopwatch
            )
            for index, frame, given in prefetched(_decoded(clip, decoding)):
                mask, objects = self._track(tracker, clip, index, frame, given)
                written.add(index, frame, mask, objects)
                if self.attention_figures and index <= len(clip) // 2:
                    point = _inmost_pixel(mask, objects[0]) or point
                    if index == len(clip) // 2 > 0:
                        figure = self._draw_attention(tracker, clip, index, frame, point)
                if self.progress:
                    self.progress.frame_done()
        seconds = time.perf_counter() - start
        return ClipResult(
            name=clip.name,
            frames=len(clip),
            seconds=seconds,
            stages={**decoding.seconds, **stopwatch.seconds, **written.stopwatch.seconds},
            overlay=self.output.overlay(clip) if self.output.overlays else None,
            attention=figure,
            adaptation=adapter.figures,
            refinements=dict(tracker.refinements),
            warning=adapter.warning,
        )

    def _track(
        self, tracker: Tracker, clip: Clip, index: int, frame: np.ndarray, given: np.ndarray | None
    ) -> tuple[np.ndarray, tuple[int, ...]]:
        """A frame's mask and the objects known so far; errors gain the clip's and the frame's name."""
        try:
            labels = tracker.step(frame, given)
        except InputError as error:
            raise InputError(f"{clip.name}, frame {clip.frame_names[index]}: {error}") from None
        with tracker.stopwatch.stage("kernel"):
            return labels.mask().numpy(), labels.object_ids

    def _draw_attention(
        self, tracker: Tracker, clip: Clip, index: int, frame: np.ndarray, point: tuple[int, int]
    ) -> Path:
        """A figure of where a pixel looks, in the first and in the last memory frame."""
        indices, weights = tracker.attention(*point)
        shown = sorted({0, len(indices) - 1})
        view = AttentionView(
            frame=frame,
            frame_index=index,
            point=point,
            memory_frames=[clip.frames[indices[place]] for place in shown],
            memory_indices=[indices[place] for place in shown],
            weights=weights[shown].numpy(),
        )
        path = self.output.attention(clip)
        draw_attention(
            view, path, title=f"{clip.name}: where one query attends, over {len(indices)} memory frames"
        )
        return path

    def clip_line(self, result: ClipResult) -> str:
        """One line on a clip that is done: its scores and speed."""
        speed = f"{result.frames} frames, {1 / result.seconds_per_frame:.2f} frames/s"
        warning = f"\n  [yellow]warning: {result.name}: {result.warning}[/]" if result.warning else ""
        score = next((s for s in self.score.compute().sequences if s.sequence == result.name), None)
        if score is None:
            has_none = not len(scored_frames(result.frames))
            reason = (
                "nothing to score (first and last frame are not)"
                if has_none
                else "not scored (no true masks)"
            )
            return f"[bold]{result.name}[/]  {reason}  ({speed}){warning}"
        j, f = score.jaccard.mean, score.boundary.mean
        return f"[bold]{result.name}[/]  J&F {score.j_and_f:.3f}  J {j:.3f}  F {f:.3f}  ({speed}){warning}"


def _decoded(clip: Clip, stopwatch: Stopwatch) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
    """Index, frame and given mask of every time step, decoded when asked for."""
    for index in range(len(clip)):
        with stopwatch.stage("decode"):
            frame = clip.frames[index]
            given = clip.given_mask(index, frame.shape[:2])
        yield index, frame, given


def _inmost_pixel(mask: np.ndarray, object_id: int) -> tuple[int, int] | None:
    """The pixel of an object that is farthest from its edge, (row, column); None where it is not visible."""
    visible = np.pad((mask == object_id).astype(np.uint8), 1)
    if not visible.any():
        return None
    depth = cv2.distanceTransform(visible, cv2.DIST_L2, 3)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(row), int(column)
