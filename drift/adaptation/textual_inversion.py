"""Textual inversion: tokens of the prompt whose cross-attention maps are the masks (design 2.5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from drift.adaptation.losses import area_weighted_cross_entropy, mean_attention, propagated_map_error
from drift.adaptation.prompts import with_slots
from drift.adaptation.views import View
from drift.backbone.attention import (
    Recording,
    chosen_layers,
    recorded,
    self_attention_layers,
)
from drift.backbone.latent_diffusion import LatentDiffusion
from drift.backbone.precision import computing_in
from drift.backbone.prefix import Prefix, computed_prefix, replayed
from drift.errors import OptionError
from drift.propagation.labels import pooled
from drift.propagation.slot_maps import slot_maps

__all__ = ["PromptInversion", "chosen_cross_layers"]


def chosen_cross_layers(
    backbone: LatentDiffusion, cross_layers: Sequence[str] | None, self_layer: str | None
) -> tuple[list[str], str]:
    """Layers whose cross-attention shows the masks, and the one whose self-attention spreads them.

    None for the first: of the layers that are read for propagation all but the last, whose cross-attention the
    pass reaches in any case, or the only one. None for the second: the layer before those, most often a coarser
    one, whose self-attention is far cheaper.

    Raises:
        OptionError: there is no such layer.
    """
    names = list(self_attention_layers(backbone.unet))
    read = sorted(backbone.layers, key=names.index)
    cross = list(cross_layers) if cross_layers else read[:-1] or read
    first = min((names.index(name) for name in cross if name in names), default=0)
    spreading = self_layer or names[max(first - 1, 0)]
    for option, wanted in (("cross_layers", cross), ("self_layer", [spreading])):
        if unknown := [name for name in wanted if name not in names]:
            raise OptionError(option, unknown[0], "among " + ", ".join(names))
    return cross, spreading


class PromptInversion:
    """Optimises slots of one prompt on one frame's views, at a small part of what the whole UNet would cost.

    Cross-attention compares queries, which the picture makes, with keys, which are the slots' embeddings projected.
    Where frames are read under the backbone's own prompt, the slots do not touch the queries: they are computed
    once, and a step is that projection. Where frames are read under the learned prompt (`conditioned`), they do:
    every `refresh` steps they are computed anew, in a pass from the UNet's first cross-attention to the last map
    that the loss reads. Gradients go through the keys alone, unless `refresh` is 0 or there is a diffusion loss.

    Args:
        backbone: the frozen model.
        views: of the frame.
        object_ids: the objects whose slots are learned here; they take the last slots.
        known: embeddings of the slots before those, learned on an earlier frame; None on the first frame of a
            prompt, where the background's slot is learned too.
        tokens: of each slot.
        cross_layers: layers whose cross-attention is to show the masks.
        self_layer: the layer whose self-attention is to carry the maps to the masks.
        self_weight, diffusion_weight: λ_self and λ_sd of the design; 0 leaves a loss out.
        conditioned: whether the clip's frames are going to be read under the learned prompt.
        refresh: steps between two passes of the UNet; 0 for one at every step, with gradients through it.
        generator: of the noise that takes the views to the timestep.
    """

    def __init__(
        self,
        backbone: LatentDiffusion,
        views: Sequence[View],
        object_ids: Sequence[int],
        *,
        known: Float[Tensor, "slots tokens dim"] | None,
        tokens: int,
        cross_layers: Sequence[str],
        self_layer: str,
        self_weight: float,
        diffusion_weight: float,
        conditioned: bool,
        refresh: int,
        generator: torch.Generator,
    ) -> None:
        self.backbone, self.known, self.tokens = backbone, known, tokens
        self.conditioned, self.refresh = conditioned, refresh
        self.learned = len(object_ids) + (known is None)
        self.slots = self.learned + (0 if known is None else len(known))
        self.cross_layers = list(cross_layers)
        self.self_layers = [self_layer] if self_weight else []
        self.self_weight, self.diffusion_weight = self_weight, diffusion_weight
        with torch.no_grad():
            images = [view.image.to(backbone.device)[None] for view in views]
            clean = torch.cat([backbone.encode(image) for image in images])
            self.latents = backbone.noised(clean, generator)
            self.target = backbone.denoising_target(clean, self.latents) if diffusion_weight else None
            rows, columns = clean.shape[-2:]
            labels = [view.labels(object_ids, backbone.stride) for view in views]
            mirrored = [
                one.flip(-1) if view.flipped else one for one, view in zip(labels, views, strict=True)
            ]
            self.labels = torch.stack(mirrored).to(clean)
        self._grid = (rows, columns)
        self._steps = 0
        self._prefix: Prefix | None = None
        self._kept: Recording | None = None
        self._spread: list[tuple[Tensor, tuple[int, int]]] = []  # of the kept recording

    def loss(self, learned: Float[Tensor, "learned tokens dim"]) -> Float[Tensor, ""]:
        """The loss of the next step."""
        exact = self.diffusion_weight or (self.conditioned and not self.refresh)
        if exact:
            return self._loss(learned, *self._pass(learned, leave=not self.diffusion_weight))
        if self._kept is None or (self.conditioned and self._steps % self.refresh == 0):
            with torch.no_grad():
                self._kept, _ = self._pass(learned, leave=True)
                self._spread = []
                self._spread = self._attention(self._kept)
        self._steps += 1
        return self._loss(learned, self._kept)

    def plain_loss(self, learned: Float[Tensor, "learned tokens dim"]) -> Float[Tensor, ""]:
        """The same loss from a pass of the whole UNet, without anything kept: the loop that is spared."""
        return self._loss(learned, *self._run(learned, leave=False))

    def _embeddings(self, learned: Tensor) -> Tensor:
        """All slots', with gradients to those learned here."""
        return learned if self.known is None else torch.cat([self.known.to(learned), learned])

    def _pass(self, learned: Tensor, *, leave: bool) -> tuple[Recording, Tensor | None]:
        if self._prefix is None:
            unet, timestep = self.backbone.unet, self.backbone.timestep
            with computing_in(self.backbone.precision, self.backbone.device):
                condition = self.backbone.condition()
                self._prefix = computed_prefix(unet, self.latents, timestep, condition, read=self.self_layers)
        with replayed(self._prefix):
            return self._run(learned, leave=leave)

    def _run(
        self, learned: Tensor, *, leave: bool, views: int | None = None
    ) -> tuple[Recording, Tensor | None]:
        """A pass over the first `views` views."""
        latents, unet = self.latents[:views], self.backbone.unet
        condition = self.backbone.condition().float()
        if self.conditioned:
            condition = with_slots(condition, self._embeddings(learned))
        output = None
        with (
            recorded(unet, self.self_layers, cross=self.cross_layers, leave=leave) as recording,
            computing_in(self.backbone.precision, self.backbone.device),
        ):
            conditions = condition.expand(len(latents), -1, -1)
            output = unet(latents, self.backbone.timestep, encoder_hidden_states=conditions).sample
        return recording, output

    def _loss(self, learned: Tensor, recording: Recording, output: Tensor | None = None) -> Tensor:
        maps = self._maps(learned, recording)
        loss = area_weighted_cross_entropy(maps, self.labels)
        for attention, grid in self._attention(recording):
            coarse, truth = (torch.stack([pooled(one, grid) for one in each]) for each in (maps, self.labels))
            loss = loss + self.self_weight * propagated_map_error(coarse, attention, truth)
        if self.target is not None and output is not None:
            loss = loss + self.diffusion_weight * F.mse_loss(output.float(), self.target)
        return loss

    @torch.no_grad()
    def overlap(self, learned: Float[Tensor, "learned tokens dim"]) -> float:
        """The IoU of the given mask with as many tokens as it has, those that its slot's map likes best.

        On the frame itself, as the mean over the objects learned here that cover half a token or more; 0 where
        there is none.
        """
        recording, _ = self._run(learned, leave=True, views=1)
        ious = []
        for said, share in zip(self._maps(learned, recording)[0, 1:], self.labels[0, 1:], strict=True):
            truth = (share >= 0.5).flatten()
            chosen = torch.zeros_like(truth)
            chosen[said.flatten().topk(int(truth.sum())).indices] = True
            if truth.any():
                ious.append(float((chosen & truth).sum() / (chosen | truth).sum()))
        return sum(ious) / len(ious) if ious else 0.0

    def _attention(self, recording: Recording) -> list[tuple[Tensor, tuple[int, int]]]:
        """Of every layer that spreads the maps its attention and its grid."""
        if recording is self._kept and self._spread:
            return self._spread
        return [
            (mean_attention(one.queries, one.keys), (one.queries.shape[2], one.queries.shape[3]))
            for one in recording.self_attention.values()
        ]

    def _maps(self, learned: Tensor, recording: Recording) -> Tensor:
        """The slots' maps; all slots but those of the objects learned here are one, the first."""
        tokens = self._embeddings(learned).flatten(0, 1)
        logits = []
        for name, (_, block) in chosen_layers(self.backbone.unet, self.cross_layers).items():
            queries = recording.cross_attention[name].queries.float()
            keys = block.attn2.to_k(tokens).unflatten(1, (queries.shape[1], -1)).transpose(0, 1)
            logits.append(torch.einsum("bhyxd,htd->bhyxt", queries, keys) / keys.shape[-1] ** 0.5)
        maps = slot_maps(logits, self.slots, self._grid)
        others = self.slots - (self.labels.shape[1] - 1)
        return torch.cat([maps[:, :others].sum(1, keepdim=True), maps[:, others:]], dim=1)
