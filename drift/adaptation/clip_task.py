"""What is to be learned on one clip, as objectives for the module that is fitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from drift.adaptation.head_weighting import HeadLearning, Propagation, first_logits
from drift.adaptation.module import AdaptationModule, Objective
from drift.adaptation.prompts import (
    Appearance,
    appearances,
    conditions,
    first_embeddings,
    slot_keys,
    tokens_per_slot,
)
from drift.adaptation.settings import AdaptationSettings
from drift.adaptation.textual_inversion import PromptInversion, chosen_cross_layers
from drift.adaptation.views import View, augmented_views
from drift.backbone.attention import chosen_layers
from drift.backbone.latent_diffusion import LatentDiffusion
from drift.clip import Clip
from drift.propagation.adapter import Adapter

__all__ = ["ClipTask", "clip_appearances", "prompted"]

Reader = Callable[[str], Tensor]
"""What an earlier objective's parameter has come to, by its name."""

_HEADS = "head_logits"


def clip_appearances(clip: Clip, backbone: LatentDiffusion) -> list[Appearance]:
    """When the objects of a clip appear, by prompt and by frame."""
    given = {}
    for frame in clip.given:
        mask = clip.given[frame]
        given[frame] = [int(one) for one in torch.from_numpy(mask).unique() if one]
    return appearances(given, backbone.condition().shape[1])


def prompted(
    adapter: Adapter,
    when: Sequence[Appearance],
    backbone: LatentDiffusion,
    settings: AdaptationSettings,
) -> Adapter:
    """The adapter with the conditions and slots that its embeddings make; they are those of the appearances `when`."""
    if not when:
        return adapter
    embeddings = [one.to(backbone.device) for one in adapter.embeddings]
    layers, _ = chosen_cross_layers(backbone, settings.cross_layers, settings.self_layer)
    projections = {name: block.attn2 for name, (_, block) in chosen_layers(backbone.unet, layers).items()}
    with torch.no_grad():
        return replace(
            adapter,
            conditions=conditions(backbone.condition().float(), when, embeddings)
            if settings.conditioned
            else {},
            slots=slot_keys(projections, when, embeddings) if settings.slot_weight else {},
            slot_weight=settings.slot_weight,
        )


class ClipTask:
    """The objectives of one clip: a prompt's slots for each appearance of objects, then the head weights.

    Args:
        clip, backbone, settings, propagation: see `adapt`.
    """

    def __init__(
        self, clip: Clip, backbone: LatentDiffusion, settings: AdaptationSettings, propagation: Propagation
    ) -> None:
        self.clip, self.backbone = clip, backbone
        self.settings, self.propagation = settings, propagation
        self.appearances = clip_appearances(clip, backbone) if settings.textual_inversion else []
        self._inversions: dict[str, PromptInversion] = {}
        self._heads: HeadLearning | None = None

    def objectives(self) -> list[Objective]:
        """In the order in which they are to be met."""
        settings = self.settings
        found = [
            Objective(
                _name(one),
                self._first_embeddings(one),
                self._prompt_loss(one),
                learning_rate=settings.learning_rate,
                steps=settings.steps,
                patience=settings.patience,
                tolerance=settings.tolerance,
            )
            for one in self.appearances
        ]
        if settings.head_weighting == "learned":
            found.append(
                Objective(
                    _HEADS,
                    self._first_logits(),
                    self._head_loss,
                    learning_rate=settings.head_learning_rate,
                    steps=settings.head_steps,
                    patience=settings.patience,
                    tolerance=settings.tolerance,
                )
            )
        return found

    def learned(self, module: AdaptationModule) -> Adapter:
        """The adapter that a fitted module holds."""
        embeddings = [module.value(_name(one)) for one in self.appearances]
        overlaps = {
            f"{name}_slot_iou": inversion.overlap(module.value(name))
            for name, inversion in self._inversions.items()
        }
        adapter = Adapter(
            head_weights=self._heads.weights(module.value(_HEADS)) if self._heads else {},
            embeddings=embeddings,
            figures=overlaps,
        )
        return prompted(adapter, self.appearances, self.backbone, self.settings)

    def _generator(self, purpose: int) -> torch.Generator:
        """Noise of its own for each purpose, so that what one draws does not change another."""
        return torch.Generator().manual_seed(self.settings.seed + 1000003 * purpose)

    def _tokens(self) -> int:
        objects = sum(len(one.object_ids) for one in self.appearances)
        return tokens_per_slot(objects, self.settings.tokens_per_slot, self.backbone.condition().shape[1])

    def _first_embeddings(self, one: Appearance) -> Tensor:
        slots = len(one.object_ids) + one.first
        base = self.backbone.condition().float()
        return first_embeddings(base, slots, self._tokens(), self._generator(1 + one.frame))

    def _first_logits(self) -> Tensor:
        heads = self.backbone.heads
        prior = self.settings.prior_weights(heads)
        return first_logits(heads, prior, self.propagation.affinity)

    def _prompt_loss(self, one: Appearance) -> Callable[[Reader], Callable[[Tensor], Tensor]]:
        def prepare(value: Reader) -> Callable[[Tensor], Tensor]:
            earlier = self.appearances[: self.appearances.index(one)]
            known = [value(_name(other)) for other in earlier if other.prompt == one.prompt]
            settings = self.settings
            cross_layers, self_layer = chosen_cross_layers(
                self.backbone, settings.cross_layers, settings.self_layer
            )
            inversion = PromptInversion(
                self.backbone,
                self._views(one.frame, settings.prompt_views),
                one.object_ids,
                known=torch.cat(known) if known else None,
                tokens=self._tokens(),
                cross_layers=cross_layers,
                self_layer=self_layer,
                self_weight=settings.self_weight,
                diffusion_weight=settings.diffusion_weight,
                conditioned=settings.conditioned,
                refresh=settings.refresh,
                generator=self._generator(1 + one.frame),
            )
            self._inversions[_name(one)] = inversion
            return inversion.loss

        return prepare

    def _head_loss(self, value: Reader) -> Callable[[Tensor], Tensor]:
        embeddings = [value(_name(one)) for one in self.appearances]
        adapter = prompted(Adapter(embeddings=embeddings), self.appearances, self.backbone, self.settings)
        first = min(self.clip.given)
        views = self._views(first, self.settings.views)
        noise = self._generator(0)
        readings = []
        with torch.no_grad():
            for view in views:
                image = view.image[None].to(self.backbone.device)
                readings.append(self.backbone.read_frames(image, noise, condition=adapter.condition(first)))
        ids = [int(one) for one in views[0].mask.unique() if one]
        self._heads = HeadLearning(
            readings,
            views,
            ids,
            propagation=self.propagation,
            first=self._first_logits(),
            caution=self.settings.caution,
            queries=self.settings.queries,
            generator=self._generator(0),
        )
        return self._heads.loss

    def _views(self, frame: int, count: int) -> list[View]:
        picture = self.clip.frames[frame]
        mask = self.clip.given_mask(frame, picture.shape[:2])
        assert mask is not None
        return augmented_views(
            self.clip.reduced_frame(picture),
            self.clip.reduced_mask(mask),
            count=count,
            reach=self.propagation.reach * self.backbone.stride,
            stride=self.backbone.stride,
            seed=self.settings.seed,
        )


def _name(one: Appearance) -> str:
    return f"prompt{one.prompt}_frame{one.frame}"
