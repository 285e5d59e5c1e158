"""`Tracker`: follows objects through a clip, frame by frame, without access to later frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from drift.backbones.interface import Backbone, Features
from drift.clip import Keypoint
from drift.errors import InputError
from drift.options import choice, non_negative, positive
from drift.propagation.adapter import Adapter
from drift.propagation.heads import (
    Comparison,
    PropagationOptions,
    compare,
    mean_over_heads,
    propagate_by_head,
)
from drift.propagation.kernel import attention_maps
from drift.propagation.keypoints import discs
from drift.propagation.labels import (
    SoftLabels,
    downsampling,
    finest,
    hardened,
    labels_of_mask,
    merge_given,
    on_tokens,
    pad_to_stride,
    pooled,
    reweighted,
)
from drift.propagation.memory import MEMORY_LABELS, Memory, RememberedFrame
from drift.propagation.motion import (
    expected_labels,
    is_scene_cut,
    lookalikes,
    positions_of,
    with_motion_prior,
)
from drift.propagation.refiner import Refiner
from drift.propagation.slots import SlotKeys, slot_probabilities, weighted_by_slots
from drift.stopwatch import Stopwatch

__all__ = ["FrameFeatures", "Tracker", "TrackerState"]


@dataclass(frozen=True)
class TrackerState:
    """State of a tracker between two frames, without the keys, which are computed again from the frames.

    Attributes:
        next_index: index of the next frame.
        object_ids, point_names: objects and points known so far.
        frame_size: height and width of the clip's frames in pixels.
        remembered: the memory, without keys.
    """

    next_index: int
    object_ids: tuple[int, ...]
    point_names: tuple[str, ...]
    frame_size: tuple[int, int] | None
    remembered: Sequence[RememberedFrame]


@dataclass(frozen=True)
class FrameFeatures:
    """Features of a frame, as `Tracker.features` computes them.

    Attributes:
        layers: features of the backbone's layers, then of the slots' layers that are not among them.
        slots: the slots that are used at this frame, or None.
    """

    layers: Sequence[Features]
    slots: SlotKeys | None


class Tracker:
    """Propagates masks through a clip. Make a new tracker for each clip.

    Args:
        backbone: computes the features of a frame.
        affinity, heads, temperature, top_k, radius, follow: see `PropagationOptions`.
        memory_frames, given_frames, long_term_frames, long_term_interval: numbers of the newest predicted frames, of
            frames with a given mask, and of older predicted frames in the memory, and the interval of the latter; see
            `Memory`.
        memory_labels: what the memory keeps of labels, see `MEMORY_LABELS`.
        motion_prior: whether similar objects are distinguished by their motion; see `with_motion_prior`.
        detect_cuts: whether objects get empty masks after a scene cut, until the scene returns; see `is_scene_cut`.
        background_weight: factor of the background's propagated probability, above 0; 1 leaves labels unchanged. A
            value just below 1 compensates for the probability that objects lose with each propagation.
        min_confidence: an object whose probability is below this everywhere gets an empty mask.
        adapter: prompts and head weights learned for the clip; None for the backbone's prompt and equal weights.
        refiner: refines every predicted mask; None to leave masks as propagated.
        seed: seed of the noise that the backbone adds; the noise of a frame depends on the seed and its index only.
        stopwatch: measures the stages `features`, `kernel` and `refine`.

    Attributes:
        object_ids: objects known so far.
        point_names: points known so far.
        refinements: outcome counts of refinement.

    Raises:
        OptionError: an option is out of range.

    Example:
        >>> from drift import Tracker, load_backbone
        >>> tracker = Tracker(load_backbone())
        >>> frames, mask = np.zeros((3, 64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
        >>> mask[16:48, 16:48] = 1
        >>> labels = tracker.step(frames[0], mask)
        >>> masks = [tracker.step(frame).mask() for frame in frames[1:]]
        >>> masks[0].shape
        torch.Size([64, 64])
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
        follow: bool = False,
        memory_frames: int = 7,
        given_frames: int = 8,
        long_term_frames: int = 0,
        long_term_interval: int = 4,
        memory_labels: str = "soft",
        motion_prior: bool = False,
        detect_cuts: bool = False,
        background_weight: float = 1.0,
        min_confidence: float = 0.0,
        adapter: Adapter | None = None,
        refiner: Refiner | None = None,
        seed: int = 0,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self.options = PropagationOptions(affinity, heads, temperature, top_k, radius, follow)
        positive("background_weight", background_weight)
        non_negative("min_confidence", min_confidence)
        choice("memory_labels", memory_labels, MEMORY_LABELS)
        self.backbone, self.memory_labels = backbone, memory_labels
        self.background_weight, self.min_confidence = background_weight, min_confidence
        self.motion_prior, self.detect_cuts = motion_prior, detect_cuts
        self.adapter, self.refiner = adapter or Adapter(), refiner
        self.refinements: Counter[str] = Counter()
        self.memory = Memory(memory_frames, given_frames, long_term_frames, long_term_interval)
        self.object_ids: tuple[int, ...] = ()
        self.point_names: tuple[str, ...] = ()
        self.stopwatch = stopwatch or Stopwatch()
        self._seed = seed
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
        features: FrameFeatures | None = None,
    ) -> SoftLabels:
        """Segments the next frame.

        Args:
            frame: RGB, of the same size as the clip's other frames.
            mask: object ids, 0 for the background. Required on the first frame. On a later frame it adds new objects
                or corrects known ones; objects that it does not contain are propagated.
            points: points to follow from this frame on, beside or instead of objects. A point with a known name is
                moved to the given position.
            features: the frame's features, where they were computed before; see `features`.

        Raises:
            InputError: neither a mask nor a point has been given, the first mask is empty, a point lies outside the
                frame, or sizes differ.
        """
        given = None if mask is None else torch.as_tensor(mask)
        self._check(tuple(frame.shape), given, points)
        if given is not None and not given.any():
            given = None  # on a later frame: it adds no object
        features = features or self.features([frame], [self._next_index])[0]
        with self.stopwatch.stage("kernel"):
            compared = self._comparisons(features)
        self._compared, self._attended = compared, self.memory.frames()
        grid = finest(one.grid for one in compared)
        with self.stopwatch.stage("kernel"):
            labels, heat = self._propagate(compared) if len(self.memory) else (None, None)
            if labels is not None and self.object_ids:
                labels = self._weighted(labels, features)
            labels = self._with_given(labels, given, grid)
            heat = self._with_points(heat, points, grid)
        soft = replace(
            self._refined(labels, torch.as_tensor(frame), given), points=heat, point_names=self.point_names
        )
        with self.stopwatch.stage("kernel"):
            keys = [one.keys for one in compared]
            self._remember(keys, soft.probabilities, heat, given=given is not None or bool(points))
        return soft

    @torch.inference_mode()
    def features(
        self,
        frames: Sequence[UInt8[np.ndarray, "height width 3"] | UInt8[Tensor, "height width 3"]],
        indices: Sequence[int],
        *,
        slots: bool = True,
    ) -> list[FrameFeatures]:
        """Computes the features of frames under the clip's prompt, with the queries of the slots' layers.

        They depend on neither masks nor the tracker's state, so that another thread can compute them ahead of `step`.
        Frames with the same size, prompt and layers are computed in one forward pass. The noise of a frame depends on
        the seed and its index only.

        Args:
            frames: RGB.
            indices: index in the clip of each frame.
            slots: whether the slots' layers are needed.

        Returns:
            The features of each frame, in order.
        """
        slot_keys = [self.adapter.slots_at(index) if slots else None for index in indices]
        prompts = [self.adapter.prompt_at(index) for index in indices]
        batches: dict[tuple, list[int]] = {}
        for i, frame in enumerate(frames):
            batches.setdefault((id(prompts[i]), id(slot_keys[i]), frame.shape), []).append(i)
        features: dict[int, FrameFeatures] = {}
        for batch in batches.values():
            keys = slot_keys[batch[0]]
            with self.stopwatch.stage("features"):
                images = torch.stack([torch.as_tensor(frames[i]) for i in batch])
                images = images.permute(0, 3, 1, 2).to(self.backbone.device).float() / 255
                layers = self.backbone.features(
                    pad_to_stride(images, self.backbone.stride),
                    [self._generator(indices[i]) for i in batch],
                    prompt=prompts[batch[0]],
                    cross=keys.keys.keys() if keys else (),
                )
            by_frame = zip(*(layer.split() for layer in layers), strict=True)
            features |= {i: FrameFeatures(split, keys) for i, split in zip(batch, by_frame, strict=True)}
        return [features[i] for i in range(len(frames))]

    def _generator(self, index: int) -> torch.Generator:
        """Random generator for the noise of a frame."""
        seed = np.random.SeedSequence([self._seed, index]).generate_state(1)[0]
        return torch.Generator().manual_seed(int(seed))

    def skip(self, frames: int) -> None:
        """Skips frames before the first given mask, so that frame indices stay those of the clip."""
        self._next_index += frames

    def remove(self, object_id: int) -> None:
        """Stops tracking an object. From the next frame on its pixels belong to the background, or to other objects.

        Raises:
            InputError: the object is not known.
        """
        if object_id not in self.object_ids:
            known = ", ".join(map(str, self.object_ids)) or "none"
            raise InputError(f"object {object_id} is not tracked; the tracked objects are: {known}")
        self.memory.forget(1 + self.object_ids.index(object_id))
        self.object_ids = tuple(known for known in self.object_ids if known != object_id)

    def state(self) -> TrackerState:
        """State from which a tracker with the same options can continue; see `restore`."""
        remembered = [replace(frame, keys=()) for frame in self.memory.frames()]
        return TrackerState(
            self._next_index,
            self.object_ids,
            self.point_names,
            self._frame_size,
            remembered,
        )

    @torch.inference_mode()
    def restore(
        self, state: TrackerState, frame_at: Callable[[int], UInt8[np.ndarray, "height width 3"]]
    ) -> None:
        """Continues from the state of a tracker with the same options; computes the remembered frames' keys again.

        Args:
            state: state of the other tracker.
            frame_at: returns the frame at an index, as it was passed to `step`.
        """
        self._frame_size = state.frame_size
        self.object_ids, self.point_names = state.object_ids, state.point_names
        for remembered in state.remembered:
            (features,) = self.features([frame_at(remembered.index)], [remembered.index], slots=False)
            compared = self._comparisons(features)
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

    @torch.inference_mode()
    def attention(
        self, pixels: Sequence[tuple[int, int]]
    ) -> tuple[list[int], dict[str, Float[Tensor, "pixels frames rows columns"]]]:
        """Attention of pixels of the last frame over the memory, for visualisation; see `attention_maps`.

        Args:
            pixels: row and column of each pixel.

        Returns:
            The indices of the memory frames and, by layer, each pixel's attention over them, which sums to 1. Both are
            empty after the first frame of a clip.
        """
        if not self._attended:
            return [], {}
        maps = {}
        for layer, one in enumerate(self._compared):
            stride = self._frame_stride(one.grid)
            rows, columns = (
                torch.tensor(axis, device=one.queries.device) // stride for axis in zip(*pixels, strict=True)
            )
            maps[one.layer] = attention_maps(
                one.queries[:, rows, columns],
                [frame.keys[layer] for frame in self._attended],
                temperature=self.options.temperature,
                weights=one.weights,
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

    def _comparisons(self, features: FrameFeatures) -> list[Comparison]:
        layers = features.layers[: len(self.backbone.layers)]
        return compare(layers, self.options, self.adapter.head_weights)

    def _weighted(self, labels: Tensor, features: FrameFeatures) -> Tensor:
        """Propagated labels weighted by `background_weight` and by the probabilities of the slots, if there are any."""
        if self.background_weight != 1:
            weights = labels.new_ones(len(labels), 1, 1)
            weights[0] = self.background_weight
            labels = reweighted(labels, weights)
        if features.slots is None:
            return labels
        queries = {f.layer: f.prompt_queries for f in features.layers if f.prompt_queries is not None}
        grid = (labels.shape[-2], labels.shape[-1])
        probabilities = slot_probabilities(queries, features.slots, self.object_ids, grid)
        return weighted_by_slots(labels, probabilities, self.adapter.slot_weight)

    def _propagate(
        self, compared: Sequence[Comparison]
    ) -> tuple[Float[Tensor, "channels rows columns"], Float[Tensor, "points rows columns"]]:
        """Labels and points of this frame, each propagated from the memory frames that know it."""
        grid = finest(one.grid for one in compared)
        labels = heat = torch.zeros(0, *grid, device=self.backbone.device)
        for known, remembered in self.memory.epochs():
            channels, points = known
            by_head = propagate_by_head(
                compared,
                [[frame.keys[layer] for frame in remembered] for layer in range(len(compared))],
                [[frame.labels_of(layer, known) for frame in remembered] for layer in range(len(compared))],
                self.options,
            )
            propagated = mean_over_heads(compared, by_head)
            new = list(range(len(labels), channels))
            if len(labels):
                labels = merge_given(F.pad(labels, (0, 0, 0, 0, 0, len(new))), propagated[new], new)
            else:
                labels = propagated[:channels]
            heat = torch.cat([heat, propagated[channels + len(heat) : channels + points]])
        if self.motion_prior and len(labels) > 2:
            labels = self._with_motion_prior(labels)
        if self.detect_cuts and self._is_cut(compared[0].keys):
            labels = self._without_visible_objects(labels)
        return labels, heat

    def _earlier(
        self, layer: int
    ) -> tuple[list[RememberedFrame], list[Float[Tensor, "rows columns channels"]]]:
        """Memory frames that know all objects, from oldest to newest, and their labels on the grid of a layer."""
        frames = sorted(self.memory.frames(), key=lambda frame: frame.index)
        known = frames[-1].known
        frames = [frame for frame in frames if frame.known >= known]
        return frames, [frame.labels_of(layer, known)[..., : known[0]] for frame in frames]

    def _with_motion_prior(
        self, labels: Float[Tensor, "channels rows columns"]
    ) -> Float[Tensor, "channels rows columns"]:
        """Labels with the motion prior of similar objects; unchanged if there are none."""
        newest = self.memory.frames()[-1]
        layer = [one.shape[:2] for one in newest.labels].index(labels.shape[1:])
        frames, earlier = self._earlier(layer)
        alike = lookalikes(frames[-1].keys[layer], earlier[-1])
        if not alike.any():
            return labels
        return with_motion_prior(labels, expected_labels(earlier, [frame.index for frame in frames]), alike)

    def _is_cut(self, keys: Tensor) -> bool:
        """Whether there is a scene cut before this frame; False unless the memory has the two previous frames."""
        by_index = {frame.index: frame.keys[0] for frame in self.memory.frames()}
        previous, before_previous = (by_index.get(self._next_index - n) for n in (1, 2))
        return (
            previous is not None
            and before_previous is not None
            and is_scene_cut(keys, previous, before_previous)
        )

    def _without_visible_objects(
        self, labels: Float[Tensor, "channels rows columns"]
    ) -> Float[Tensor, "channels rows columns"]:
        """Labels without the objects that are visible in the newest frame; their probability goes to the background."""
        visible = positions_of(self._earlier(0)[1])[:, -1].isfinite().all(1)
        labels = labels.clone()
        labels[1:][visible] = 0
        labels[0] = 1 - labels[1:].sum(0)
        return labels

    def _refined(self, labels: Tensor, frame: Tensor, given: Tensor | None) -> SoftLabels:
        """Labels with the frame's size, refined if there is a refiner and something was propagated."""
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
        """Heat of all points, with `points` at their given positions."""
        known = len(self.point_names)
        self.point_names += tuple(p.name for p in points if p.name not in self.point_names)
        device = self.backbone.device
        fresh = torch.zeros(len(self.point_names) - known, *grid, device=device)
        heat = fresh if heat is None else torch.cat([heat, fresh])
        if points:
            channels = [self.point_names.index(point.name) for point in points]
            heat[channels] = discs([(p.x, p.y) for p in points], grid, self._frame_stride(grid)).to(heat)
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
            return labels  # only points are followed
        labels = F.pad(labels, (0, 0, 0, 0, 0, 1 + len(self.object_ids) - len(labels)))
        return merge_given(
            labels, labels_of_mask(given.to(labels.device), ids, self._frame_stride(grid)), channels
        )

    def _remember(self, keys: Sequence[Tensor], labels: Tensor, heat: Tensor, *, given: bool) -> None:
        if self.memory_labels == "hard":
            labels = hardened(labels)
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
            )
        )
        self._next_index += 1

    def _frame_stride(self, grid: tuple[int, int]) -> int:
        """Pixels per token of a grid."""
        assert self._frame_size is not None
        padded = -(-self._frame_size[0] // self.backbone.stride)
        return self.backbone.stride * downsampling(padded, grid[0])
