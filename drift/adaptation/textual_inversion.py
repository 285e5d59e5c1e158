"""Textual inversion: tokens of the prompt whose cross-attention maps are the masks (design 2.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from drift.adaptation.losses import area_weighted_cross_entropy, propagated_map_error
from drift.adaptation.prompts import with_slots
from drift.adaptation.views import View
from drift.backbone.attention import (
    CrossReading,
    Recording,
    chosen_layers,
    recorded,
    self_attention_layers,
)
from drift.backbone.latent_diffusion import LatentDiffusion
from drift.backbone.precision import computing_in
from drift.backbone.prefix import Prefix, computed_prefix, replayed
from drift.errors import OptionError
from drift.propagation.labels import downsampling, labels_of_mask, pooled

__all__ = ["PromptInversion", "chosen_cross_layers", "slot_maps"]


def slot_maps(
    readings: Mapping[str, CrossReading],
    slots: int,
    tokens: int,
    grid: tuple[int, int],
) -> Float[Tensor, "batch slots grid_rows grid_columns"]:
    """The probability of each slot at each place: softmax over the slots' tokens alone.

    The mean over heads and layers, on `grid`; over slots it sums to 1.

    Args:
        readings: by layer.
        slots, tokens: how many slots there are behind the prompt's first token, and tokens of each.
        grid: rows and columns of the finest layer, or more.
    """
    maps = []
    for reading in readings.values():
        of_tokens = reading.logits()[..., 1 : 1 + slots * tokens].softmax(-1)
        of_slots = of_tokens.unflatten(-1, (slots, tokens)).sum(-1).mean(1).permute(0, 3, 1, 2)
        factor = downsampling(grid[0], of_slots.shape[-2])
        fine = F.interpolate(of_slots, scale_factor=factor, mode="bilinear", align_corners=False)
        maps.append(fine[..., : grid[0], : grid[1]] if factor > 1 else of_slots)
    return torch.stack(maps).mean(0)


def chosen_cross_layers(
    backbone: LatentDiffusion, cross_layers: Sequence[str] | None, self_layer: str | None
) -> tuple[list[str], str]:
    """Layers whose cross-attention shows the masks, and the one whose self-attention spreads them.

    None for the first: the last layer that is read for propagation. None for the second: the last of those.

    Raises:
        OptionError: there is no such layer.
    """
    names = list(self_attention_layers(backbone.unet))
    cross = list(cross_layers) if cross_layers else [max(backbone.layers, key=names.index)]
    spreading = self_layer or max(
        (name for name in cross if name in names), key=names.index, default=cross[0]
    )
    for option, wanted in (("cross_layers", cross), ("self_layer", [spreading])):
        if unknown := [name for name in wanted if name not in names]:
            raise OptionError(option, unknown[0], "among " + ", ".join(names))
    return cross, spreading


class PromptInversion:
    """Optimises slots of one prompt on one frame's views, at a small part of what the whole UNet would cost.

    What the prompt does not reach is computed once: latents, noise, the UNet up to its first cross-attention. The
    queries of later layers it hardly reaches: they are kept too, and computed anew every `refresh` steps, in a
    pass that ends at the last map which the loss reads. A step between two refreshes projects the slots to keys and
    no more. With `refresh=0`, or with a weight on the diffusion loss, every step is a pass of the UNet with
    gradients through all of it.

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
        refresh: steps between two passes of the UNet.
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
        refresh: int,
        generator: torch.Generator,
    ) -> None:
        self.backbone, self.known, self.tokens, self.refresh = backbone, known, tokens, refresh
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
            labels = [_labels(view, object_ids, backbone.stride) for view in views]
            self.labels = torch.stack(labels).to(clean)
        self._grid = (rows, columns)
        self._steps = 0
        self._prefix: Prefix | None = None
        self._kept: Recording | None = None

    def prompt(self, learned: Float[Tensor, "learned tokens dim"]) -> Float[Tensor, "1 length dim"]:
        """The whole prompt, with gradients to the embeddings learned here."""
        embeddings = learned if self.known is None else torch.cat([self.known.to(learned), learned])
        return with_slots(self.backbone.condition().float(), embeddings)

    def loss(self, learned: Float[Tensor, "learned tokens dim"]) -> Float[Tensor, ""]:
        """The loss of the next step."""
        if not self.refresh or self.diffusion_weight:
            return self.exact_loss(learned)
        if self._kept is None or self._steps % self.refresh == 0:
            with torch.no_grad():
                self._kept, _ = self._pass(learned, leave=True)
        self._steps += 1
        prompt = self.prompt(learned)
        cross = {}
        for name, (_, block) in chosen_layers(self.backbone.unet, self.cross_layers).items():
            queries = self._kept.cross_attention[name].queries.float()
            keys = block.attn2.to_k(prompt).unflatten(2, (queries.shape[1], -1)).transpose(1, 2)
            cross[name] = CrossReading(queries, keys.expand(len(queries), -1, -1, -1))
        return self._loss_of_maps(Recording(self._kept.self_attention, cross))

    def exact_loss(self, learned: Float[Tensor, "learned tokens dim"]) -> Float[Tensor, ""]:
        """The loss from a pass of the UNet, with gradients through it, from its first cross-attention on."""
        return self._loss_of_pass(*self._pass(learned, leave=not self.diffusion_weight))

    def plain_loss(self, learned: Float[Tensor, "learned tokens dim"]) -> Float[Tensor, ""]:
        """The same from a pass of the whole UNet, as it is without anything kept."""
        return self._loss_of_pass(*self._run(learned, leave=False))

    def _pass(self, learned: Tensor, *, leave: bool) -> tuple[Recording, Tensor | None]:
        if self._prefix is None:
            unet, timestep = self.backbone.unet, self.backbone.timestep
            with computing_in(self.backbone.precision, self.backbone.device):
                condition = self.backbone.condition()
                self._prefix = computed_prefix(unet, self.latents, timestep, condition, read=self.self_layers)
        with replayed(self._prefix):
            return self._run(learned, leave=leave)

    def _run(self, learned: Tensor, *, leave: bool) -> tuple[Recording, Tensor | None]:
        latents, unet = self.latents, self.backbone.unet
        condition = self.prompt(learned).expand(len(latents), -1, -1)
        output = None
        with (
            recorded(unet, self.self_layers, cross=self.cross_layers, leave=leave) as recording,
            computing_in(self.backbone.precision, self.backbone.device),
        ):
            output = unet(latents, self.backbone.timestep, encoder_hidden_states=condition).sample
        return recording, output

    def _loss_of_pass(self, recording: Recording, output: Tensor | None) -> Tensor:
        loss = self._loss_of_maps(recording)
        if self.target is not None and output is not None:
            loss = loss + self.diffusion_weight * F.mse_loss(output.float(), self.target)
        return loss

    @torch.no_grad()
    def masks(self, learned: Float[Tensor, "learned tokens dim"]) -> Float[Tensor, "slots rows columns"]:
        """What the slots' maps say of the frame itself, on the latents' grid: the first view's.

        The loss counts every slot the same, however small; that is divided out here, as Bayes' rule has it.
        """
        with (
            recorded(self.backbone.unet, [], cross=self.cross_layers) as recording,
            computing_in(self.backbone.precision, self.backbone.device),
        ):
            self.backbone.unet(
                self.latents[:1], self.backbone.timestep, encoder_hidden_states=self.prompt(learned)
            )
        maps = self._maps(recording)[0]
        likely = maps * self.labels[0].mean((1, 2))[:, None, None]
        return likely / likely.sum(0, keepdim=True).clamp(min=1e-12)

    @torch.no_grad()
    def overlap(self, learned: Float[Tensor, "learned tokens dim"]) -> float:
        """The mean IoU of the objects' most probable tokens with the given mask on the frame itself."""
        said, truth = (one.argmax(0) for one in (self.masks(learned), self.labels[0]))
        ious = []
        for slot in range(1, self.labels.shape[1]):
            either = ((said == slot) | (truth == slot)).sum()
            if either:
                ious.append(float(((said == slot) & (truth == slot)).sum() / either))
        return sum(ious) / len(ious) if ious else 1.0

    def _loss_of_maps(self, recording: Recording) -> Tensor:
        labels = self.labels
        maps = self._maps(recording)
        loss = area_weighted_cross_entropy(maps, labels)
        for reading in recording.self_attention.values():
            grid = (reading.queries.shape[2], reading.queries.shape[3])
            coarse, truth = (torch.stack([pooled(one, grid) for one in each]) for each in (maps, labels))
            loss = loss + self.self_weight * propagated_map_error(
                coarse, reading.queries, reading.keys, truth
            )
        return loss

    def _maps(self, recording: Recording) -> Tensor:
        """The slots' maps; all slots but those of the objects learned here are one, the first."""
        maps = slot_maps(recording.cross_attention, self.slots, self.tokens, self._grid)
        others = self.slots - (self.labels.shape[1] - 1)
        return torch.cat([maps[:, :others].sum(1, keepdim=True), maps[:, others:]], dim=1)


def _labels(view: View, object_ids: Sequence[int], stride: int) -> Float[Tensor, "slots rows columns"]:
    """The share of each latent's pixels that is none of these objects, then each one's; mirrored as the image is."""
    shares = labels_of_mask(view.mask, object_ids, stride)
    labels = torch.cat([1 - shares.sum(0, keepdim=True), shares])
    return labels.flip(-1) if view.flipped else labels
