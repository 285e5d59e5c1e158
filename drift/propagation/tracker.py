"""`Tracker`: follows objects through one clip, frame by frame, without seeing the future."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from drift.backbone.interface import Backbone, LayerReading
from drift.clip import Keypoint
from drift.errors import InputError
from drift.options import choice, non_negative, positive, whole_number
from drift.propagation.adapter import Adapter
from drift.propagation.affinity import AFFINITIES, HEADS, Comparison, comparisons
from drift.propagation.kernel import attention_maps, propagate
from drift.propagation.keypoints import discs
from drift.propagation.labels import (
    SoftLabels,
    downsampling,
    finest,
    labels_of_mask,
    merge_given,
    on_tokens,
    pad_to_stride,
    pooled,
    unpooled,
)
from drift.propagation.memory import Memory, RememberedFrame
from drift.propagation.refiner import Refiner
from drift.propagation.slot_maps import SlotKeys, slot_probabilities, with_evidence
from drift.stopwatch import Stopwatch

__all__ = ["Tracker", "TrackerState"]


@dataclass(frozen=True)
class TrackerState:
    """All that a tracker knows between two frames, but for what it can read again from the frames.

    Attributes:
        next_index: of the frame that comes next.
        object_ids, point_names: known so far.
        frame_size: height and width.
        noise: the state of the noise's generator.
        remembered: the memory, without keys.
    """

    next_index: int
    object_ids: tuple[int, ...]
    point_names: tuple[str, ...]
    frame_size: tuple[int, int] | None
    noise: Tensor
    remembered: Sequence[RememberedFrame]


class Tracker:
    """Propagates masks through one clip; make a new one for each clip.

    Example:
        tracker = Tracker(backbone)
        tracker.step(frames[0], mask)
        masks = [tracker.step(frame).mask() for frame in frames[1:]]

    Args:
        backbone: reads queries and keys of a frame.
        affinity: `attention` (Q Kᵀ / √dim) or `cosine` (of the layers' inputs).
        heads: `separate` (one attention map per head), `joint` (their logits summed per layer) or `fused`
            (summed over all layers).
        temperature: divides the logits.
        top_k: keys that a query keeps over all memory frames; None for all.
        radius: reach in tokens of the finest layer read; None for the whole frame.
        memory_frames: predicted frames that are remembered, beside those whose mask was given.
        min_confidence: an object that is nowhere at least this probable gets an empty mask.
        adapter: the prompts and head weights learned for this clip; None for the backbone's prompt and equal
            weights.
        refiner: sharpens every predicted mask; None leaves them as propagated.
        seed: of the noise that the backbone adds.
        stopwatch: counts the stages `encode`, `unet`, `kernel` and `refine`.

    Attributes:
        object_ids: known so far.
        point_names: likewise, the points that are followed.
        refinements: how often what became of an object that was to be refined.

    Raises:
        OptionError: an option is out of range.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        affinity: str = "attention",
        heads: str = "separate",
        temperature: float = 1.0,
        top_k: int | None = 15,
        radius: int | None = 12,
        memory_frames: int = 7,
        min_confidence: float = 0.0,
        adapter: Adapter | None = None,
        refiner: Refiner | None = None,
        seed: int = 0,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        choice("affinity", affinity, AFFINITIES)
        choice("heads", heads, HEADS)
        positive("temperature", temperature)
        whole_number("top_k", top_k, minimum=1, none_allowed=True)
        whole_number("radius", radius, minimum=0, none_allowed=True)
        non_negative("min_confidence", min_confidence)
        self.backbone = backbone
        self.affinity, self.heads = affinity, heads
        self.temperature, self.top_k, self.radius = temperature, top_k, radius
        self.min_confidence = min_confidence
        self.adapter, self.refiner = adapter or Adapter(), refiner
        self.refinements: Counter[str] = Counter()
        self.memory = Memory(memory_frames)
        self.object_ids: tuple[int, ...] = ()
        self.point_names: tuple[str, ...] = ()
        self.stopwatch = stopwatch or Stopwatch()
        self._generator = torch.Generator().manual_seed(seed)
        self._frame_size: tuple[int, int] | None = None
        self._next_index = 0
        self._compared: list[Comparison] = []
        self._attended: list[RememberedFrame] = []

    @torch.inference_mode()
    def step(
        self,
        frame: UInt8[np.ndarray, "height width 3"] | UInt8[Tensor, "height width 3"],
        mask: UInt8[np.ndarray, "height width"] | UInt8[Tensor, "height width"] | None = None,
        points: Sequence[Keypoint] = (),
    ) -> SoftLabels:
        """Segments the next frame.

        Args:
            frame: RGB, of the same size as the clip's other frames.
            mask: object ids, 0 where no object is given. Needed on the first frame; on any later one it
                brings new objects, or corrects known ones. Objects it does not hold are propagated.
            points: to be followed from this frame on, beside objects or in place of them; one of a known name is
                put where it is given.

        Raises:
            InputError: there is nothing to start from, the mask is empty on the first frame, a point lies outside the
                frame, or sizes differ.
        """
        given = None if mask is None else torch.as_tensor(mask)
        self._check(tuple(frame.shape), given, points)
        if given is not None and not given.any():
            given = None  # on a later frame: it brings no object
        noise = self._generator.get_state()
        slots = self.adapter.slot_keys(self._next_index)
        readings, compared = self._read(torch.as_tensor(frame), slots)
        self._compared, self._attended = compared, self.memory.frames()
        grid = finest(one.keys.shape[1:3] for one in compared)
        with self.stopwatch.stage("kernel"):
            labels, heat = self._propagate(compared, grid) if len(self.memory) else (None, None)
            if labels is not None and slots is not None and self.object_ids:
                labels = self._weighed(labels, readings, slots)
            labels = self._with_given(labels, given, grid)
            heat = self._with_points(heat, points, grid)
        soft = replace(
            self._refined(labels, torch.as_tensor(frame), given), points=heat, point_names=self.point_names
        )
        with self.stopwatch.stage("kernel"):
            keys = [one.keys for one in compared]
            self._remember(keys, soft.probabilities, heat, noise, given=given is not None or bool(points))
        return soft

    def skip(self, frames: int) -> None:
        """Passes over frames before the first one with something to follow, so that indices stay the clip's."""
        self._next_index += frames

    def state(self) -> TrackerState:
        """What another tracker of the same options needs to go on from here; see `restore`."""
        remembered = [replace(frame, keys=()) for frame in self.memory.frames()]
        return TrackerState(
            self._next_index,
            self.object_ids,
            self.point_names,
            self._frame_size,
            self._generator.get_state(),
            remembered,
        )

    @torch.inference_mode()
    def restore(
        self, state: TrackerState, frame_at: Callable[[int], UInt8[np.ndarray, "height width 3"]]
    ) -> None:
        """Takes up what another tracker of the same options left; the frames it remembered are read again.

        Args:
            state: the other's.
            frame_at: gives the frame of an index, as `step` was given it.
        """
        self._frame_size = state.frame_size
        self.object_ids, self.point_names = state.object_ids, state.point_names
        for remembered in state.remembered:
            self._next_index = remembered.index
            self._generator.set_state(remembered.noise)
            slots = self.adapter.slot_keys(remembered.index)
            _, compared = self._read(torch.as_tensor(frame_at(remembered.index)), slots)
            device = self.backbone.device
            self.memory.add(
                replace(
                    remembered,
                    keys=tuple(one.keys.contiguous() for one in compared),
                    labels=tuple(one.to(device) for one in remembered.labels),
                    points=tuple(one.to(device) for one in remembered.points),
                )
            )
        self._next_index = state.next_index
        self._generator.set_state(state.noise)

    @torch.inference_mode()
    def attention(
        self, pixels: Sequence[tuple[int, int]]
    ) -> tuple[list[int], dict[str, Float[Tensor, "pixels frames rows columns"]]]:
        """Where pixels of the last frame looked: for pictures, see `attention_maps`.

        Args:
            pixels: row and column of each.

        Returns:
            The indices of the memory frames, and by layer each pixel's attention on each of them, which sums to 1.
            Both are empty after the first frame of a clip.
        """
        if not self._attended:
            return [], {}
        maps = {}
        for layer, one in enumerate(self._compared):
            stride = self._frame_stride((one.queries.shape[1], one.queries.shape[2]))
            rows, columns = (torch.tensor(axis) // stride for axis in zip(*pixels, strict=True))
            maps[one.layer] = attention_maps(
                one.queries[:, rows, columns],
                [frame.keys[layer] for frame in self._attended],
                temperature=self.temperature,
                shares=one.shares,
            ).cpu()
        return [frame.index for frame in self._attended], maps

    def _check(self, shape: tuple[int, ...], given: Tensor | None, points: Sequence[Keypoint]) -> None:
        size = shape[:2]
        if len(shape) != 3 or shape[2] != 3:
            raise InputError(f"a frame has the shape (height, width, 3), not {shape}")
        if self._frame_size not in (None, size):
            raise InputError(
                f"a frame of {size[1]} x {size[0]} pixels in a clip of "
                f"{self._frame_size[1]} x {self._frame_size[0]}; all frames of a clip must be of one size"
            )
        if given is None and not (self.object_ids or points or self.point_names):
            raise InputError("no mask was given: the first frame of a clip needs one")
        for point in points:
            if not (0 <= point.x < size[1] and 0 <= point.y < size[0]):
                raise InputError(
                    f"the point {point.name} at ({point.x:g}, {point.y:g}) lies outside the frame of "
                    f"{size[1]} x {size[0]} pixels"
                )
        if given is not None and tuple(given.shape) != size:
            raise InputError(
                f"a mask of the shape {tuple(given.shape)} for a frame of {size}; they must be equal"
            )
        if given is not None and not (self.object_ids or points) and not given.any():
            raise InputError("the first mask holds no object: its ids are all 0, or 255, which is void")
        self._frame_size = (size[0], size[1])

    def _read(self, frame: Tensor, slots: SlotKeys | None) -> tuple[list[LayerReading], list[Comparison]]:
        """The layers' readings of a frame under the clip's prompt, with what the slots need, and what is compared."""
        images = frame.permute(2, 0, 1)[None].to(self.backbone.device).float() / 255
        readings = self.backbone.read_frames(
            pad_to_stride(images, self.backbone.stride),
            self._generator,
            condition=self.adapter.condition(self._next_index),
            cross=slots.keys.keys() if slots else (),
            stopwatch=self.stopwatch,
        )
        with self.stopwatch.stage("kernel"):
            weights = self.adapter.head_weights
            return readings, comparisons(readings, affinity=self.affinity, heads=self.heads, weights=weights)

    def _weighed(self, labels: Tensor, readings: Sequence[LayerReading], slots: SlotKeys) -> Tensor:
        """Propagated labels, weighed with what the prompt's slots say of this frame."""
        queries = {r.name: r.prompt_queries[0] for r in readings if r.prompt_queries is not None}
        grid = (labels.shape[-2], labels.shape[-1])
        likely = slot_probabilities(queries, slots, self.object_ids, grid)
        return with_evidence(labels, likely, self.adapter.slot_weight)

    def _propagate(
        self, compared: Sequence[Comparison], grid: tuple[int, int]
    ) -> tuple[Float[Tensor, "channels rows columns"], Float[Tensor, "points rows columns"]]:
        """Labels and points propagated to this frame, on the finest grid; each from the frames that know it."""
        device = self.backbone.device
        labels, heat = torch.zeros(0, *grid, device=device), torch.zeros(0, *grid, device=device)
        for known, remembered in self.memory.epochs():
            channels, points = known
            carried = self._carried(compared, known, remembered, grid)
            fresh = list(range(len(labels), channels))
            if len(labels):
                labels = F.pad(labels, (0, 0, 0, 0, 0, len(fresh)))
                labels = merge_given(labels, carried[fresh], fresh)
            else:
                labels = carried[:channels]
            heat = torch.cat([heat, carried[channels + len(heat) : channels + points]])
        return labels, heat

    def _carried(
        self,
        compared: Sequence[Comparison],
        known: tuple[int, int],
        remembered: Sequence[RememberedFrame],
        grid: tuple[int, int],
    ) -> Float[Tensor, "channels rows columns"]:
        """Labels, then points, that all heads propagate from these frames of the memory."""
        total = torch.zeros(sum(known), *grid, device=self.backbone.device)
        for layer, one in enumerate(compared):
            used = one.shares.nonzero()[:, 0]
            if not len(used):
                continue
            factor = downsampling(grid[0], one.queries.shape[1])
            per_head = propagate(
                _heads(one.queries, used),
                [_heads(frame.keys[layer], used) for frame in remembered],
                [frame.labels_of(layer, known) for frame in remembered],
                temperature=self.temperature,
                radius=None if self.radius is None else -(-self.radius // factor),
                top_k=self.top_k,
            )
            carried = torch.einsum("h,hyxc->cyx", one.shares[used].to(per_head), per_head)
            total += unpooled(carried[None], grid)[0]
        return total

    def _refined(self, labels: Tensor, frame: Tensor, given: Tensor | None) -> SoftLabels:
        """Labels with the frame's size, and sharpened where there is a refiner and something to sharpen."""
        assert self._frame_size is not None
        stride = self._frame_stride((labels.shape[-2], labels.shape[-1]))
        soft = SoftLabels(labels, self.object_ids, self._frame_size, stride, self.min_confidence, given)
        if self.refiner is None or not self._attended or not self.object_ids:
            return soft
        with self.stopwatch.stage("refine"):
            refined = self.refiner.refine(frame.to(labels.device), soft)
            self.refinements.update(refined.outcomes)
            if self.refiner.feedback:
                labels = on_tokens(refined.probabilities, stride)
        return replace(soft, probabilities=labels, refined=refined.probabilities)

    def _with_points(
        self, heat: Tensor | None, points: Sequence[Keypoint], grid: tuple[int, int]
    ) -> Float[Tensor, "points rows columns"]:
        """The heat of all points, in which those of `points` are where they are given."""
        known = len(self.point_names)
        self.point_names += tuple(one.name for one in points if one.name not in self.point_names)
        device = self.backbone.device
        fresh = torch.zeros(len(self.point_names) - known, *grid, device=device)
        heat = fresh if heat is None else torch.cat([heat, fresh])
        if points:
            places = [self.point_names.index(one.name) for one in points]
            shown = discs([(one.x, one.y) for one in points], grid, self._frame_stride(grid))
            heat[places] = shown.to(heat)
        return heat

    def _with_given(self, labels: Tensor | None, given: Tensor | None, grid: tuple[int, int]) -> Tensor:
        if given is None and labels is not None:
            return labels
        ids = [] if given is None else [int(i) for i in given.unique() if i]
        self.object_ids += tuple(i for i in ids if i not in self.object_ids)
        channels = [1 + self.object_ids.index(i) for i in ids]
        if labels is None:
            labels = torch.zeros(1, *grid, device=self.backbone.device)
            labels[0] = 1
        if given is None:
            return labels  # points alone are followed
        labels = F.pad(labels, (0, 0, 0, 0, 0, 1 + len(self.object_ids) - len(labels)))
        return merge_given(
            labels, labels_of_mask(given.to(labels.device), ids, self._frame_stride(grid)), channels
        )

    def _remember(
        self, keys: Sequence[Tensor], labels: Tensor, heat: Tensor, noise: Tensor, *, given: bool
    ) -> None:
        both = torch.cat([labels, heat])
        on_grids = [pooled(both, (k.shape[1], k.shape[2])).permute(1, 2, 0) for k in keys]
        channels = len(labels)
        self.memory.add(
            RememberedFrame(
                self._next_index,
                given,
                keys=tuple(k.contiguous() for k in keys),
                labels=tuple(one[..., :channels].contiguous() for one in on_grids),
                points=tuple(one[..., channels:].contiguous() for one in on_grids),
                noise=noise,
            )
        )
        self._next_index += 1

    def _frame_stride(self, grid: tuple[int, int]) -> int:
        """Pixels per token of the finest layer read."""
        assert self._frame_size is not None
        padded = -(-self._frame_size[0] // self.backbone.stride)
        return self.backbone.stride * downsampling(padded, grid[0])


def _heads(tokens: Tensor, used: Tensor) -> Tensor:
    """Those of the used heads; not a copy where all are."""
    return tokens if len(used) == len(tokens) else tokens[used]
