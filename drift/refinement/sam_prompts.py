"""Prompts for Segment Anything from the soft mask of an object; pure functions.

See "SAM-guided mask refinement" in `docs/method.md`. Coordinates are x, y in pixels of Segment Anything's mask grid,
whose side is a quarter of the model input's; pixel centres are at integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

from drift.configuration import groups
from drift.configuration.checking import check_fields
from drift.errors import OptionError

__all__ = [
    "PromptSettings",
    "Prompts",
    "bounding_box",
    "main_components",
    "mask_logits",
    "negative_points",
    "positive_points",
    "prompts_of",
    "prompts_of_object",
]

_POSITIVE, _NEGATIVE, _PADDING = 1, 0, -1  # Segment Anything's point labels
_ABSENT = 0.2  # negative points lie where the object's probability is below this
_ISLAND = 0.03  # components smaller than this, relative to the largest one's area, are ignored
_INNER, _OUTER = 0.04, 0.15  # radii of the ring of negative points, relative to the box's diagonal


@dataclass(frozen=True)
class PromptSettings:
    """The prompts that are made for each object.

    Attributes:
        box: whether to prompt with the bounding box.
        margin: on each side of the box, relative to the box's side.
        positive_points: maximum number of points inside the object; 0 disables them.
        negative_points: maximum number of points outside the object; 0 disables them.
        mask: whether to prompt with the soft mask.
        mask_limit: the mask's logits are clamped to ± this.
        seed: for breaking ties between points.

    Raises:
        OptionError: a value is out of range, or no prompt is left that locates the object.
    """

    box: bool = True
    margin: float = 0.05
    positive_points: int = 4
    negative_points: int = 4
    mask: bool = True
    mask_limit: float = 8.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, groups.Prompted)
        if not (self.box or self.mask or self.positive_points):
            raise OptionError(
                "box",
                self.box,
                "true where mask=false and positive_points=0, as some prompt must locate the object",
            )


@dataclass(frozen=True)
class Prompts:
    """The prompts of an object.

    Attributes:
        box: left, top, right, bottom.
        points: x, y.
        labels: 1 for points inside the object, 0 outside, -1 for padding.
        logits: of the soft mask.
    """

    box: Float[np.ndarray, " 4"]
    points: Float[np.ndarray, "points 2"]
    labels: Int[np.ndarray, " points"]
    logits: Float[np.ndarray, "rows columns"]


def prompts_of(
    probability: Float[np.ndarray, "rows columns"],
    others: Float[np.ndarray, "rows columns"],
    settings: PromptSettings,
) -> Prompts:
    """All prompts of an object; box and logits are made even if `settings` disables them.

    Args:
        probability: of the object, in [0, 1], above 0.5 in at least one pixel.
        others: maximum of the other objects' probabilities; 0 if there are none.
        settings: numbers of points, margin, limit of the logits, and seed.
    """
    core = main_components(probability > 0.5)
    random = np.random.default_rng(settings.seed)
    inside = positive_points(np.where(core, probability, 0), settings.positive_points, random)
    outside = negative_points(probability, others, settings.negative_points, random)
    count = settings.positive_points + settings.negative_points
    padding = np.zeros((count - len(inside) - len(outside), 2), np.float32)
    labels = np.repeat([_POSITIVE, _NEGATIVE, _PADDING], [len(inside), len(outside), len(padding)])
    logits = mask_logits(probability, settings.mask_limit)
    points = np.concatenate([inside, outside, padding])
    return Prompts(bounding_box(core, settings.margin), points, labels, logits)


def prompts_of_object(
    probabilities: Float[np.ndarray, "channels rows columns"], channel: int, settings: PromptSettings
) -> Prompts:
    """Prompts of the object in `channel`; channel 0 is the background, all others are other objects."""
    others = np.delete(probabilities[1:], channel - 1, axis=0)
    highest = others.max(0) if len(others) else np.zeros_like(probabilities[0])
    return prompts_of(probabilities[channel], highest, settings)


def main_components(mask: Bool[np.ndarray, "rows columns"]) -> Bool[np.ndarray, "rows columns"]:
    """The mask without components of less than 3 % of the largest one's area, which would enlarge the box."""
    count, components, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA]
    areas[0] = 0  # the background
    kept = areas >= max(_ISLAND * areas.max(), 1)
    return kept[components] if count > 1 else mask


def bounding_box(mask: Bool[np.ndarray, "rows columns"], margin: float) -> Float[np.ndarray, " 4"]:
    """Left, top, right, bottom of a mask's pixels with a relative margin, clipped to the grid."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    low = np.array([columns[0], rows[0]], np.float32) - 0.5
    high = np.array([columns[-1], rows[-1]], np.float32) + 0.5
    padding = margin * (high - low)
    limits = np.array(mask.shape[::-1], np.float32) - 0.5
    return np.concatenate([np.maximum(low - padding, -0.5), np.minimum(high + padding, limits)])


def positive_points(
    probability: Float[np.ndarray, "rows columns"], count: int, random: np.random.Generator
) -> Float[np.ndarray, "points 2"]:
    """At most `count` points far from the object's edge and from each other; thin components receive points too.

    Args:
        probability: of the object, in [0, 1].
        count: maximum number of points.
        random: breaks ties.
    """
    core = np.pad((probability > 0.5).astype(np.uint8), 1)
    depth = cv2.distanceTransform(core, cv2.DIST_L2, 5)[1:-1, 1:-1]
    return _spread(depth * probability, count, random)


def negative_points(
    probability: Float[np.ndarray, "rows columns"],
    others: Float[np.ndarray, "rows columns"],
    count: int,
    random: np.random.Generator,
) -> Float[np.ndarray, "points 2"]:
    """At most `count` points: up to half of them on other objects, the rest in a ring around the object.

    Args:
        probability, count, random: as in `positive_points`.
        others: maximum of the other objects' probabilities.
    """
    occupied = (others > 0.5) & (probability < _ABSENT)
    on_others = _spread(occupied.astype(np.float32), count // 2 if occupied.any() else 0, random)
    core = probability > 0.5
    distance = cv2.distanceTransform((~core).astype(np.uint8), cv2.DIST_L2, 5)
    rows, columns = np.nonzero(core)
    diagonal = float(np.hypot(np.ptp(rows) + 1, np.ptp(columns) + 1)) if len(rows) else 0.0
    ring = (distance > max(_INNER * diagonal, 2)) & (distance < max(_OUTER * diagonal, 6))
    around = _spread((ring & (probability < _ABSENT)).astype(np.float32), count - len(on_others), random)
    return np.concatenate([on_others, around])


def mask_logits(
    probability: Float[np.ndarray, "rows columns"], limit: float
) -> Float[np.ndarray, "rows columns"]:
    """log(p / (1 - p)), clamped to ± `limit`."""
    lowest = 1 / (1 + np.exp(limit))
    clamped = np.clip(probability, lowest, 1 - lowest)
    return np.log(clamped / (1 - clamped)).astype(np.float32)


def _spread(
    weight: Float[np.ndarray, "rows columns"], count: int, random: np.random.Generator
) -> Float[np.ndarray, "points 2"]:
    """Farthest-point sampling, weighted: maximizes √weight times the distance to the points chosen so far."""
    rows, columns = np.nonzero(weight > 0)
    chosen: list[int] = []
    # Noise breaks ties: without it, points on a plain ring always start in its upper left corner.
    score = np.sqrt(weight[rows, columns]) * random.uniform(0.99, 1, len(rows))
    nearest = np.full(len(rows), np.inf)
    while len(chosen) < min(count, len(rows)):
        best = int((score if not chosen else score * nearest).argmax())
        chosen.append(best)
        nearest = np.minimum(nearest, np.hypot(rows - rows[best], columns - columns[best]))
    return np.stack([columns[chosen], rows[chosen]], axis=1).astype(np.float32)
