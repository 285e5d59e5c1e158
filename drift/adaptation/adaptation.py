"""`Adaptation`: what is learned for a clip before it is tracked, and the adapter that results."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from drift.adaptation.appearances import (
    Appearance,
    appearances,
    prompts_by_frame,
    slots_by_frame,
    tokens_per_slot,
)
from drift.adaptation.fitting import Diverged, fit
from drift.adaptation.schemes import HeadScheme, Uniform
from drift.adaptation.textual_inversion import PromptOptions, TextualInversion, inversion_layers
from drift.backbones.interface import Backbone, as_prompt_backbone
from drift.configuration import groups
from drift.configuration.checking import check_fields
from drift.errors import OptionError
from drift.propagation.adapter import Adapter
from drift.propagation.heads import PropagationOptions

__all__ = ["Adaptation", "GivenFrames"]

GivenFrames = Mapping[int, tuple[np.ndarray, np.ndarray]]
"""Frame index -> a frame `(height, width, 3)` uint8 RGB and its mask `(height, width)` uint8 object ids."""


@dataclass(frozen=True)
class Adaptation:
    """What is learned for a clip on the frames whose masks are given.

    Attributes:
        head_weighting: scheme of head weighting.
        textual_inversion: options of the prompt; None to keep the backbone's own prompt.
        checkpoints: folder of adapters that `train.py` wrote; None to learn them.
        seed: seed of views and noise.

    Raises:
        OptionError: an option is out of range.
    """

    head_weighting: HeadScheme = field(default_factory=Uniform)
    textual_inversion: PromptOptions | None = None
    checkpoints: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, groups.Adaptation)

    @property
    def learns(self) -> bool:
        """Whether the adapter depends on the clip."""
        return self.textual_inversion is not None or self.head_weighting.learned

    def check(self, backbone: Backbone) -> None:
        """Checks the options against a backbone, before any clip is loaded.

        Raises:
            OptionError: an option names a layer or head that the backbone does not have, or needs a prompt.
        """
        self.head_weighting.weights(backbone.layers)
        if self.textual_inversion is not None:
            prompted = as_prompt_backbone(backbone, "textual_inversion", "given")
            inversion_layers(prompted, self.textual_inversion)
            noise = backbone.description.get("noise")
            if self.textual_inversion.diffusion_weight and noise == "none":
                value = self.textual_inversion.diffusion_weight
                raise OptionError("textual_inversion.diffusion_weight", value, "0 with noise=none")

    def adapt(self, given: GivenFrames, backbone: Backbone, propagation: PropagationOptions) -> Adapter:
        """Learns the adapter of a clip, with its prompts and slots; see `learn` and `with_prompts`."""
        return self.with_prompts(self.learn(given, backbone, propagation), given, backbone)

    @torch.inference_mode(False)
    def learn(
        self,
        given: GivenFrames,
        backbone: Backbone,
        propagation: PropagationOptions,
        learned_prompts: Adapter | None = None,
    ) -> Adapter:
        """Learns embeddings and head weights of a clip. The result depends on nothing but the arguments.

        If a loss diverges, the adapter is the unadapted one with a `warning`.

        Args:
            given: frames of the clip whose mask is given, with the mask, by frame index.
            backbone: the frozen model.
            propagation: how labels are going to be propagated.
            learned_prompts: an adapter learned with the same frames, masks, backbone, `textual_inversion` and `seed`,
                whose embeddings are kept; None to learn them.

        Raises:
            OptionError: see `check`.
        """
        unadapted = self.unadapted(backbone)
        if not (self.learns and given):
            return unadapted
        learned = learned_prompts or self._learn_prompts(given, backbone)
        if learned.warning:
            return replace(learned, head_weights=unadapted.head_weights)
        start, first = time.perf_counter(), min(given)
        prompt = None
        if self.head_weighting.learned:
            prompt = self.with_prompts(learned, given, backbone).prompt_at(first)
        try:
            weights, losses = self.head_weighting.learn(
                backbone, *given[first], propagation, prompt=prompt, seed=self.seed
            )
            adapter = replace(learned, head_weights=weights)
        except Diverged as error:
            adapter, losses = replace(unadapted, warning=f"not adapted: {error}"), error.losses
        own = _statistics({"head_weights": losses}, start)
        seconds = learned.figures.get("seconds", 0.0) + own["seconds"]
        losses_by_name = {**learned.losses, "head_weights": losses} if losses else learned.losses
        return replace(adapter, figures={**learned.figures, **own, "seconds": seconds}, losses=losses_by_name)

    def unadapted(self, backbone: Backbone) -> Adapter:
        """The adapter of a clip on which nothing is learned."""
        weights = {} if self.head_weighting.learned else self.head_weighting.weights(backbone.layers)
        return Adapter(head_weights=weights)

    @torch.no_grad()
    def with_prompts(self, adapter: Adapter, given: GivenFrames, backbone: Backbone) -> Adapter:
        """The adapter with the prompts and slots that its embeddings make up."""
        options = self.textual_inversion
        if options is None or not adapter.embeddings:
            return adapter
        prompted = as_prompt_backbone(backbone, "textual_inversion", "given")
        appeared = appearances(given, prompted.prompt.shape[1])
        embeddings = [value.to(backbone.device) for value in adapter.embeddings]
        layers, _ = inversion_layers(prompted, options)
        base = prompted.prompt.float()
        return replace(
            adapter,
            prompts=prompts_by_frame(base, appeared, embeddings) if options.conditioned else {},
            slots=slots_by_frame(prompted, layers, appeared, embeddings) if options.slot_weight else {},
            slot_weight=options.slot_weight,
            slot_interval=options.slot_interval,
        )

    def _learn_prompts(self, given: GivenFrames, backbone: Backbone) -> Adapter:
        """Embeddings for each appearance of objects; those of a prompt's earlier objects are kept."""
        options, start = self.textual_inversion, time.perf_counter()
        if options is None:
            return Adapter()
        prompted = as_prompt_backbone(backbone, "textual_inversion", "given")
        fitted: dict[str, TextualInversion] = {}
        learned: list[tuple[Appearance, Tensor]] = []
        length = prompted.prompt.shape[1]
        appeared = appearances(given, length)
        objects = sum(len(appearance.object_ids) for appearance in appeared)
        options = replace(options, tokens=tokens_per_slot(objects, options.tokens, length))
        try:
            for appearance in appeared:
                earlier = [value for other, value in learned if other.prompt == appearance.prompt]
                module = TextualInversion(
                    backbone,
                    *given[appearance.frame],
                    options,
                    object_ids=appearance.object_ids,
                    known=torch.cat(earlier) if earlier else None,
                    seed=self.seed + appearance.frame,
                )
                fitted[f"prompt{appearance.prompt}_frame{appearance.frame}"] = module
                fit(module)
                learned.append((appearance, module.embeddings.detach()))
            adapter = Adapter(embeddings=[value for _, value in learned])
        except Diverged as error:
            adapter = Adapter(warning=f"not adapted: {error}")
        losses = {name: module.losses for name, module in fitted.items() if module.losses}
        figures = _statistics(losses, start)
        for name, module in fitted.items():
            if not module.embeddings.requires_grad:
                figures[f"{name}_slot_iou"] = module.slot_iou()
        return replace(adapter, figures=figures, losses=losses)


def _statistics(losses: Mapping[str, Sequence[float]], start: float) -> dict[str, float]:
    """Figures of what was learned since `start`: seconds in all, and by name the steps, first and lowest loss."""
    figures = {"seconds": time.perf_counter() - start}
    for name, values in losses.items():
        if values:
            figures |= {
                f"{name}_steps": len(values),
                f"{name}_first_loss": values[0],
                f"{name}_loss": min(values),
            }
    return figures
