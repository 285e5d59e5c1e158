"""`AdaptationSettings`: what is to be learned for a clip, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from drift.adaptation.head_weighting import HEAD_WEIGHTINGS, fixed_weights, single_head
from drift.errors import OptionError
from drift.options import choice, non_negative, positive, whole_number

__all__ = ["AdaptationSettings"]


@dataclass(frozen=True)
class AdaptationSettings:
    """Options of the test-time optimisation, checked.

    Attributes:
        textual_inversion: whether prompt embeddings are learned.
        head_weighting: `uniform`; `single`, of `layer` and `head`; `learned`; or `fixed`, of `weights`.
        layer, head: of `single`; all heads of the layer where `head` is None.
        weights: of `fixed`, and where `learned` starts from: layer -> a number, or one for each head; None for
            equal ones.
        caution: how dearly `learned` weights pay for leaving those they start from; 0 for not at all.
        views: augmented views of the given frame that head weights are learned on, beside it.
        prompt_views: likewise for the prompt; each makes its steps dearer.
        tokens_per_slot: tokens of the prompt for each object and for the background.
        cross_layers: layers whose cross-attention is to show the masks; None for those that are read for
            propagation, the last one apart.
        self_layer: the layer whose self-attention is to spread the slots' maps; None for the one before
            `cross_layers`.
        self_weight, diffusion_weight: λ_self and λ_sd of section 2.5.
        steps, learning_rate: of the prompt, at each appearance of objects; steps are an upper bound.
        slot_weight: how much the slots' maps of each frame count beside the labels carried there: the power of
            their likelihood; 0 for nothing.
        conditioned: whether frames are inverted and read under the learned prompt, as in the paper; else under the
            backbone's own, and the slots only attend.
        refresh: where conditioned, steps of the prompt between two passes of the UNet; 0 for one at each, with
            gradients through it.
        queries: sampled places of each view that head weights are learned on.
        head_steps, head_learning_rate: of the head weights, likewise.
        patience, tolerance: learning ends once the loss has not fallen by `tolerance`, a share of it, in
            `patience` steps.
        checkpoints: a folder of adapters that `train.py` wrote; None to learn them.
        seed: of views, noise and places.

    Raises:
        OptionError: an option is out of range.
    """

    textual_inversion: bool = False
    head_weighting: str = "uniform"
    layer: str | None = None
    head: int | None = None
    weights: Mapping[str, float | Sequence[float]] | None = None
    caution: float = 0.0
    views: int = 6
    prompt_views: int = 1
    tokens_per_slot: int = 36
    cross_layers: Sequence[str] | None = None
    self_layer: str | None = None
    self_weight: float = 1.0
    diffusion_weight: float = 0.0
    steps: int = 300
    learning_rate: float = 0.3
    conditioned: bool = True
    refresh: int = 3
    slot_weight: float = 0.0
    queries: int = 600
    head_steps: int = 300
    head_learning_rate: float = 0.3
    patience: int = 10
    tolerance: float = 0.003
    checkpoints: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("textual_inversion", "conditioned"):
            choice(name, getattr(self, name), (True, False))
        choice("head_weighting", self.head_weighting, HEAD_WEIGHTINGS)
        if self.head_weighting == "fixed" and self.weights is None:
            raise OptionError("weights", None, "{layer: weight, ...} with head_weighting=fixed")
        for name in ("views", "prompt_views", "refresh"):
            whole_number(name, getattr(self, name), minimum=0)
        for name in ("tokens_per_slot", "steps", "queries", "head_steps", "patience"):
            whole_number(name, getattr(self, name), minimum=1)
        for name in ("learning_rate", "head_learning_rate"):
            positive(name, getattr(self, name))
        for name in ("self_weight", "diffusion_weight", "tolerance", "caution", "slot_weight"):
            non_negative(name, getattr(self, name))
        whole_number("seed", self.seed, minimum=0)

    @property
    def learns(self) -> bool:
        """Whether anything depends on the clip."""
        return self.textual_inversion or self.head_weighting == "learned"

    def given_weights(self, heads: Mapping[str, int]) -> dict[str, Tensor]:
        """The head weights that do not depend on the clip: none for equal ones, or where they are learned.

        Args:
            heads: how many each layer has that is read.

        Raises:
            OptionError: the options name a layer or a head that is not read.
        """
        if self.head_weighting == "single":
            return single_head(heads, self.layer, self.head)
        return self.prior_weights(heads) if self.head_weighting == "fixed" else {}

    def prior_weights(self, heads: Mapping[str, int]) -> dict[str, Tensor]:
        """`weights` by layer and head, scaled to sum to 1; none for equal ones. Arguments and errors as above."""
        return {} if self.weights is None else fixed_weights(heads, self.weights)
