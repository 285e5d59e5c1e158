"""Mask-specific textual inversion: prompt embeddings whose cross-attention maps are the masks of a clip's objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from drift.adaptation.appearances import initial_embeddings, with_slots
from drift.adaptation.fitting import ClipModule, FitOptions
from drift.adaptation.losses import area_weighted_cross_entropy, mean_attention, propagated_map_error
from drift.adaptation.views import augmented_views
from drift.backbones.interface import AttentionPass, Backbone, PromptBackbone, as_prompt_backbone
from drift.configuration import groups
from drift.errors import OptionError
from drift.propagation.labels import pooled
from drift.propagation.slots import slot_maps

__all__ = ["PromptOptions", "TextualInversion", "inversion_layers", "no_textual_inversion"]

_REACH = 5  # tokens: displacement of the augmented views


@dataclass(frozen=True)
class PromptOptions(FitOptions):
    """Options of textual inversion.

    Attributes:
        tokens: tokens of each slot; fewer where the prompt is too short for all objects.
        views: number of augmented views of the given frame, beside the frame itself.
        cross_layers: layers whose cross-attention is optimised; None for `backbone.layers` without the last.
        self_layer: layer whose self-attention propagates the slots' maps; None for the one before `cross_layers`.
        self_weight: λ_self, weight of the loss on these propagated maps.
        diffusion_weight: λ_sd, weight of the diffusion loss.
        conditioned: True to process frames under the learned prompt, as in the paper; False to process them under the
            backbone's own prompt, so that the slots are only attended to.
        refresh: if `conditioned`, steps between two forward passes of the model; 0 for a pass at each step, with
            gradients through it.
        slot_weight: exponent of the slots' probabilities beside propagated labels; 0 to ignore them.
        slot_interval: the slots' probabilities are used in every `slot_interval`-th frame. They change little between
            successive frames, and may need layers behind those whose features are propagated.
        learning_rate, steps, patience, tolerance: see `FitOptions`.

    Raises:
        OptionError: an option is out of range.
    """

    tokens: int = 1
    views: int = 1
    cross_layers: Sequence[str] | None = None
    self_layer: str | None = None
    self_weight: float = 1.0
    diffusion_weight: float = 0.0
    conditioned: bool = True
    refresh: int = 5
    slot_weight: float = 0.0
    slot_interval: int = 1

    group = "textual_inversion."
    kind = groups.TextualInversion


@dataclass(frozen=True)
class _Views:
    """All views of the frame as a batch: noisy latents, labels (background and other objects first), and the target."""

    latents: Float[Tensor, "views channels rows columns"]
    labels: Float[Tensor, "views slots rows columns"]
    target: Float[Tensor, "views channels rows columns"] | None


def no_textual_inversion() -> None:
    """Keeps the backbone's own prompt."""
    return None


class TextualInversion(ClipModule[PromptBackbone]):
    """Learns the embeddings of slots, one for each object and one for the background.

    Slots take the place of a prompt's tokens; each is a group of tokens. The loss (`docs/method.md`, "Textual
    inversion") is the area-weighted cross-entropy between cross-attention maps and masks, plus λ_self times the error
    of the maps propagated by self-attention, plus λ_sd times the diffusion loss.

    Cross-attention compares queries, which depend on the frame, with keys, which are projections of the embeddings. The
    queries are computed once if frames are processed under the backbone's own prompt, and every `refresh` steps if they
    are processed under the learned prompt, so most steps cost a projection and no forward pass.

    Args:
        backbone: a frozen backbone with a prompt.
        frame: the given frame, RGB.
        mask: object ids of its pixels, 0 for the background.
        options: how embeddings are learned.
        object_ids: objects of `mask` whose slots are learned; None for all of them.
        known: embeddings of slots learned at an earlier frame, background first; None to learn the background too.
        seed: seed of the views, of the noise and of the initial embeddings.

    Raises:
        OptionError: the backbone has no prompt, or `options` name a layer that it does not have.

    Example:
        >>> from drift import TextualInversion, fit, load_backbone
        >>> frame, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
        >>> frame[16:48, 16:48], mask[16:48, 16:48] = 255, 1
        >>> module = TextualInversion(load_backbone(), frame, mask)
        >>> fit(module, steps=2)
        >>> module.embeddings.shape  # background and object, one token each
        torch.Size([2, 1, 128])
    """

    def __init__(
        self,
        backbone: Backbone,
        frame: UInt8[np.ndarray, "height width 3"],
        mask: UInt8[np.ndarray, "height width"],
        options: PromptOptions | None = None,
        *,
        object_ids: Sequence[int] | None = None,
        known: Float[Tensor, "known tokens dim"] | None = None,
        seed: int = 0,
    ) -> None:
        prompted = as_prompt_backbone(backbone, "adaptation", "textual inversion")
        self.options = options or PromptOptions()
        super().__init__(prompted, self.options)
        self.cross_layers, self._self_layer = inversion_layers(prompted, self.options)
        self._known, self._seed = known, seed
        self._object_ids = [int(n) for n in np.unique(mask) if n] if object_ids is None else list(object_ids)
        learned = len(self._object_ids) + (known is None)
        self.slots = learned + (0 if known is None else len(known))
        self._views = augmented_views(
            frame,
            mask,
            count=self.options.views,
            reach=_REACH * backbone.stride,
            stride=backbone.stride,
            seed=seed,
        )
        base = prompted.prompt.float().cpu()
        most = max(1, (base.shape[1] - 1) // self.slots)  # the first token of a prompt is kept
        tokens = min(self.options.tokens, most) if known is None else known.shape[1]
        generator = torch.Generator().manual_seed(seed)
        self.embeddings = nn.Parameter(initial_embeddings(base, learned, tokens, generator))
        self._batch: _Views | None = None
        self._last: AttentionPass | None = None
        self._self_attention: Tensor | None = None  # of the last pass

    @property
    def all_embeddings(self) -> Float[Tensor, "slots tokens dim"]:
        """Embeddings of all slots of the prompt, with gradients to those that are learned."""
        if self._known is None:
            return self.embeddings
        return torch.cat([self._known.to(self.embeddings), self.embeddings])

    @property
    def prompt(self) -> Float[Tensor, "1 length dim"]:
        """The prompt under which frames are processed."""
        base = self._backbone[0].prompt.float()
        return with_slots(base, self.all_embeddings.to(base)) if self.options.conditioned else base

    def on_fit_start(self) -> None:
        """Computes the latents of all views."""
        (backbone,) = self._backbone
        images = torch.stack([view.image for view in self._views]).to(backbone.device)
        clean = backbone.encode(images)
        noisy = backbone.noised(clean, torch.Generator().manual_seed(self._seed + 1))
        target = backbone.training_target(clean, noisy) if self.options.diffusion_weight else None
        labels = [view.labels(self._object_ids, backbone.stride) for view in self._views]
        mirrored = [x.flip(-1) if view.flipped else x for x, view in zip(labels, self._views, strict=True)]
        self._batch = _Views(noisy, torch.stack(mirrored).to(backbone.device), target)

    def train_dataloader(self) -> DataLoader:
        """One batch with all views."""
        return DataLoader([self._batch], batch_size=None)  # type: ignore[arg-type]

    def training_step(self, batch: _Views, batch_idx: int) -> Tensor:
        """The loss on all views."""
        options = self.options
        if options.diffusion_weight or (options.conditioned and not options.refresh):
            return self.logged(self.loss(batch, self.attend(batch, output=bool(options.diffusion_weight))))
        if self._last is None or (options.conditioned and self.global_step % options.refresh == 0):
            with torch.no_grad():
                self._last, self._self_attention = self.attend(batch), None
        return self.logged(self.loss(batch, self._last))

    def attend(self, batch: _Views, *, output: bool = False) -> AttentionPass:
        """A forward pass over the views under the prompt, up to the last layer that the loss needs, or to the end."""
        layers = [self._self_layer] if self.options.self_weight else []
        (backbone,) = self._backbone
        return backbone.attend(
            batch.latents, self.prompt, layers=layers, cross=self.cross_layers, output=output
        )

    def loss(self, batch: _Views, attended: AttentionPass) -> Float[Tensor, ""]:
        """The loss for the queries of a forward pass and the present embeddings."""
        maps = self._maps(batch, attended)
        loss = area_weighted_cross_entropy(maps, batch.labels)
        if self.options.self_weight:
            layer = attended.features[self._self_layer]
            attention = self._self_attention if attended is self._last else None
            if attention is None:
                attention = mean_attention(layer.queries, layer.keys)
                self._self_attention = attention if attended is self._last else None
            coarse, labels = (torch.stack([pooled(x, layer.grid) for x in y]) for y in (maps, batch.labels))
            loss = loss + self.options.self_weight * propagated_map_error(coarse, attention, labels)
        if batch.target is not None and attended.output is not None:
            loss = loss + self.options.diffusion_weight * F.mse_loss(attended.output, batch.target)
        return loss

    @torch.no_grad()
    def slot_iou(self) -> float:
        """Mean IoU between given masks and slots' maps on the frame itself, each map cut at the mask's own area.

        Over the learned objects that cover at least half a token; 0 if there are none.
        """
        assert self._batch is not None
        frame = _Views(self._batch.latents[:1], self._batch.labels[:1], None)
        if self._last is not None and not self.options.conditioned:  # the queries do not depend on the slots
            maps = self._maps(self._batch, self._last)[0]
        else:
            maps = self._maps(frame, self.attend(frame))[0]
        ious = []
        for object_map, label in zip(maps[1:], frame.labels[0, 1:], strict=True):
            mask = (label >= 0.5).flatten()
            chosen = torch.zeros_like(mask)
            chosen[object_map.flatten().topk(int(mask.sum())).indices] = True
            if mask.any():
                ious.append(float((chosen & mask).sum() / (chosen | mask).sum()))
        return sum(ious) / len(ious) if ious else 0.0

    def _maps(self, batch: _Views, attended: AttentionPass) -> Float[Tensor, "views slots rows columns"]:
        """Maps of the slots; those of the background and of objects that are not learned here are added up first."""
        (backbone,) = self._backbone
        tokens = self.all_embeddings.flatten(0, 1)
        keys = {layer: backbone.prompt_keys(layer, tokens) for layer in self.cross_layers}
        grid = (batch.labels.shape[-2], batch.labels.shape[-1])
        maps = slot_maps(attended.prompt_queries, keys, self.slots, grid)
        others = self.slots - len(self._object_ids)
        return torch.cat([maps[:, :others].sum(1, keepdim=True), maps[:, others:]], dim=1)


def inversion_layers(backbone: PromptBackbone, options: PromptOptions) -> tuple[list[str], str]:
    """Layers whose cross-attention is optimised, and the layer whose self-attention propagates their maps.

    By default the first are the layers of the backbone without the last, whose cross-attention the pass reaches in any
    case, or its only layer; the second is the layer before them, which is mostly coarser and so cheaper.

    Raises:
        OptionError: the backbone has no such layer.
    """
    names = list(backbone.attention_layers)
    own = sorted(backbone.layers, key=names.index)
    cross = list(options.cross_layers) if options.cross_layers else own[:-1] or own
    first = min((names.index(name) for name in cross if name in names), default=0)
    self_layer = options.self_layer or names[max(first - 1, 0)]
    for option, wanted in (("cross_layers", cross), ("self_layer", [self_layer])):
        if unknown := [name for name in wanted if name not in names]:
            raise OptionError(f"textual_inversion.{option}", unknown[0], "among " + ", ".join(names))
    return cross, self_layer
