"""Tracking of a clip in one direction that can be paused, corrected and resumed; masks and memory are on disk."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from drift.adaptation.adapter_files import AdapterFolder
from drift.backbones.interface import Backbone
from drift.clip import Clip
from drift.formats import SegmentedFrame
from drift.image_files import read_mask, write_mask
from drift.prefetch import prefetched
from drift.propagation.adapter import Adapter
from drift.propagation.labels import SoftLabels
from drift.propagation.memory import RememberedFrame
from drift.propagation.tracker import Tracker, TrackerState
from drift.refinement.refinement import Refinement
from drift.segmenting import segment_frame
from drift.tensor_files import save_tensors

__all__ = ["TrackedClip", "TrackedFrame", "TrackingModels"]


@dataclass(frozen=True)
class TrackingModels:
    """Models shared by all sessions.

    Attributes:
        backbone, make_tracker, refiner: see `TrackingModule`.
        adapters: returns the `AdapterFolder` of a session's folder.
        learns: whether an adapter depends on the given masks.
        lock: held while a model computes; sessions alternate frame by frame.
    """

    backbone: Backbone
    make_tracker: Callable[..., Tracker]
    refiner: Refinement | None
    adapters: Callable[[Path], AdapterFolder]
    learns: bool
    lock: threading.Lock


@dataclass(frozen=True)
class TrackedFrame:
    """Results of a tracked frame other than its mask.

    Attributes:
        version: given masks that the frame depends on, see `TrackedClip.version`.
        areas: number of pixels of each object.
        confidences: mean probability of each object's pixels, in [0, 1]; its highest probability if it has none.
        outcomes: outcome counts of refinement.
    """

    version: str
    areas: Mapping[int, int]
    confidences: Mapping[int, float]
    outcomes: Mapping[str, int]


class TrackedClip:
    """A clip that is tracked from its first given frame to its end.

    The labels of each frame are written to disk, from which tracking resumes at any frame with identical masks.

    Args:
        models: the models.
        folder: folder of masks, labels and adapters.

    Attributes:
        frames: the tracked frames by index.
    """

    def __init__(self, models: TrackingModels, folder: Path) -> None:
        self.models, self.folder = models, folder
        self.frames: dict[int, TrackedFrame] = {}
        self.adapters = models.adapters(folder / "adapters")
        self._live: tuple[int, str, Tracker] | None = None  # a tracker with its last frame and version
        folder.mkdir(parents=True, exist_ok=True)

    def version(self, clip: Clip, index: int) -> str:
        """Identifies the given masks that a frame depends on: those up to it, or all if adapters are learned."""
        paths: Mapping[int, Path] = clip.given.paths  # type: ignore[attr-defined]
        return " ".join(f"{i}:{p.stem}" for i, p in paths.items() if i <= index or self.models.learns)

    def is_current(self, clip: Clip, index: int) -> bool:
        """Whether a frame was tracked from the present given masks."""
        if index < clip.start:
            return True
        return index in self.frames and self.frames[index].version == self.version(clip, index)

    def first_outdated(self, clip: Clip) -> int:
        """Index of the first outdated frame; the number of frames if all are current."""
        return next((i for i in range(clip.start, len(clip)) if not self.is_current(clip, i)), len(clip))

    def mask(self, index: int) -> np.ndarray | None:
        """The mask of a frame, possibly outdated; None if it was never tracked."""
        return read_mask(self._mask_path(index)) if index in self.frames else None

    def run(self, clip: Clip) -> Iterator[int]:
        """Tracks from the first outdated frame; yields the index of each frame after its mask is written.

        Raises:
            InputError: a frame or mask cannot be used.
            OSError: the disk is full; earlier frames are kept.
        """
        first = self.first_outdated(clip)
        if first == len(clip):
            return
        with self.models.lock:
            tracker = self._tracker_before(clip, first)
        with closing(prefetched(clip.frames[first:])) as frames:
            for index, frame in enumerate(frames, first):
                self._live = None  # invalid during the step, and after a failure
                with self.models.lock:
                    segmented, labels = self._step(tracker, clip, index, frame)
                assert labels is not None
                self._keep(tracker, segmented, labels, self.version(clip, index))
                yield index

    def tracker_on(self, clip: Clip, index: int) -> Tracker:
        """A tracker whose last frame is `index`. Call it with the lock held."""
        version = self.version(clip, index)
        if self._live is None or self._live[:2] != (index, version):
            tracker = self._tracker_before(clip, index)
            self._step(tracker, clip, index, clip.frames[index])
            self._live = index, version, tracker
        return self._live[2]

    def adapter(self, clip: Clip) -> Adapter:
        """The adapter of the clip, learned if necessary."""
        return self.adapters.adapter(clip, self.models.backbone)

    def _step(
        self, tracker: Tracker, clip: Clip, index: int, frame: np.ndarray
    ) -> tuple[SegmentedFrame, SoftLabels | None]:
        tracker.refinements.clear()
        return segment_frame(tracker, clip, index, frame, clip.given_mask(index, frame.shape[:2]))

    def _tracker_before(self, clip: Clip, index: int) -> Tracker:
        if index > clip.start and self._live is not None:
            last, version, tracker = self._live
            if last == index - 1 and version == self.version(clip, last):
                return tracker
        models = self.models
        tracker = models.make_tracker(models.backbone, adapter=self.adapter(clip), refiner=models.refiner)
        if index > clip.start:
            size = clip.reduced_frame(clip.frames[clip.start]).shape[:2]
            state = self._state_after(index - 1, size)
            tracker.restore(state, lambda i: clip.reduced_frame(clip.frames[i]))
        else:
            tracker.skip(clip.start)
        return tracker

    def _keep(self, tracker: Tracker, segmented: SegmentedFrame, labels: SoftLabels, version: str) -> None:
        index = segmented.index
        self._save_labels(index, tracker.state())
        write_mask(self._mask_path(index), segmented.mask)
        areas = np.bincount(segmented.mask.ravel(), minlength=256)
        self.frames[index] = TrackedFrame(
            version,
            {i: int(areas[i]) for i in labels.object_ids},
            _confidences(labels),
            dict(tracker.refinements),
        )
        self._live = index, version, tracker

    def _save_labels(self, index: int, state: TrackerState) -> None:
        frame = next((frame for frame in state.remembered if frame.index == index), None)
        tensors = {f"labels.{n}": one for n, one in enumerate(frame.labels if frame else ())}
        fields = {
            "given": frame is not None and frame.given,
            "layers": len(tensors),
            "object_ids": state.object_ids,
            "remembered": [other.index for other in state.remembered],
        }
        save_tensors(self._labels_path(index), tensors, {"fields": json.dumps(fields)})

    def _state_after(self, index: int, size: tuple[int, ...]) -> TrackerState:
        with safe_open(self._labels_path(index), framework="pt") as file:
            fields = json.loads(file.metadata()["fields"])
        return TrackerState(
            next_index=index + 1,
            object_ids=tuple(fields["object_ids"]),
            point_names=(),
            frame_size=(size[0], size[1]),
            remembered=[self._remembered(i) for i in fields["remembered"]],
        )

    def _remembered(self, index: int) -> RememberedFrame:
        with safe_open(self._labels_path(index), framework="pt") as file:
            fields = json.loads(file.metadata()["fields"])
            labels = tuple(file.get_tensor(f"labels.{n}") for n in range(fields["layers"]))
        no_points = tuple(one.new_zeros(*one.shape[:2], 0) for one in labels)
        return RememberedFrame(index, fields["given"], (), labels, no_points)

    def _mask_path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.png"

    def _labels_path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.safetensors"


def _confidences(labels: SoftLabels) -> dict[int, float]:
    probabilities = labels.upsampled()[1:]
    pixels = probabilities > 0.5
    means = (probabilities * pixels).sum((1, 2)) / pixels.sum((1, 2)).clamp(min=1)
    chosen = torch.where(pixels.any(-1).any(-1), means, probabilities.amax((1, 2)))
    return dict(zip(labels.object_ids, chosen.tolist(), strict=True))
