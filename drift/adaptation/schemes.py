"""Schemes of head weighting: how much each attention head counts in propagation.

A new scheme is one class that implements `HeadScheme` and one YAML in `configs/adaptation/head_weighting/`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from drift.backbones.interface import Backbone
from drift.errors import OptionError
from drift.propagation.heads import PropagationOptions

__all__ = ["Fixed", "HeadScheme", "HeadWeights", "Single", "Uniform", "scaled_weights"]

HeadWeights = dict[str, Float[Tensor, " heads"]]
"""Weight of each head by layer; over all layers they sum to 1. Empty for equal weights."""


class HeadScheme(Protocol):
    """A scheme of head weighting, a frozen dataclass of its options.

    Attributes:
        learned: whether the weights depend on the clip.
    """

    learned: bool = False

    def weights(self, layers: Mapping[str, int]) -> HeadWeights:
        """Weights before any clip is seen: the result, or where learning starts.

        Args:
            layers: layers of the backbone, with their number of heads.

        Raises:
            OptionError: the scheme does not fit these layers.
        """
        ...

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
        """Weights for a clip, and the loss of each step in which they were learned.

        Args:
            backbone: the frozen backbone.
            frame: the first frame with a given mask, RGB.
            mask: object ids of its pixels, 0 for the background.
            propagation: how labels are going to be propagated.
            prompt: prompt embeddings under which the clip is processed; None for the backbone's own prompt.
            seed: seed of everything that is drawn.
        """
        return self.weights(backbone.layers), []


@dataclass(frozen=True)
class Uniform(HeadScheme):
    """All layers count the same, and all heads of a layer."""

    def weights(self, layers: Mapping[str, int]) -> HeadWeights:
        """See `HeadScheme`."""
        return {}


@dataclass(frozen=True)
class Single(HeadScheme):
    """All weight on one layer, or on one of its heads.

    Attributes:
        layer: the layer's name.
        head: number of the head, from 0; None for all heads of the layer.
    """

    layer: str | None = None
    head: int | None = None

    def weights(self, layers: Mapping[str, int]) -> HeadWeights:
        """See `HeadScheme`."""
        if self.layer is None or self.layer not in layers:
            raise OptionError(
                "head_weighting.layer", self.layer, "one of backbone.layers: " + ", ".join(layers)
            )
        if self.head is not None and (
            isinstance(self.head, bool) or self.head not in range(layers[self.layer])
        ):
            allowed = f"0 to {layers[self.layer] - 1} for {self.layer}, or null for all of its heads"
            raise OptionError("head_weighting.head", self.head, allowed)
        weights = {layer: torch.zeros(heads) for layer, heads in layers.items()}
        if self.head is None:
            weights[self.layer] += 1 / layers[self.layer]
        else:
            weights[self.layer][self.head] = 1
        return weights


@dataclass(frozen=True)
class Fixed(HeadScheme):
    """Given weights, scaled to sum to 1.

    Attributes:
        layer_weights: layer -> a weight for the layer or a list with a weight for each of its heads.
    """

    layer_weights: Mapping[str, float | Sequence[float]] | None = None

    def weights(self, layers: Mapping[str, int]) -> HeadWeights:
        """See `HeadScheme`."""
        if self.layer_weights is None:
            raise OptionError("head_weighting.layer_weights", None, "{LAYER: WEIGHT, ...}")
        return scaled_weights(self.layer_weights, layers)


def scaled_weights(weights: Mapping[str, float | Sequence[float]], layers: Mapping[str, int]) -> HeadWeights:
    """Weights by layer and head that sum to 1; layers that are not mentioned get 0.

    Args:
        weights: layer -> a weight for the layer or a list with a weight for each of its heads.
        layers: layers of the backbone, with their number of heads.

    Raises:
        OptionError: a layer or a number of heads does not fit, or the weights are negative or all 0.
    """
    allowed = "{LAYER: WEIGHT} or {LAYER: [WEIGHT OF EACH HEAD]} of " + ", ".join(
        f"{layer} ({heads} heads)" for layer, heads in layers.items()
    )
    error = OptionError("head_weighting.layer_weights", weights, allowed + "; none below 0, not all 0")
    scaled = {layer: torch.zeros(heads) for layer, heads in layers.items()}
    for layer, value in weights.items():
        numbers: Any = list(value) if isinstance(value, Sequence) else [value]
        try:
            tensor = torch.tensor(numbers, dtype=torch.float32)
        except (TypeError, ValueError):
            raise error from None
        counts = (1, layers.get(layer))
        if layer not in scaled or tensor.dim() != 1 or len(tensor) not in counts or not (tensor >= 0).all():
            raise error
        scaled[layer] = tensor.expand(layers[layer]) / (layers[layer] if len(tensor) == 1 else 1)
    total = sum(float(tensor.sum()) for tensor in scaled.values())
    if not 0 < total < math.inf:
        raise error
    return {layer: tensor / total for layer, tensor in scaled.items()}
