"""Mask proposals by GrabCut (Rother et al., 2004), OpenCV's implementation: a baseline without learned weights."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from drift.clip import ObjectPrompt
from drift.options import whole_number
from drift.refinement.refinement import Proposals

__all__ = ["GrabCutProposer", "segment_by_colour"]

_CERTAIN = 0.95  # pixels at or above this probability are fixed as foreground, below 1 - this as background
_BLUR = 1.0  # standard deviation of the blur that makes a hard mask soft, in pixels
_RADIUS = 0.1  # around a point prompt, probable foreground, relative to the frame's longer side
_PROMPT_ITERATIONS = 5
_MARGIN = 0.5  # on each side of the object's box, relative to its sides; pixels beyond are background


class GrabCutProposer:
    """Proposes one mask per object: a graph cut with two colour models, initialized from the soft mask.

    Args:
        side: maximum length of the longer side of a frame, in pixels; larger frames are downsampled.
        iterations: rounds of fitting the colour models and cutting.

    Raises:
        OptionError: an option is not allowed.
    """

    def __init__(self, *, side: int = 428, iterations: int = 2) -> None:
        whole_number("side", side, minimum=16)
        whole_number("iterations", iterations, minimum=1)
        self.side, self.iterations = side, iterations

    def grid(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """See `Proposer.grid`."""
        scale = min(self.side / max(frame_size), 1)
        return max(round(frame_size[0] * scale), 1), max(round(frame_size[1] * scale), 1)

    def propose(
        self,
        frame: UInt8[Tensor, "height width 3"],
        probabilities: Float[Tensor, "channels rows columns"],
        objects: list[int],
    ) -> Proposals:
        """See `Proposer.propose`."""
        rows, columns = probabilities.shape[-2:]
        picture = cv2.resize(frame.cpu().numpy(), (columns, rows), interpolation=cv2.INTER_AREA)
        soft = probabilities.cpu().numpy()
        masks = torch.from_numpy(np.stack([self._cut(picture, soft[channel]) for channel in objects]))
        return Proposals(masks[:, None].to(probabilities), torch.ones(len(objects), 1).to(probabilities))

    def segment(
        self, frame: UInt8[Tensor, "height width 3"], prompt: ObjectPrompt
    ) -> Bool[Tensor, "height width"]:
        """See `Segmenter.segment`."""
        return torch.from_numpy(segment_by_colour(frame.cpu().numpy(), prompt))

    def _cut(self, picture: np.ndarray, soft: np.ndarray) -> np.ndarray:
        """The object's mask with soft edges; `soft` itself if all its pixels, or none, are foreground."""
        window = _window(soft > 0.5)
        part = soft[window]
        labels = np.select(
            [part >= _CERTAIN, part > 0.5, part > 1 - _CERTAIN],
            [cv2.GC_FGD, cv2.GC_PR_FGD, cv2.GC_PR_BGD],
            default=cv2.GC_BGD,
        ).astype(np.uint8)
        foreground = _foreground(labels)
        if foreground.all() or not foreground.any():
            return soft
        mask = np.zeros_like(soft)
        mask[window] = _grabcut(np.ascontiguousarray(picture[window]), labels, self.iterations)
        return cv2.GaussianBlur(mask, (0, 0), _BLUR)


def segment_by_colour(
    picture: UInt8[np.ndarray, "height width 3"], prompt: ObjectPrompt
) -> Bool[np.ndarray, "height width"]:
    """GrabCut inside the box of a prompt or, without a box, around its positive points.

    Args:
        picture: RGB.
        prompt: box and points, in pixels of the picture.
    """
    size = picture.shape[0], picture.shape[1]
    points = list(zip(prompt.points, prompt.inside, strict=True))
    positive = _distance(size, [point for point, inside in points if inside])
    negative = _distance(size, [point for point, inside in points if not inside])
    radius, disk = _RADIUS * max(size), max(2.0, max(size) / 200)
    if prompt.box is None:
        near = [positive < radius, positive < 2 * radius]
        labels = np.select(near, [cv2.GC_PR_FGD, cv2.GC_PR_BGD], cv2.GC_BGD)
    else:
        left, top, right, bottom = (round(edge) for edge in prompt.box)
        labels = np.full(size, cv2.GC_BGD)
        labels[top:bottom, left:right] = cv2.GC_PR_FGD
    labels = np.select([negative < disk, positive < disk], [cv2.GC_BGD, cv2.GC_FGD], labels).astype(np.uint8)
    undecided = (labels == cv2.GC_PR_FGD).any() and (labels == cv2.GC_BGD).any()
    mask = _grabcut(picture, labels, _PROMPT_ITERATIONS) if undecided else _foreground(labels)
    return mask if prompt.box is not None else _components_at(mask, positive < disk)


def _grabcut(picture: np.ndarray, labels: np.ndarray, iterations: int) -> np.ndarray:
    """The foreground after graph cuts that start from `labels`, which is overwritten."""
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))  # of the background's and the foreground's colours
    cv2.grabCut(picture, labels, (0, 0, 1, 1), *models, iterations, cv2.GC_INIT_WITH_MASK)
    return _foreground(labels)


def _foreground(labels: np.ndarray) -> np.ndarray:
    return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)


def _distance(size: tuple[int, int], points: list[tuple[float, float]]) -> np.ndarray:
    """Distance of every pixel to the nearest point, in pixels; infinite without points."""
    free = np.ones(size, dtype=np.uint8)
    for x, y in points:
        free[min(round(y), size[0] - 1), min(round(x), size[1] - 1)] = 0
    return cv2.distanceTransform(free, cv2.DIST_L2, 5) if points else np.full(size, np.inf, np.float32)


def _components_at(mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The connected components of a mask that intersect `seeds`."""
    _, components = cv2.connectedComponents(mask.astype(np.uint8))
    return np.isin(components, np.setdiff1d(np.unique(components[seeds]), 0))


def _window(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the object's box with a margin."""
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    down, across = int(height * _MARGIN) + 4, int(width * _MARGIN) + 4
    return slice(max(top - down, 0), top + height + down), slice(max(left - across, 0), left + width + across)
