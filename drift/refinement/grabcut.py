"""Masks proposed by GrabCut (Rother et al., 2004), as OpenCV has it: the yardstick that learns nothing."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from drift.clip import ObjectPrompt
from drift.options import whole_number
from drift.refinement.refinement import Proposals

__all__ = ["GrabCutProposer", "cut_out"]

_SURE, _BLUR = 0.95, 1.0  # a pixel this probable stays; sigma of the soft edge that a hard mask is given
_NEAR, _CUTS = 0.1, 5  # of the frame's longer side: how far from a click its object reaches; cuts from there
_REACH = 0.5  # of the object's box, on each side: beyond it all is background


class GrabCutProposer:
    """One mask for each object: a graph cut between two colour models, started from the soft mask.

    Args:
        side: to which the longer side of a frame is reduced, in pixels.
        iterations: of fitting the colour models and cutting.

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
        cut = np.stack([self._cut(picture, soft[channel]) for channel in objects])
        return Proposals(
            torch.from_numpy(cut)[:, None].to(probabilities), torch.ones(len(objects), 1).to(probabilities)
        )

    def segment(
        self, frame: UInt8[Tensor, "height width 3"], prompt: ObjectPrompt
    ) -> Bool[Tensor, "height width"]:
        """See `Segmenter.segment`."""
        return torch.from_numpy(cut_out(frame.cpu().numpy(), prompt))

    def _cut(self, picture: np.ndarray, soft: np.ndarray) -> np.ndarray:
        """The object's mask with soft edges; the soft mask as it is where there is nothing to tell apart."""
        window = _window(soft > 0.5)
        part = soft[window]
        labels = np.select(
            [part >= _SURE, part > 0.5, part > 1 - _SURE],
            [cv2.GC_FGD, cv2.GC_PR_FGD, cv2.GC_PR_BGD],
            default=cv2.GC_BGD,
        ).astype(np.uint8)
        inside = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
        if inside.all() or not inside.any():
            return soft
        ground, thing = np.zeros((1, 65)), np.zeros((1, 65))  # mixtures of colours, which OpenCV fills
        cv2.setRNGSeed(0)
        colours = np.ascontiguousarray(picture[window])
        cv2.grabCut(colours, labels, (0, 0, 1, 1), ground, thing, self.iterations, cv2.GC_INIT_WITH_MASK)
        whole = np.zeros_like(soft)
        whole[window] = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
        return cv2.GaussianBlur(whole, (0, 0), _BLUR)


def cut_out(
    picture: UInt8[np.ndarray, "height width 3"], prompt: ObjectPrompt
) -> Bool[np.ndarray, "height width"]:
    """The object that a box or clicks show, by its colours: within the box, or else near the clicks on it."""
    size = picture.shape[0], picture.shape[1]
    near = _distance(size, [place for place, on in _clicks(prompt) if on])
    off = _distance(size, [place for place, on in _clicks(prompt) if not on])
    reach, spot = _NEAR * max(size), max(2.0, max(size) / 200)
    if prompt.box is None:
        labels = np.select([near < reach, near < 2 * reach], [cv2.GC_PR_FGD, cv2.GC_PR_BGD], cv2.GC_BGD)
    else:
        left, top, right, bottom = (round(side) for side in prompt.box)
        labels = np.full(size, cv2.GC_BGD)
        labels[top:bottom, left:right] = cv2.GC_PR_FGD
    labels = np.select([off < spot, near < spot], [cv2.GC_BGD, cv2.GC_FGD], labels).astype(np.uint8)
    if (labels == cv2.GC_PR_FGD).any() and (labels == cv2.GC_BGD).any():
        ground, thing = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.setRNGSeed(0)
        cv2.grabCut(picture, labels, (0, 0, 1, 1), ground, thing, _CUTS, cv2.GC_INIT_WITH_MASK)
    found = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return found if prompt.box is not None else _touched(found, near < spot)


def _clicks(prompt: ObjectPrompt) -> list[tuple[tuple[float, float], bool]]:
    return list(zip(prompt.points, prompt.inside, strict=True))


def _distance(size: tuple[int, int], places: list[tuple[float, float]]) -> np.ndarray:
    """Of every pixel to the nearest place, in pixels."""
    free = np.ones(size, dtype=np.uint8)
    for x, y in places:
        free[min(round(y), size[0] - 1), min(round(x), size[1] - 1)] = 0
    return cv2.distanceTransform(free, cv2.DIST_L2, 5) if places else np.full(size, np.inf, np.float32)


def _touched(mask: np.ndarray, spots: np.ndarray) -> np.ndarray:
    """The parts of a mask that hold a click."""
    _, parts = cv2.connectedComponents(mask.astype(np.uint8))
    return np.isin(parts, np.setdiff1d(np.unique(parts[spots]), 0))


def _window(core: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the object's box and of what is around it."""
    spans = []
    for axis in (1, 0):
        places = np.nonzero(core.any(axis))[0]
        reach = int((places[-1] - places[0] + 1) * _REACH) + 4
        spans.append(slice(max(places[0] - reach, 0), places[-1] + 1 + reach))
    return spans[0], spans[1]
