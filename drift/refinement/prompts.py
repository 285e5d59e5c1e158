"""What Segment Anything is asked, made of one object's soft mask (design 2.7). Pure functions.

All work on the grid of Segment Anything's own mask prompts, whose side is a quarter of its input's. Points and
corners are x, y in pixels of that grid, a pixel's centre at whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int

from drift.options import choice, non_negative, whole_number

__all__ = [
    "PromptSettings",
    "Prompts",
    "box_around",
    "main_parts",
    "mask_logits",
    "negative_points",
    "positive_points",
    "prompts_of",
]

_NOTHING = -1  # Segment Anything's label of a point that is none
_POSITIVE, _NEGATIVE = 1, 0
_FAR = 0.2  # an object this improbable at most is not there: where negative points may lie
_ISLAND = 0.03  # of the largest part's area: parts that are smaller are strays
_NEAR, _WIDE = 0.04, 0.15  # of the box's diagonal: the ring around the object in which they lie


@dataclass(frozen=True)
class PromptSettings:
    """Which kinds of prompts are given, each of which can be left out.

    Attributes:
        box: whether the object's box is.
        margin: around the box, as a part of its sides.
        positive_points, negative_points: how many at most; 0 for none.
        mask: whether the soft mask is.
        mask_limit: of the mask's logits, which are cut off at ± this.
        seed: of the order in which points are chosen among equals.

    Raises:
        OptionError: a value is out of range.
    """

    box: bool = True
    margin: float = 0.05
    positive_points: int = 4
    negative_points: int = 4
    mask: bool = True
    mask_limit: float = 8.0
    seed: int = 0

    def __post_init__(self) -> None:
        choice("box", self.box, (True, False))
        choice("mask", self.mask, (True, False))
        non_negative("margin", self.margin)
        non_negative("mask_limit", self.mask_limit)
        whole_number("positive_points", self.positive_points, minimum=0)
        whole_number("negative_points", self.negative_points, minimum=0)
        whole_number("seed", self.seed, minimum=0)


@dataclass(frozen=True)
class Prompts:
    """The prompts for one object.

    Attributes:
        box: left, top, right, bottom.
        points, labels: x, y of each, and 1 inside the object, 0 outside it, -1 for a place that holds no point.
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
    """All prompts for an object that is somewhere more probable than not.

    Args:
        probability: of the object, in [0, 1].
        others: the highest of the other objects' probabilities; 0 where there is none.
        settings: how many points, and the margin; what is left out is computed nevertheless, but for points.
    """
    core = main_parts(probability > 0.5)
    random = np.random.default_rng(settings.seed)
    inside = positive_points(np.where(core, probability, 0), settings.positive_points, random)
    outside = negative_points(probability, others, settings.negative_points, random)
    wanted = settings.positive_points + settings.negative_points
    points = np.zeros((wanted, 2), np.float32)
    labels = np.full(wanted, _NOTHING)
    found = np.concatenate([inside, outside])
    points[: len(found)] = found
    labels[: len(inside)] = _POSITIVE
    labels[len(inside) : len(found)] = _NEGATIVE
    return Prompts(
        box_around(core, settings.margin), points, labels, mask_logits(probability, settings.mask_limit)
    )


def main_parts(mask: Bool[np.ndarray, "rows columns"]) -> Bool[np.ndarray, "rows columns"]:
    """The mask without islands that are tiny beside its largest part: strays, that would stretch the box."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA]
    areas[0] = 0  # the background
    kept = areas >= max(_ISLAND * areas.max(), 1)
    return kept[parts] if count > 1 else mask


def box_around(core: Bool[np.ndarray, "rows columns"], margin: float) -> Float[np.ndarray, " 4"]:
    """Left, top, right and bottom of the object with a margin, which does not leave the grid."""
    rows, columns = np.nonzero(core.any(1))[0], np.nonzero(core.any(0))[0]
    low = np.array([columns[0], rows[0]], np.float32) - 0.5
    high = np.array([columns[-1], rows[-1]], np.float32) + 0.5
    around = margin * (high - low)
    limits = np.array(core.shape[::-1], np.float32) - 0.5
    return np.concatenate([np.maximum(low - around, -0.5), np.minimum(high + around, limits)])


def positive_points(
    probability: Float[np.ndarray, "rows columns"], count: int, random: np.random.Generator
) -> Float[np.ndarray, "points 2"]:
    """Points far from the object's edge and from one another: the deepest, then each where no other is near.

    Thin and split objects have them too: what counts is the depth beside that of the deepest point.
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
    """Points on other objects, up to half of them, and in a ring of background around this one."""
    there = (others > 0.5) & (probability < _FAR)
    on_others = _spread(there.astype(np.float32), count // 2 if there.any() else 0, random)
    core = probability > 0.5
    away = cv2.distanceTransform((~core).astype(np.uint8), cv2.DIST_L2, 5)
    rows, columns = np.nonzero(core)
    diagonal = float(np.hypot(np.ptp(rows) + 1, np.ptp(columns) + 1)) if len(rows) else 0.0
    ring = (away > max(_NEAR * diagonal, 2)) & (away < max(_WIDE * diagonal, 6)) & (probability < _FAR)
    around = _spread(ring.astype(np.float32), count - len(on_others), random)
    return np.concatenate([on_others, around])


def mask_logits(
    probability: Float[np.ndarray, "rows columns"], limit: float
) -> Float[np.ndarray, "rows columns"]:
    """log(p / (1 - p)) between ± `limit`: what Segment Anything takes as a mask."""
    least = 1 / (1 + np.exp(limit))
    kept = np.clip(probability, least, 1 - least)
    return np.log(kept / (1 - kept)).astype(np.float32)


def _spread(
    weight: Float[np.ndarray, "rows columns"], count: int, random: np.random.Generator
) -> Float[np.ndarray, "points 2"]:
    """The heaviest place, then each time the one for which weight times distance to those chosen is the highest."""
    rows, columns = np.nonzero(weight > 0)
    chosen: list[int] = []
    # A little noise chooses among equals, so that a plain ring does not always begin in its upper left corner.
    worth = np.sqrt(weight[rows, columns]) * random.uniform(0.99, 1, len(rows))
    nearest = np.full(len(rows), np.inf)
    while len(chosen) < min(count, len(rows)):
        best = int((worth if not chosen else worth * nearest).argmax())
        chosen.append(best)
        nearest = np.minimum(nearest, np.hypot(rows - rows[best], columns - columns[best]))
    return np.stack([columns[chosen], rows[chosen]], axis=1).astype(np.float32)
