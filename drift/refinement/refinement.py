"""`Refinement`: gates and merges the masks that a `Proposer` proposes."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from drift.options import choice, share
from drift.propagation.labels import SoftLabels
from drift.propagation.refiner import Refined
from drift.refinement.gates import Gates, select
from drift.refinement.prompted import Segmenter

__all__ = ["Proposals", "Proposer", "Refinement", "merge"]

_EPSILON = 1e-4  # probabilities are clamped to [ε, 1 - ε] before their logits are taken


class Proposals(NamedTuple):
    """Masks proposed for several objects, on the proposer's grid.

    Attributes:
        probabilities: per pixel, in [0, 1].
        scores: the proposer's score of each mask, in [0, 1].
    """

    probabilities: Float[Tensor, "objects proposals rows columns"]
    scores: Float[Tensor, "objects proposals"]


class Proposer(Segmenter, Protocol):
    """Proposes masks for objects with a propagated mask, and segments objects from box and point prompts."""

    def grid(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the grid, which covers the whole frame, for frames of this height and width."""
        ...

    def propose(
        self,
        frame: UInt8[Tensor, "height width 3"],
        probabilities: Float[Tensor, "channels rows columns"],
        objects: list[int],
    ) -> Proposals:
        """Proposes masks.

        Args:
            frame: RGB, on any device.
            probabilities: on the grid, background first, on any device.
            objects: channels to refine; each is above 0.5 in at least one pixel.

        Returns:
            Proposals on the device of `probabilities`.
        """
        ...


class Refinement(nn.Module):
    """Refines the masks of a frame: proposes masks, rejects those that fail the gates, and resolves overlaps.

    Args:
        proposer: proposes masks.
        gates: thresholds at which a proposed mask is accepted.
        trust: weight of an accepted mask's logits, in [0, 1]; the propagated mask's logits have the rest.
        feedback: see `Refiner`.

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
        candidates = [n for n, i in enumerate(labels.object_ids, start=1) if i not in given]
        present = labels.present(propagated)
        visible = (present & (coarse[1:] > 0.5).flatten(1).any(1)).tolist()
        objects = [n for n in candidates if visible[n - 1]]
        lost = ["lost"] * (len(candidates) - len(objects))
        if not objects:
            return Refined(propagated, tuple(lost))
        proposals = self.proposer.propose(frame, coarse, objects)
        best, outcomes = select(
            proposals.probabilities > 0.5, proposals.scores, coarse[objects] > 0.5, self.gates
        )
        accepted = [row for row, outcome in enumerate(outcomes) if outcome == "refined"]
        if accepted:
            channels = [objects[row] for row in accepted]
            masks = proposals.probabilities[accepted, [best[row] for row in accepted]]
            masks = _mixed(coarse[channels], masks, self.trust)
            masks = F.interpolate(masks[None], labels.frame_size, mode="bilinear", align_corners=False)[0]
            propagated[1:][~present] = 0  # absent objects take no pixels
            propagated = merge(propagated, masks, channels)
        return Refined(propagated, (*lost, *outcomes))


def _mixed(propagated: Tensor, proposed: Tensor, trust: float) -> Tensor:
    """Linear interpolation of logits, in which the more confident of two masks prevails."""
    if trust == 1:
        return proposed
    start, end = (mask.clamp(_EPSILON, 1 - _EPSILON).logit() for mask in (propagated, proposed))
    return torch.lerp(start, end, trust).sigmoid()


def merge(
    propagated: Float[Tensor, "channels height width"],
    refined: Float[Tensor, "objects height width"],
    objects: list[int],
) -> Float[Tensor, "channels height width"]:
    """Replaces the probabilities of some objects and resolves overlaps.

    A pixel belongs to the background and to the one object for which the product of the object's probability
    against the background alone (`refined`, where given) and its propagated probability is highest.

    Args:
        propagated: background first; the channels of a pixel sum to 1.
        refined: probabilities of each refined object against the background.
        objects: channels of the refined objects.

    Returns:
        Probabilities, background first; the channels of a pixel sum to 1.
    """
    with_background = propagated[:1] + propagated[1:]
    alone = propagated[1:] / with_background.clamp(min=1e-6)
    alone[[n - 1 for n in objects]] = refined
    ranking = alone * (propagated[1:] + 1e-3)
    owned = ranking == ranking.amax(0, keepdim=True)  # argmax over few channels is many times slower
    foreground = torch.where(owned, alone / owned.sum(0, keepdim=True), 0.0)
    return torch.cat([1 - foreground.sum(0, keepdim=True), foreground])
