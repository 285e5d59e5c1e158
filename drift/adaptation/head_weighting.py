"""Adaptive head weighting: which layers and heads carry this clip's masks best (design 2.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from drift.adaptation.views import View
from drift.backbone.interface import LayerReading
from drift.errors import OptionError
from drift.propagation.affinity import comparisons, on_finest_grid
from drift.propagation.labels import downsampling, finest, pad_to_stride
from drift.propagation.tracker import Tracker

__all__ = ["HEAD_WEIGHTINGS", "HeadLearning", "Propagation", "first_logits", "fixed_weights", "single_head"]

HEAD_WEIGHTINGS = ("uniform", "single", "learned", "fixed")

_BAND = 7  # tokens across: from this margin of the objects a third of the queries is taken
_WIDEST = 12  # tokens: the reach on which weights are learned where propagation has none or a larger one
_LEAST = 1e-3  # of a probability: one query that is wholly wrong shall not outweigh all others


@dataclass(frozen=True)
class Propagation:
    """How the tracker propagates, as far as head weights are concerned; see `Tracker`."""

    affinity: str
    heads: str
    temperature: float
    top_k: int | None
    radius: int | None

    @staticmethod
    def of(tracker: Tracker) -> Propagation:
        """As this tracker does."""
        return Propagation(
            tracker.affinity, tracker.heads, tracker.temperature, tracker.top_k, tracker.radius
        )

    @property
    def reach(self) -> int:
        """How many tokens away head weights are learned: the radius, from 1 to a limit."""
        return min(max(_WIDEST if self.radius is None else self.radius, 1), _WIDEST)


@dataclass(frozen=True)
class _Places:
    """Sampled queries and what lies in their windows on the frame.

    Attributes:
        logits: of every head of every layer with each key; -inf where there is none, or it is the query itself.
        labels: the share of the background and of each object at each query.
        candidates: likewise at each key.
    """

    logits: Float[Tensor, "heads queries window"]
    labels: Float[Tensor, "queries channels"]
    candidates: Float[Tensor, "queries window channels"]


class HeadLearning:
    """The loss of head weights on cached logits: no pass of the UNet takes place here.

    The given mask is carried from the frame to places of its views, and to other places of the frame itself; the
    loss is the cross-entropy to the warped mask, each object and the background counting the same.

    Args:
        readings: of every view, `views[0]` being the frame itself.
        views: of the frame.
        object_ids: of its mask.
        propagation: how labels are carried.
        first: θ to start from; see `first_logits`.
        caution: what leaving the first weights costs: the factor of the divergence from them in the loss.
        queries: how many places of each view are taken: a third each on objects, close to them, and elsewhere.
        generator: of their choice.
    """

    def __init__(
        self,
        readings: Sequence[Sequence[LayerReading]],
        views: Sequence[View],
        object_ids: Sequence[int],
        *,
        propagation: Propagation,
        first: Float[Tensor, " heads"],
        caution: float,
        queries: int,
        generator: torch.Generator,
    ) -> None:
        self.propagation, self.first, self.caution = propagation, first, caution
        tokens = [_tokens(of_view, propagation.affinity) for of_view in readings]
        self.layers = [reading.name for reading in readings[0]]
        self.heads = [reading.queries.shape[1] for reading in readings[0]]
        self.layer_of = _layer_of(dict(zip(self.layers, self.heads, strict=True)), propagation.affinity)
        stride = downsampling(views[0].image.shape[-2], tokens[0][0][0].shape[1])
        labels = [view.labels(object_ids, stride) for view in views]
        chosen = [
            _chosen(label, _reachable(view, stride), queries, generator)
            for label, view in zip(labels, views, strict=True)
        ]
        parts = []
        for number, (view, label, where) in enumerate(zip(views, labels, chosen, strict=True)):
            logits, keys = _window_logits(
                [(layer.flip(2) if view.flipped else layer) for layer, _ in tokens[number]],
                [layer for _, layer in tokens[0]],
                where,
                propagation.reach,
                never_itself=number == 0,
            )
            candidates = labels[0].flatten(1).T[keys]
            parts.append(_Places(logits, label[:, where[:, 0], where[:, 1]].T, candidates))
        self._places = _Places(
            torch.cat([part.logits for part in parts], dim=1),
            torch.cat([part.labels for part in parts]),
            torch.cat([part.candidates for part in parts]),
        )
        self._counts = self._balance(self._places.labels)

    def loss(self, theta: Float[Tensor, " heads"]) -> Float[Tensor, ""]:
        """The balanced cross-entropy of the labels that weights of softmax(θ) carry, and the price of caution."""
        carried = self.carried(theta.softmax(0)).clamp(_LEAST, 1)
        surprise = -(self._places.labels * carried.log()).sum(-1)
        loss = (self._counts * surprise).sum()
        if self.caution:
            first = self.first.to(theta).log_softmax(0)
            loss = loss + self.caution * (theta.softmax(0) * (theta.log_softmax(0) - first)).sum()
        return loss

    def carried(self, weights: Float[Tensor, " heads"]) -> Float[Tensor, "queries channels"]:
        """The labels that reach the sampled queries under these weights, one per head."""
        logits = self._places.logits
        if self.propagation.heads == "separate":
            return torch.einsum("h,hqc->qc", weights, self._attended(logits))
        sizes = torch.bincount(self.layer_of)[self.layer_of]
        scaled = weights * sizes
        if self.propagation.heads == "fused":
            return self._attended(_summed(scaled, logits)[None])[0]
        total = torch.zeros_like(self._places.labels)
        for layer in range(len(self.layers)):
            mine = self.layer_of == layer
            share = weights[mine].sum()
            total = total + share * self._attended(_summed(scaled[mine] / share, logits[mine])[None])[0]
        return total

    def weights(self, theta: Float[Tensor, " heads"]) -> dict[str, Float[Tensor, " heads"]]:
        """softmax(θ) by layer, one for each of its heads."""
        weights = theta.detach().softmax(0)
        by_layer = [weights[self.layer_of == layer] for layer in range(len(self.layers))]
        return {
            name: each if len(each) == heads else each.sum().expand(heads) / heads
            for name, heads, each in zip(self.layers, self.heads, by_layer, strict=True)
        }

    def _attended(self, logits: Tensor) -> Tensor:
        """Labels from logits `(maps, queries, window)`, by the tracker's temperature and top-k."""
        scaled, candidates = logits / self.propagation.temperature, self._places.candidates
        if self.propagation.top_k is None or self.propagation.top_k >= scaled.shape[-1]:
            return torch.einsum("mqw,qwc->mqc", scaled.softmax(-1), candidates)
        values, keys = scaled.topk(self.propagation.top_k, dim=-1)
        kept = torch.stack(
            [candidates.gather(1, k[..., None].expand(*k.shape, candidates.shape[-1])) for k in keys]
        )
        return torch.einsum("mqw,mqwc->mqc", values.softmax(-1), kept)

    def _balance(self, labels: Tensor) -> Tensor:
        """Weights of the queries that sum to 1, each channel's queries having the same in all."""
        channel = labels.argmax(-1)
        count = torch.bincount(channel, minlength=labels.shape[-1]).float()
        return (1 / count[channel]) / (count > 0).sum()


def first_logits(
    heads: Mapping[str, int], weights: Mapping[str, Tensor], affinity: str
) -> Float[Tensor, " heads"]:
    """θ whose softmax are given weights.

    Args:
        heads: how many each layer has that is read; with cosine affinity a layer counts as one.
        weights: by layer; none for equal ones: every layer counts the same, and in it every head.
        affinity: see `Tracker`.
    """
    layer_of = _layer_of(heads, affinity)
    if not weights:
        return -torch.bincount(layer_of)[layer_of].float().log()
    each = [weights[name].sum(0, keepdim=True) if affinity == "cosine" else weights[name] for name in heads]
    return torch.cat(each).clamp(min=1e-6).log()


def _layer_of(heads: Mapping[str, int], affinity: str) -> Int64[Tensor, " heads"]:
    """Of every weight that is learned, the number of its layer."""
    counts = [1 if affinity == "cosine" else count for count in heads.values()]
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


def single_head(layers: Mapping[str, int], layer: str | None, head: int | None) -> dict[str, Tensor]:
    """All weight on one head of one layer, or on all heads of a layer where `head` is None.

    Args:
        layers: the layers that are read, with how many heads each has.
        layer: the layer's name.
        head: its number, from 0.

    Raises:
        OptionError: there is no such layer among those read, or no such head in it.
    """
    if layer is None or layer not in layers:
        raise OptionError(
            "layer", layer, "with head_weighting=single, one of backbone.layers: " + ", ".join(layers)
        )
    if head is not None and (isinstance(head, bool) or head not in range(layers[layer])):
        raise OptionError("head", head, f"0 to {layers[layer] - 1} for {layer}, or null for all of them")
    weights = {name: torch.zeros(heads) for name, heads in layers.items()}
    if head is None:
        weights[layer] += 1 / layers[layer]
    else:
        weights[layer][head] = 1
    return weights


def fixed_weights(
    layers: Mapping[str, int], weights: Mapping[str, float | Sequence[float]] | None
) -> dict[str, Tensor]:
    """Weights given by hand, one number for a layer or one for each of its heads; scaled to sum to 1.

    Raises:
        OptionError: a layer is not among those read, has another number of heads, or the weights are negative
            or all 0.
    """
    allowed = "with head_weighting=fixed, {layer: weight} or {layer: [a weight for each head]} of "
    allowed += ", ".join(f"{name} ({heads} heads)" for name, heads in layers.items())
    found = {name: torch.zeros(heads) for name, heads in layers.items()}
    for name, given in (weights or {}).items():
        try:
            numbers = torch.tensor(
                list(given) if isinstance(given, Sequence) else [given], dtype=torch.float32
            )
        except (TypeError, ValueError):
            raise OptionError("weights", weights, allowed) from None
        if name not in found or len(numbers) not in (1, layers[name]):
            raise OptionError("weights", weights, allowed)
        found[name] = numbers.expand(layers[name]) / (layers[name] if len(numbers) == 1 else 1)
    total = sum(float(each.sum()) for each in found.values())
    lowest = min(float(each.min()) for each in found.values())
    if not (total > 0 and lowest >= 0 and total < float("inf")):
        raise OptionError("weights", weights, allowed + "; none below 0, not all 0")
    return {name: each / total for name, each in found.items()}


def _tokens(readings: Sequence[LayerReading], affinity: str) -> list[tuple[Tensor, Tensor]]:
    """Queries and keys of every layer and head on the finest grid, `(heads, rows, columns, dim)`."""
    each = comparisons(readings, affinity=affinity, heads="separate")
    grid = finest(one.keys.shape[1:3] for one in each)
    return [(on_finest_grid(one.queries, grid), on_finest_grid(one.keys, grid)) for one in each]


def _reachable(view: View, stride: int) -> Bool[Tensor, "rows columns"]:
    """Tokens all of whose pixels can be reached."""
    hidden = pad_to_stride((~view.reachable)[None, None].float(), stride)
    return F.max_pool2d(hidden, stride)[0, 0] == 0


def _chosen(
    labels: Float[Tensor, "channels rows columns"],
    reachable: Bool[Tensor, "rows columns"],
    count: int,
    generator: torch.Generator,
) -> Int64[Tensor, "queries 2"]:
    """Places (row, column): up to a third of `count` each on objects, close to them, and elsewhere."""
    objects = labels[0] < 0.5
    margin = F.max_pool2d(objects[None, None].float(), _BAND, 1, _BAND // 2)[0, 0] > 0
    chosen = []
    for region in (objects, margin & ~objects, ~margin):
        places = (region & reachable).nonzero()
        order = torch.randperm(len(places), generator=generator)[: count // 3]
        chosen.append(places[order.to(places.device)])
    return torch.cat(chosen)


def _window_logits(
    queries: Sequence[Float[Tensor, "heads rows columns dim"]],
    keys: Sequence[Float[Tensor, "heads rows columns dim"]],
    places: Int64[Tensor, "queries 2"],
    radius: int,
    *,
    never_itself: bool,
) -> tuple[Float[Tensor, "all_heads queries window"], Int64[Tensor, "queries window"]]:
    """Logits of every head of all layers at some places with the keys of their windows, and which keys those are."""
    rows, columns = keys[0].shape[1:3]
    reach = torch.arange(-radius, radius + 1, device=places.device)
    offsets = torch.cartesian_prod(reach, reach)
    spots = places[:, None] + offsets
    size = torch.tensor([rows, columns], device=places.device)
    closed = ((spots < 0) | (spots >= size)).any(-1)
    if never_itself:
        closed |= (offsets == 0).all(-1)
    spots = spots.clamp(min=0).minimum(size - 1)
    flat = spots[..., 0] * columns + spots[..., 1]
    logits = []
    for layer_queries, layer_keys in zip(queries, keys, strict=True):
        asked = layer_queries[:, places[:, 0], places[:, 1]]
        for head, of_head in zip(asked, layer_keys.flatten(1, 2), strict=True):
            logits.append(torch.einsum("qd,qwd->qw", head, of_head[flat]))
    return torch.stack(logits).masked_fill(closed, float("-inf")), flat


def _summed(weights: Float[Tensor, " heads"], logits: Float[Tensor, "heads queries window"]) -> Tensor:
    """The weighted sum over heads; a closed key stays closed under weights of 0."""
    closed = logits[0] == float("-inf")
    total = torch.einsum("h,hqw->qw", weights, logits.masked_fill(closed, 0))
    return total.masked_fill(closed, float("-inf"))
