"""`Refinement`: what every way of sharpening masks has in common; the ways are `Proposer`s."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from drift.options import choice, share
from drift.propagation.labels import SoftLabels
from drift.propagation.refiner import Refined
from drift.refinement.gates import Gates, chosen
from drift.refinement.prompted import Segmenter

__all__ = ["Proposals", "Proposer", "Refinement", "merged"]

_LEAST = 1e-4  # of probabilities whose logits are taken


class Proposals(NamedTuple):
    """Masks proposed for several objects, on a grid of the proposer's own that covers the whole frame.

    Attributes:
        probabilities: of each mask's pixels.
        scores: what the proposer thinks of each mask, in [0, 1].
    """

    probabilities: Float[Tensor, "objects proposals rows columns"]
    scores: Float[Tensor, "objects proposals"]


class Proposer(Segmenter, Protocol):
    """Proposes masks for objects that are roughly known, or shown by boxes and clicks."""

    def grid(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the grid on which masks are taken and proposed for frames of this height and width."""
        ...

    def propose(
        self,
        frame: UInt8[Tensor, "height width 3"],
        probabilities: Float[Tensor, "channels rows columns"],
        objects: list[int],
    ) -> Proposals:
        """Masks for each of `objects`.

        Args:
            frame: RGB.
            probabilities: on the grid, background first.
            objects: channels, each with at least one pixel that is more probably it than not.
        """
        ...


class Refinement(nn.Module):
    """Has masks proposed for all objects of a frame, takes those that pass the gates, and settles who has what pixel.

    Args:
        proposer: proposes them.
        gates: what is taken.
        trust: how much a mask that is taken counts, from 0 to 1; the rest is the propagated mask.
        feedback: whether refined masks are remembered; see `Refiner`.

    Raises:
        OptionError: an option is not allowed.
    """

    def __init__(
        self, proposer: Proposer, *, gates: Gates, trust: float = 1.0, feedback: bool = False
    ) -> None:
        choice("feedback", feedback, (True, False))
        share("trust", trust)
        super().__init__()
        self.proposer, self.gates, self.trust, self.feedback = proposer, gates, trust, feedback

    @torch.inference_mode()
    def refine(self, frame: UInt8[Tensor, "height width 3"], labels: SoftLabels) -> Refined:
        """See `Refiner.refine`."""
        propagated = labels.upsampled()
        grid = self.proposer.grid(labels.frame_size)
        coarse = F.interpolate(propagated[None], grid, mode="area")[0]
        given = set() if labels.given is None else set(labels.given.unique().tolist())
        open_ones = [n for n, i in enumerate(labels.object_ids, start=1) if i not in given]
        present = labels.present(propagated)
        seen = present & (coarse[1:] > 0.5).flatten(1).any(1)
        asked = [n for n in open_ones if seen[n - 1]]
        outcomes = ["lost"] * (len(open_ones) - len(asked))
        if not asked:
            return Refined(propagated, tuple(outcomes))
        proposals = self.proposer.propose(frame, coarse, asked)
        places, judged = chosen(
            proposals.probabilities > 0.5, proposals.scores, coarse[asked] > 0.5, self.gates
        )
        taken = [row for row, outcome in enumerate(judged) if outcome == "refined"]
        if taken:
            channels = [asked[row] for row in taken]
            sharp = proposals.probabilities[taken, [places[row] for row in taken]]
            mixed = _mixed(coarse[channels], sharp, self.trust)
            full = F.interpolate(mixed[None], labels.frame_size, mode="bilinear", align_corners=False)[0]
            propagated[1:][~present] = 0  # what is absent claims nothing
            propagated = merged(propagated, full, channels)
        return Refined(propagated, (*outcomes, *judged))


def _mixed(propagated: Tensor, sharp: Tensor, trust: float) -> Tensor:
    """Between both by their logits: a mask that is sure has the say over one that is not."""
    if trust == 1:
        return sharp
    own, other = (mask.clamp(_LEAST, 1 - _LEAST).logit() for mask in (propagated, sharp))
    return torch.lerp(own, other, trust).sigmoid()


def merged(
    propagated: Float[Tensor, "channels height width"],
    sharp: Float[Tensor, "objects height width"],
    objects: list[int],
) -> Float[Tensor, "channels height width"]:
    """Propagated probabilities in which some objects' are replaced, each pixel's channels still summing to 1.

    Each pixel is one object's or the background's: that object's whose claim, times its propagated
    probability, is the highest.

    Args:
        propagated: background first.
        sharp: probabilities of the refined objects, each for itself.
        objects: their channels.
    """
    with_background = propagated[:1] + propagated[1:]
    claims = propagated[1:] / with_background.clamp(min=1e-6)  # each beside the background alone
    claims[[n - 1 for n in objects]] = sharp
    worth = claims * (propagated[1:] + 1e-3)
    owned = worth == worth.amax(0, keepdim=True)  # argmax over few channels is many times slower
    shared = torch.where(owned, claims / owned.sum(0, keepdim=True), 0.0)
    return torch.cat([1 - shared.sum(0, keepdim=True), shared])
