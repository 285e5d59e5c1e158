"""Adaptive head weighting: learns on a clip's given frame which layers and heads propagate its masks best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from drift.adaptation.fitting import ClipModule, FitOptions, fit
from drift.adaptation.schemes import HeadScheme, HeadWeights, scaled_weights
from drift.adaptation.views import View, augmented_views
from drift.backbones.interface import Backbone, Features
from drift.configuration import groups
from drift.propagation.candidates import CandidateKeys, candidate_keys
from drift.propagation.heads import (
    Comparison,
    PropagationOptions,
    compare,
    mean_over_heads,
    propagate_by_head,
)
from drift.propagation.labels import downsampling, finest, pad_to_stride, pooled

__all__ = ["HeadWeighting", "Learned"]

_MARGIN = 7  # tokens: background this close to an object counts as much as the rest of the background
_MAX_REACH = 12  # tokens: displacement of the views where the radius is larger or unlimited
# Joint heads choose the top-k keys among 4 times as many, which are chosen anew after half the sum of the absolute
# differences of the weights has exceeded 0.2. A top-k that would take more candidates than this chooses among all keys.
_CANDIDATES = 4
_MOST_CANDIDATES = 512
_CHANGE = 0.2
_FLOOR = 1e-3  # of a probability: bounds the loss of a single token


@dataclass(frozen=True)
class _Example:
    """A view, ready to be propagated to.

    Attributes:
        features: features of the view, aligned with the frame where the view is mirrored.
        labels: background, then objects.
        token_weights: weight of each token in the loss; sum to 1. 0 where the frame does not show what the view shows.
        is_frame: whether the view is the given frame itself.
        by_head: labels that each head propagates to the view, by layer, where they do not depend on the weights.
    """

    features: list[Features]
    labels: Float[Tensor, "channels rows columns"]
    token_weights: Float[Tensor, "rows columns"]
    is_frame: bool
    by_head: list[Float[Tensor, "heads rows columns channels"]] = field(default_factory=list)


@dataclass(frozen=True)
class Learned(FitOptions, HeadScheme):
    """Weights learned on the given frame and augmented views of it; see `HeadWeighting`.

    Attributes:
        layer_weights: weights to start from, as for `Fixed`; None for equal weights.
        caution: weight of the Kullback-Leibler divergence from these in the loss; 0 for none.
        views: number of augmented views beside the frame itself.
        learning_rate, steps, patience, tolerance: see `FitOptions`.

    Raises:
        OptionError: an option is out of range.
    """

    layer_weights: Mapping[str, float | Sequence[float]] | None = None
    _: KW_ONLY
    caution: float = 0.1
    views: int = 6
    learning_rate: float = 0.3
    steps: int = 100
    patience: int = 5
    tolerance: float = 0.001

    learned = True
    group = "head_weighting."
    kind = groups.Learning

    def weights(self, layers: Mapping[str, int]) -> HeadWeights:
        """See `HeadScheme`."""
        return {} if self.layer_weights is None else scaled_weights(self.layer_weights, layers)

    def learn(
        self,
        backbone: Backbone,
        frame: UInt8[np.ndarray, "height width 3"],
        mask: UInt8[np.ndarray, "height width"],
        propagation: PropagationOptions,
        *,
        prompt: Float[Tensor, "prompts tokens dim"] | None = None,
        seed: int = 0,
    ) -> tuple[HeadWeights, list[float]]:
        """See `HeadScheme`."""
        module = HeadWeighting(backbone, frame, mask, propagation, self, prompt=prompt, seed=seed)
        fit(module)
        return module.weights(), module.losses


class HeadWeighting(ClipModule[Backbone]):
    """Learns the weights w = softmax(θ) of all heads of all layers (`docs/method.md`, "Adaptive head weighting").

    The given mask is propagated from the frame to augmented views of it, whose masks are known, and to the frame
    itself, where a token never attends to itself. The loss is the cross-entropy to the known masks; every object and
    the background count the same. Features are computed once, before the first step.

    Args:
        backbone: a frozen backbone.
        frame: the given frame, RGB.
        mask: object ids of its pixels, 0 for the background.
        propagation: how labels are going to be propagated.
        options: how weights are learned.
        prompt: prompt embeddings under which the clip is processed; None for the backbone's own prompt.
        seed: seed of the views and of the backbone's noise.

    Raises:
        OptionError: `options.layer_weights` do not fit the backbone's layers.

    Example:
        >>> from drift import HeadWeighting, fit, load_backbone
        >>> frame, mask = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
        >>> frame[16:48, 16:48], mask[16:48, 16:48] = 255, 1
        >>> module = HeadWeighting(load_backbone(), frame, mask)
        >>> fit(module, steps=2)
        >>> {layer: len(weights) for layer, weights in module.weights().items()}
        {'up_blocks.1.attentions.0': 4}
    """

    start: Tensor

    def __init__(
        self,
        backbone: Backbone,
        frame: UInt8[np.ndarray, "height width 3"],
        mask: UInt8[np.ndarray, "height width"],
        propagation: PropagationOptions | None = None,
        options: Learned | None = None,
        *,
        prompt: Float[Tensor, "prompts tokens dim"] | None = None,
        seed: int = 0,
    ) -> None:
        self.propagation, self.options = propagation or PropagationOptions(), options or Learned()
        super().__init__(backbone, self.options)
        self._prompt, self._seed = prompt, seed
        self._views = augmented_views(
            frame,
            mask,
            count=self.options.views,
            reach=reach_in_pixels(self.propagation.radius, backbone.stride),
            stride=backbone.stride,
            seed=seed,
        )
        self.batches = len(self._views)
        self._object_ids = [int(number) for number in np.unique(mask) if number]
        self.layers = dict(backbone.layers)
        start = _initial_logits(self.options.weights(self.layers), self.layers)
        self.register_buffer("start", start, persistent=False)
        self.theta = nn.Parameter(start.clone())
        self._examples: list[_Example] = []
        self._keys: list[list[Tensor]] = []
        self._labels: list[list[Tensor]] = []
        self._candidates: list[list[CandidateKeys]] = []  # of each view
        self._chosen_at = self.theta.detach().softmax(0)

    def weights(self) -> HeadWeights:
        """The learned weights by layer, on the CPU."""
        return {layer: weights.detach().cpu() for layer, weights in self._by_layer(self.theta).items()}

    def on_fit_start(self) -> None:
        """Computes the features of all views, and what each head propagates if it does not depend on the weights."""
        generator = torch.Generator().manual_seed(self._seed)
        with torch.no_grad():
            self._examples = [
                self._example(view, generator, is_frame=number == 0)
                for number, view in enumerate(self._views)
            ]
            frame = self._examples[0]
            compared = compare(frame.features, self.propagation)
            self._keys = [[one.keys] for one in compared]
            self._labels = [[pooled(frame.labels, one.grid).permute(1, 2, 0)] for one in compared]
            if self.propagation.heads == "separate":
                self._examples = [
                    replace(view, by_head=self._by_head(view, compare(view.features, self.propagation)))
                    for view in self._examples
                ]

    def on_train_epoch_start(self) -> None:
        """Chooses the candidate keys of joint heads, unless the weights have hardly changed since the last choice."""
        super().on_train_epoch_start()
        top_k = self.propagation.top_k
        if self.propagation.heads == "separate" or top_k is None or _CANDIDATES * top_k > _MOST_CANDIDATES:
            return
        weights = self.theta.detach().softmax(0)
        if self._candidates and (weights - self._chosen_at).abs().sum() / 2 <= _CHANGE:
            return
        self._chosen_at = weights
        self._candidates = [
            candidate_keys(
                view.features,
                [self._examples[0].features],
                self._labels,
                self.propagation,
                self._by_layer(self.theta.detach()),
                count=_CANDIDATES * top_k,
                exclude_self=view.is_frame,
            )
            for view in self._examples
        ]

    def train_dataloader(self) -> DataLoader:
        """The frame and its augmented views, one per batch."""
        return DataLoader(self._examples, batch_size=None)  # type: ignore[arg-type]

    def training_step(self, batch: _Example, batch_idx: int) -> Tensor:
        """Cross-entropy of the labels propagated to a view, and the divergence from the initial weights."""
        weights = self._by_layer(self.theta)
        compared = compare(batch.features, self.propagation, weights)
        if self._candidates:
            by_head = [
                candidates.propagate(weights, labels, self.propagation)
                for candidates, labels in zip(self._candidates[batch_idx], self._labels, strict=True)
            ]
        else:
            by_head = batch.by_head or self._by_head(batch, compared)
        propagated = mean_over_heads(compared, by_head)
        cross_entropy = -(batch.labels * propagated.clamp(_FLOOR, 1).log()).sum(0)
        loss = (batch.token_weights * cross_entropy).sum()
        if self.options.caution:
            log_weights = self.theta.log_softmax(0)
            divergence = (log_weights.exp() * (log_weights - self.start.log_softmax(0))).sum()
            loss = loss + self.options.caution * divergence
        return self.logged(loss)

    def _by_head(self, view: _Example, compared: Sequence[Comparison]) -> list[Tensor]:
        return propagate_by_head(
            compared, self._keys, self._labels, self.propagation, exclude_self=view.is_frame
        )

    def _by_layer(self, theta: Float[Tensor, " all_heads"]) -> HeadWeights:
        return dict(zip(self.layers, theta.softmax(0).split(list(self.layers.values())), strict=True))

    def _example(self, view: View, generator: torch.Generator, *, is_frame: bool) -> _Example:
        (backbone,) = self._backbone
        features = backbone.features(view.image[None].to(backbone.device), generator, prompt=self._prompt)
        if view.flipped:
            features = [
                Features(layer.layer, layer.queries.flip(3), layer.keys.flip(3), layer.tokens.flip(2))
                for layer in features
            ]
        grid = finest(layer.grid for layer in features)
        stride = view.image.shape[-2] // backbone.stride
        stride = backbone.stride * downsampling(stride, grid[0])
        labels = view.labels(self._object_ids, stride).to(backbone.device)
        reachable = _reachable_tokens(view, stride).to(backbone.device)
        return _Example(features, labels, _token_weights(labels, reachable), is_frame)


def reach_in_pixels(radius: int | None, stride: int) -> float:
    """Largest displacement of augmented views: the radius of propagation, from 1 token to `_MAX_REACH` tokens."""
    return min(max(_MAX_REACH if radius is None else radius, 1), _MAX_REACH) * stride


def _initial_logits(weights: Mapping[str, Tensor], layers: Mapping[str, int]) -> Float[Tensor, " all_heads"]:
    """Logits whose softmax are `weights`; for empty weights all layers count the same, and all heads of a layer."""
    if not weights:
        return torch.cat([torch.full((heads,), 1.0 / heads) for heads in layers.values()]).log()
    return torch.cat([weights[layer] for layer in layers]).clamp(min=1e-6).log()


def _reachable_tokens(view: View, stride: int) -> Bool[Tensor, "rows columns"]:
    """Tokens all of whose pixels lie within the reach of the frame."""
    hidden = pad_to_stride((~view.reachable)[None, None].float(), stride)
    return F.max_pool2d(hidden, stride)[0, 0] == 0


def _token_weights(
    labels: Float[Tensor, "channels rows columns"], reachable: Bool[Tensor, "rows columns"]
) -> Float[Tensor, "rows columns"]:
    """Equal total weight for each object and for the background, half of which is for tokens close to an object."""
    channel = labels.argmax(0)
    margin = F.max_pool2d((channel > 0)[None].float(), _MARGIN, 1, _MARGIN // 2)[0] > 0
    groups = [[channel == number] for number in range(1, len(labels))]
    groups.append([(channel == 0) & margin, (channel == 0) & ~margin])
    weights = torch.zeros_like(labels[0])
    for group in groups:
        present = [region & reachable for region in group]
        present = [region for region in present if region.any()]
        for region in present:
            weights[region] = 1 / (len(present) * region.sum())
    return weights / weights.sum().clamp(min=1e-12)
