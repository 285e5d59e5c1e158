"""Masks proposed by GrabCut (Rother et al., 2004), as OpenCV has it: the yardstick that learns nothing."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from drift.options import whole_number
from drift.refinement.refinement import Proposals

__all__ = ["GrabCutProposer"]

_SURE, _BLUR = 0.95, 1.0  # a pixel this probable stays; sigma of the soft edge that a hard mask is given
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


def _window(core: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the object's box and of what is around it."""
    spans = []
    for axis in (1, 0):
        places = np.nonzero(core.any(axis))[0]
        reach = int((places[-1] - places[0] + 1) * _REACH) + 4
        spans.append(slice(max(places[0] - reach, 0), places[-1] + 1 + reach))
    return spans[0], spans[1]
