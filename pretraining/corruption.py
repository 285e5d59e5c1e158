"""Corruption of exact masks into soft masks like those of label propagation."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float

__all__ = ["corrupted"]

_LEAST_IOU = 0.25  # a mask that has less in common with the object is drawn again, more mildly
_LEAST_STRENGTH = 0.05


def corrupted(
    cover: Float[np.ndarray, "rows columns"],
    others: Float[np.ndarray, "rows columns"],
    tokens: int,
    random: np.random.Generator,
    *,
    strength: float = 1.0,
) -> Float[np.ndarray, "rows columns"]:
    """A probability in [0, 1] for an object: on coarse tokens displaced, grown or shrunk, blurred, with parts
    missing, with parts of what is beside it or far away, with islands and holes.

    Args:
        cover: how much of each pixel the object covers, in [0, 1].
        others: how much of each other objects cover.
        tokens: across the longer side; the errors are as large as tokens are.
        random: draws the errors.
        strength: upper bound of the strength of the errors, in (0, 1].
    """
    while True:
        soft = _once(cover, others, tokens, strength, random)
        guess, truth = soft > 0.5, cover > 0.5
        if (guess & truth).sum() > _LEAST_IOU * (guess | truth).sum():
            return soft
        if strength < _LEAST_STRENGTH:
            return cover.astype(np.float32)  # thinner than tokens: they hold nothing of it
        strength *= 0.6


def _once(
    cover: np.ndarray, others: np.ndarray, tokens: int, strength: float, random: np.random.Generator
) -> np.ndarray:
    rows, columns = cover.shape
    scale = tokens / max(cover.shape)
    grid = (max(round(columns * scale), 1), max(round(rows * scale), 1))
    own = cv2.resize(cover.astype(np.float32), grid, interpolation=cv2.INTER_AREA)
    beside = cv2.resize(others.astype(np.float32), grid, interpolation=cv2.INTER_AREA)
    severity = strength * random.beta(1.5, 1.5)
    own = _without_parts(own, severity, random)
    own = _with_parts(own, beside, severity, random)
    own = _speckled(own, severity, random)
    own = _displaced(own, 3.5 * severity, random)
    own = _softened(own, severity, random)
    full = cv2.resize(own, (columns, rows), interpolation=cv2.INTER_LINEAR)
    return np.clip(full, 0, 1).astype(np.float32)


def _extent(mask: np.ndarray) -> float:
    """Square root of the object's area, in tokens."""
    return float(np.sqrt(max(mask.sum(), 1.0)))


def _blob(
    size: tuple[int, ...], centre: np.ndarray, radius: float, random: np.random.Generator
) -> np.ndarray:
    """Irregular blob with values in [0, 1], of about `radius` tokens."""
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    y, x = rows - centre[0], columns - centre[1]
    turn, stretch = random.uniform(0, np.pi), np.exp(random.uniform(-0.6, 0.6))
    u = (np.cos(turn) * x + np.sin(turn) * y) * stretch
    v = (np.cos(turn) * y - np.sin(turn) * x) / stretch
    lobes = 1 + 0.3 * np.sin(random.integers(2, 6) * np.arctan2(v, u) + random.uniform(0, 2 * np.pi))
    return 1 / (1 + np.exp(np.clip((np.hypot(u, v) / (radius * lobes) - 1) * radius * 1.5, -30, 30)))


def _somewhere(weight: np.ndarray, random: np.random.Generator) -> np.ndarray | None:
    """Random location (row, column) with positive `weight`, or None if there is none."""
    places = np.argwhere(weight > 0)
    return places[random.integers(len(places))] if len(places) else None


def _without_parts(own: np.ndarray, severity: float, random: np.random.Generator) -> np.ndarray:
    """Removes up to three parts of the object, at its boundary or inside."""
    for _ in range(random.binomial(3, 0.5 * severity)):
        centre = _somewhere(own > 0.5, random)
        if centre is not None:
            radius = max(_extent(own) * random.uniform(0.06, 0.45), 0.8)
            own = own * (1 - random.uniform(0.5, 1) * _blob(own.shape, centre, radius, random))
    return own


def _with_parts(
    own: np.ndarray, beside: np.ndarray, severity: float, random: np.random.Generator
) -> np.ndarray:
    """Adds up to four false regions: on other objects, at the object's boundary, or anywhere."""
    reach = cv2.dilate(own, np.ones((5, 5), np.uint8)) > 0.5
    places = {"neighbour": reach & (beside > 0.5), "edge": reach & (own < 0.5), "anywhere": own < 0.5}
    for _ in range(random.binomial(4, 0.45 * severity)):
        kind = random.choice(list(places))
        centre = _somewhere(places[str(kind)], random)
        if centre is not None:
            radius = max(_extent(own) * random.uniform(0.06, 0.6 if kind == "anywhere" else 0.35), 0.8)
            part = _blob(own.shape, centre, radius, random) * random.uniform(0.5, 1)
            own = np.maximum(own, part * (beside if kind == "neighbour" else 1))
    return own


def _speckled(own: np.ndarray, severity: float, random: np.random.Generator) -> np.ndarray:
    """Adds small false regions and holes; sometimes fragments the mask."""
    for _ in range(random.poisson(5 * severity)):
        centre = _somewhere(np.ones_like(own), random)
        assert centre is not None
        spot = _blob(own.shape, centre, random.uniform(0.7, 2.5), random) * random.uniform(0.5, 1)
        own = np.maximum(own, spot)
    for _ in range(random.poisson(3 * severity)):
        centre = _somewhere(own > 0.5, random)
        if centre is not None:
            own = own * (
                1 - _blob(own.shape, centre, random.uniform(0.7, 2), random) * random.uniform(0.5, 1)
            )
    if random.random() < 0.3 * severity:
        shreds = cv2.GaussianBlur(
            random.normal(0, 1, own.shape).astype(np.float32), (0, 0), random.uniform(1, 2.5)
        )
        own = own * (shreds > np.quantile(shreds, random.uniform(0.05, 0.4)))
    return own


def _displaced(own: np.ndarray, reach: float, random: np.random.Generator) -> np.ndarray:
    """Shifts the mask globally and locally, by up to about `reach` tokens."""
    rows, columns = np.mgrid[: own.shape[0], : own.shape[1]].astype(np.float32)
    lattice = int(random.integers(3, 12))
    local = random.normal(0, 0.45 * reach, (lattice, lattice, 2)).astype(np.float32)
    field = cv2.resize(local, own.shape[::-1], interpolation=cv2.INTER_CUBIC)
    shift = random.normal(0, 0.3 * reach, 2)
    return cv2.remap(
        own,
        columns + field[..., 0] + np.float32(shift[0]),
        rows + field[..., 1] + np.float32(shift[1]),
        cv2.INTER_LINEAR,
    )


def _softened(own: np.ndarray, severity: float, random: np.random.Generator) -> np.ndarray:
    """Blurs the mask, adds noise at the scale of tokens, and thresholds it softly at a random level."""
    blurred = cv2.GaussianBlur(own, (0, 0), random.uniform(0.3, 0.6 + 1.2 * severity))
    noise = cv2.GaussianBlur(random.normal(0, 1, own.shape), (0, 0), random.uniform(0.6, 1.5))
    level = 0.5 + random.uniform(-0.28, 0.28) * severity
    noisy = blurred + 0.35 * severity * random.random() * noise * cv2.GaussianBlur(
        own * (1 - own) * 4, (0, 0), 1.5
    )
    width = random.uniform(0.06, 0.25)
    return 1 / (1 + np.exp(-np.clip((noisy - level) / width, -30, 30)))
