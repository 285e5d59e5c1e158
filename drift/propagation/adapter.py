"""`Adapter`: what test-time optimisation learns for a clip, in the form in which it is tracked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from drift.propagation.slots import SlotKeys

__all__ = ["Adapter"]

Value = TypeVar("Value")


@dataclass(frozen=True)
class Adapter:
    """Prompts and head weights of a clip.

    Attributes:
        prompts: frame index -> prompt embeddings under which frames are processed from that frame on; several prompts
            where one does not hold all objects. Empty for the backbone's own prompt.
        head_weights: weight of each head by layer, summing to 1 over all layers. Empty for equal weights.
        slots: frame index -> keys of the prompts' slots from that frame on.
        slot_weight: exponent of the slots' probabilities beside the propagated labels; 0 to ignore them.
        slot_interval: slots are used in frames whose index is a multiple of this number, 1 or more.
        embeddings: the learned embeddings of the slots, one tensor per appearance of objects.
        figures: statistics of the optimisation: seconds, steps, losses.
        losses: loss of each step, by what was learned.
        warning: why the optimisation was abandoned, or None.
    """

    prompts: Mapping[int, Float[Tensor, "prompts tokens dim"]] = field(default_factory=dict)
    head_weights: Mapping[str, Float[Tensor, " heads"]] = field(default_factory=dict)
    slots: Mapping[int, SlotKeys] = field(default_factory=dict)
    slot_weight: float = 0.0
    slot_interval: int = 1
    embeddings: Sequence[Float[Tensor, "slots tokens dim"]] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    losses: Mapping[str, Sequence[float]] = field(default_factory=dict)
    warning: str | None = None

    def prompt_at(self, frame: int) -> Float[Tensor, "prompts tokens dim"] | None:
        """The prompts of frame `frame`; None for the backbone's own prompt."""
        return _latest(self.prompts, frame)

    def slots_at(self, frame: int) -> SlotKeys | None:
        """The slots used at frame `frame`; None if no slots are used there."""
        return _latest(self.slots, frame) if self.slot_weight and frame % self.slot_interval == 0 else None


def _latest(by_frame: Mapping[int, Value], frame: int) -> Value | None:
    earlier = [index for index in by_frame if index <= frame]
    return by_frame[max(earlier)] if earlier else None
