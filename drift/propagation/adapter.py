"""`Adapter`: what is learned for one clip, as the tracker and the backbone use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from drift.propagation.slot_maps import SlotKeys

__all__ = ["Adapter"]

Value = TypeVar("Value")


@dataclass(frozen=True)
class Adapter:
    """The result of a clip's test-time optimisation (design 2.4 and 2.5).

    Attributes:
        conditions: frame index -> the condition from that frame on, until the next one: one prompt for each
            group of objects. Empty where the backbone's own prompt holds.
        head_weights: layer -> one weight per head; over all layers they sum to 1. Empty for equal weights.
        slots: frame index -> the prompts' slots from that frame on, likewise.
        slot_weight: how much what they say of a frame counts beside what earlier frames say; 0 for nothing.
        embeddings: what `conditions` were made of: the slots learned at each appearance of objects.
        figures: how it was learned: steps, seconds, losses.
        losses: by what was learned, the loss of each step.
        warning: why the optimisation was given up, or None.
    """

    conditions: Mapping[int, Float[Tensor, "groups tokens dim"]] = field(default_factory=dict)
    head_weights: Mapping[str, Float[Tensor, " heads"]] = field(default_factory=dict)
    slots: Mapping[int, SlotKeys] = field(default_factory=dict)
    slot_weight: float = 0.0
    embeddings: Sequence[Float[Tensor, "learned tokens dim"]] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    losses: Mapping[str, Sequence[float]] = field(default_factory=dict)
    warning: str | None = None

    def condition(self, frame: int) -> Float[Tensor, "groups tokens dim"] | None:
        """The condition of frame `frame`; None for the backbone's own prompt."""
        return _latest(self.conditions, frame)

    def slot_keys(self, frame: int) -> SlotKeys | None:
        """The slots that count on frame `frame`; None where none do."""
        return _latest(self.slots, frame) if self.slot_weight else None


def _latest(by_frame: Mapping[int, Value], frame: int) -> Value | None:
    earlier = [index for index in by_frame if index <= frame]
    return by_frame[max(earlier)] if earlier else None
