"""`Session`: a clip that a user annotates, tracks and corrects; independent of the page."""

from __future__ import annotations

import itertools
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, UInt8

from drift.clip import Clip, MaskFiles, ObjectPrompt
from drift.demo.edits import Edits, History, prompt_of_mask, with_box, with_click, with_object
from drift.demo.tracking import TrackedClip, TrackedFrame, TrackingModels
from drift.directions import backward_clip, first_frames, later_objects, merged
from drift.errors import InputError
from drift.frame_sources import FrameSource
from drift.image_files import read_mask
from drift.masks import with_given

__all__ = ["Progress", "Session"]


@dataclass(frozen=True)
class Progress:
    """Progress of tracking after a frame.

    Attributes:
        frame: index of the frame in the clip.
        done, total: number of frames tracked since the start of tracking, and number of frames to track.
        seconds: time since the start of tracking.
    """

    frame: int
    done: int
    total: int
    seconds: float

    @property
    def frames_per_second(self) -> float:
        """Mean number of frames tracked per second."""
        return self.done / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float:
        """Estimated time to the end in seconds."""
        return (self.total - self.done) / self.frames_per_second


@dataclass(frozen=True)
class _Plan:
    """The clip, the forward and reversed clips to track, and the first given frame by object id."""

    clip: Clip
    parts: Sequence[tuple[TrackedClip, Clip]]
    first: Mapping[int, int]


class Session:
    """A clip with the objects that a user has given and their masks, kept on disk.

    Args:
        source: the frames.
        name: name of the clip and its files.
        folder: folder of masks and of the tracker's memory; deleted by `close`.
        models: the models.
        path: path of the clip on the user's command line.
        max_side: longer side, in pixels, to which frames are downscaled for the model; None for full size.

    Attributes:
        direction: see `Clip`; can be changed at any time.
        tracking: whether `track` is running.
        numbers: counter for unique file names.
    """

    def __init__(
        self,
        source: FrameSource,
        name: str,
        folder: Path,
        models: TrackingModels,
        *,
        path: str = "clip.mp4",
        max_side: int | None = None,
    ) -> None:
        self.source, self.name, self.folder, self.models, self.path = source, name, folder, models, path
        self.max_side, self.direction, self.tracking = max_side, "forward", False
        self._given_folder = folder / "given"
        self._given_folder.mkdir(parents=True, exist_ok=True)
        self._history = History()
        self._forward = TrackedClip(models, folder / "forward")
        self._backward = TrackedClip(models, folder / "backward")
        self.numbers = itertools.count()
        self._pause = threading.Event()
        self._decoded: tuple[int, np.ndarray] | None = None
        self._planned: tuple[Mapping[int, Path], str, _Plan] | None = None

    def __len__(self) -> int:
        return len(self.source.frames)

    @property
    def edits(self) -> Edits:
        """The current edits."""
        return self._history.now

    def frame(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        """Frame `index`, RGB; cached until another frame is requested."""
        if self._decoded is None or self._decoded[0] != index:
            self._decoded = index, self.source.frames[index]
        return self._decoded[1]

    def clip(self) -> Clip:
        """The clip, as `data=video` would load it.

        Raises:
            InputError: no object is given.
        """
        if not self.edits.masks:
            raise InputError("no object has been shown yet; click on one in the picture")
        return self.source.clip(
            self.name, given=self.edits.given, max_side=self.max_side, direction=self.direction
        )

    # Objects

    def add_object(self, name: str | None = None) -> int:
        """Adds an object without a mask; returns its id."""
        edits, object_id = self.edits.with_new_object(name)
        self._history.change(edits)
        return object_id

    def rename(self, object_id: int, name: str) -> None:
        """Renames an object."""
        if name.strip() and object_id in self.edits.names:
            self._history.change(replace(self.edits, names={**self.edits.names, object_id: name.strip()}))

    def remove_object(self, object_id: int) -> None:
        """Removes an object from all frames; frames on which it is tracked become outdated."""
        self._history.change(self.edits.without_object(object_id, self._given_folder))

    def click(self, frame: int, object_id: int, x: float, y: float, *, inside: bool = True) -> None:
        """Adds a click at (x, y), in pixels with centres at whole numbers, and segments the object again.

        Raises:
            InputError: the click is outside the frame, or the mask is empty.
        """
        self._check_inside(x, y)
        self._show(frame, with_click(self._prompt(frame, object_id), x, y, inside=inside))

    def box(self, frame: int, object_id: int, corners: tuple[float, float, float, float]) -> None:
        """Segments the object in a box.

        Args:
            frame: index of the frame.
            object_id: the object.
            corners: x0, y0, x1, y1 of opposite corners in pixels, clipped to the frame.

        Raises:
            InputError: the box or the mask is empty.
        """
        height, width = self.source.size
        x0, y0, x1, y1 = (
            min(max(edge, 0), limit)
            for edge, limit in zip(corners, (width, height, width, height), strict=True)
        )
        self._show(frame, with_box(ObjectPrompt(object_id), (x0, y0, x1, y1)))

    def paint(self, frame: int, object_id: int, pixels: Bool[np.ndarray, "height width"]) -> None:
        """Sets the mask of an object on a frame.

        Raises:
            InputError: the size differs from the frame's, or the mask is empty.
        """
        self._check_size(pixels)
        if not pixels.any():
            raise InputError("the painted mask is empty; paint the object, or remove it from the list")
        edits = self.edits.without_prompts(frame, {object_id})
        self._give(edits, frame, with_object(self._given(frame), object_id, pixels))

    def take_masks(self, frame: int, path: Path) -> None:
        """Sets the masks of all objects in a mask file on a frame; see `read_mask`.

        Raises:
            InputError: the file is no mask, of another size, or empty.
        """
        mask = read_mask(path, binary=None)
        self._check_size(mask)
        objects = np.unique(mask[mask > 0]).tolist()
        if not objects:
            raise InputError(f"{path.name}: contains no object: all pixels are background")
        names = {i: self.edits.names.get(i, f"object {i}") for i in sorted({*objects, *self.edits.names})}
        edits = replace(self.edits.without_prompts(frame, objects), names=names)
        self._give(edits, frame, with_given(self._given(frame), mask))

    def undo(self) -> bool:
        """Undoes the last change, which makes earlier masks current again; returns False if there is none."""
        return self._history.undo()

    # Masks

    def mask(self, frame: int) -> UInt8[np.ndarray, "height width"]:
        """Object ids of a frame, from tracked masks, outdated ones included, and given masks."""
        size, last, given = self.source.size, len(self) - 1, self.edits.given
        mask = self._forward.mask(frame) if self.direction != "backward" else None
        mask = np.zeros(size, np.uint8) if mask is None else mask
        backward = self._backward.mask(last - frame) if self.direction != "forward" else None
        if backward is not None and self.edits.masks:
            plan = self._plan()
            mask = merged(mask, backward, later_objects(plan.clip, frame, plan.first))
        mask = with_given(mask, given.get(frame))
        return np.where(np.isin(mask, list(self.edits.names)), mask, np.uint8(0))

    def is_current(self, frame: int) -> bool:
        """Whether the mask of a frame equals that of `python evaluate.py` for the current edits."""
        return all(tracked.is_current(clip, index) for tracked, clip, index in self._parts_of(frame))

    def current_frames(self) -> list[int]:
        """Frames for which `is_current`."""
        return [frame for frame in range(len(self)) if self.is_current(frame)] if self.edits.masks else []

    def tracked(self, frame: int) -> TrackedFrame | None:
        """Areas, confidences and refinement outcomes of a frame; None if it is not tracked."""
        if not self.edits.masks:
            return None
        plan, outcomes = self._plan(), Counter[str]()
        areas: dict[int, int] = {}
        confidences: dict[int, float] = {}
        later, version = later_objects(plan.clip, frame, plan.first), ""
        for part, _, index in self._parts_of(frame):
            if one := part.frames.get(index):
                version, outcomes = one.version, outcomes + Counter(one.outcomes)
                own = [
                    i for i in one.areas if i in self.edits.names and (part is self._backward) == (i in later)
                ]
                areas |= {i: one.areas[i] for i in own}
                confidences |= {i: one.confidences[i] for i in own}
        return TrackedFrame(version, areas, confidences, outcomes) if version else None

    # Tracking

    def track(self) -> Iterator[Progress]:
        """Tracks all outdated frames, until `pause` is called.

        Raises:
            InputError: no object is given, the clip has a single frame, or tracking is running already.
            OSError: the disk is full. Tracked frames are kept after any error.
        """
        if self.tracking:
            raise InputError("this clip is being tracked already")
        if len(self) == 1:
            raise InputError(
                "the clip has one frame only: there is nothing to track, but the mask can be downloaded"
            )
        parts = self._plan().parts
        total = sum(len(clip) - tracked.first_outdated(clip) for tracked, clip in parts)
        self._pause.clear()
        self.tracking, start, done = True, time.monotonic(), 0
        try:
            for tracked, clip in parts:
                for index in tracked.run(clip):
                    done += 1
                    frame = index if tracked is self._forward else len(self) - 1 - index
                    yield Progress(frame, done, total, time.monotonic() - start)
                    if self._pause.is_set():
                        return
        finally:
            self.tracking = False

    def pause(self) -> None:
        """Stops `track` after the current frame."""
        self._pause.set()

    # Inspection

    def attention(self, frame: int, x: float, y: float) -> tuple[Sequence[int], Mapping[str, np.ndarray]]:
        """Attention of a pixel of a tracked frame over the remembered frames.

        Returns:
            Indices of the remembered frames and, by layer, attention `(frames, rows, columns)`, which sums to 1.

        Raises:
            InputError: the frame is not tracked, or it is the first tracked frame, which has no memory.
        """
        self._check_inside(x, y)
        tracked, clip, index = self._part_to_look_at(frame)
        height, width = self.source.size
        rows, columns = clip.reduced_frame(self.frame(frame)).shape[:2]
        pixel = (
            min(int((y + 0.5) * rows / height), rows - 1),
            min(int((x + 0.5) * columns / width), columns - 1),
        )
        with self.models.lock:
            indices, maps = tracked.tracker_on(clip, index).attention([pixel])
        if tracked is self._backward:
            indices = [len(self) - 1 - i for i in indices]
        return indices, {layer: weights[0].numpy() for layer, weights in maps.items()}

    def head_weights(self) -> dict[str, list[float]]:
        """Weight of each head by layer, learned if frames are tracked; all weights sum to 1."""
        layers = self.models.backbone.layers
        known = self.edits.masks and (self._forward.frames or not self.models.learns)
        weights = self._forward.adapter(self.clip()).head_weights if known else {}
        heads = sum(layers.values())
        uniform = {layer: [1 / heads] * count for layer, count in layers.items()}
        return uniform | {layer: one.tolist() for layer, one in weights.items()}

    def close(self) -> None:
        """Stops tracking and deletes all files."""
        self.pause()
        shutil.rmtree(self.folder, ignore_errors=True)

    # Parts

    def _plan(self) -> _Plan:
        """The plan for the current masks and direction; cached."""
        key = (self.edits.masks, self.direction)
        if self._planned is None or self._planned[0] is not key[0] or self._planned[1] != key[1]:
            self._planned = (*key, self._new_plan())
        return self._planned[2]

    def _new_plan(self) -> _Plan:
        clip, last = self.clip(), len(self) - 1
        parts = [] if self.direction == "backward" else [(self._forward, clip)]
        if reverse := backward_clip(clip):
            given = MaskFiles({index: self.edits.masks[last - index] for index in sorted(reverse.given)})
            parts.append((self._backward, replace(reverse, given=given)))
        return _Plan(clip, parts, first_frames(clip.given))

    def _parts_of(self, frame: int) -> list[tuple[TrackedClip, Clip, int]]:
        """Parts that contain a frame, with the index of the frame in the part."""
        return [
            (tracked, clip, index)
            for tracked, clip in self._plan().parts
            if (index := frame if tracked is self._forward else len(self) - 1 - frame) >= clip.start
        ]

    def _part_to_look_at(self, frame: int) -> tuple[TrackedClip, Clip, int]:
        parts = [part for part in self._parts_of(frame) if part[0].is_current(*part[1:])]
        if not parts:
            raise InputError(f"frame {frame} is not tracked; track it first")
        part = next((part for part in parts if part[2] > part[1].start), None)
        if part is None:
            raise InputError("tracking starts at this frame, so it has no earlier frames to look at")
        return part

    # Prompts

    def _prompt(self, frame: int, object_id: int) -> ObjectPrompt:
        return self.edits.prompts.get((frame, object_id)) or prompt_of_mask(
            object_id, self.mask(frame) == object_id
        )

    def _show(self, frame: int, prompt: ObjectPrompt) -> None:
        if self.models.refiner is None:
            raise InputError("clicks and boxes need a refinement model: python demo.py refinement=sam_tiny")
        picture = self.frame(frame)
        clip = self.source.clip(self.name, given={}, prompts={frame: [prompt]}, max_side=self.max_side)
        reduced = clip.reduced_frame(picture)
        scaled = clip.reduced_prompts(frame, self.source.size)[0]
        with self.models.lock:
            found = self.models.refiner.proposer.segment(torch.from_numpy(reduced), scaled)
        small = found.cpu().numpy().astype(np.uint8)
        pixels = cv2.resize(small, self.source.size[::-1], interpolation=cv2.INTER_NEAREST_EXACT) > 0
        if not pixels.any():
            raise InputError("no object found there; drag a box around it, or paint it")
        edits = self.edits.with_prompt(frame, prompt)
        self._give(edits, frame, with_object(self._given(frame), prompt.object_id, pixels))

    def _given(self, frame: int) -> np.ndarray:
        given = self.edits.given
        return given[frame] if frame in given else np.zeros(self.source.size, np.uint8)

    def _give(self, edits: Edits, frame: int, mask: np.ndarray) -> None:
        for object_id in np.unique(mask[mask > 0]).tolist():
            if object_id not in edits.names:
                edits = replace(edits, names={**edits.names, object_id: f"object {object_id}"})
        self._history.change(edits.with_mask(frame, mask, self._given_folder))

    def _check_inside(self, x: float, y: float) -> None:
        height, width = self.source.size
        if not (0 <= x < width and 0 <= y < height):
            raise InputError(f"({x:g}, {y:g}) is outside the picture of {width} x {height} pixels")

    def _check_size(self, mask: np.ndarray) -> None:
        if mask.shape != self.source.size:
            raise InputError(
                f"the mask is {mask.shape[1]} x {mask.shape[0]}, but the frame is "
                f"{self.source.size[1]} x {self.source.size[0]}; resize the mask"
            )
