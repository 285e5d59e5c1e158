"""`VisionTransformer`: base class of the backbones that are vision transformers, without noise and prompt."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drift.backbones.capture import capture, patches_on_grid
from drift.backbones.interface import Features
from drift.checkpoint_files import weights_fingerprint
from drift.noising.interface import Generators
from drift.precision import full_precision

__all__ = ["VisionTransformer"]


class VisionTransformer(nn.Module, ABC):
    """A frozen vision transformer that computes self-attention features of patches. Implements `Backbone`.

    Features contain no class and register tokens.

    Args:
        model: a model of diffusers or transformers; registered as a submodule.
        modules: its layers, or their attention modules, by name.
        layers: names of the layers whose features are returned.
        source: name of the checkpoint, for `description`.
    """

    batch = 1
    model: Any

    def __init__(
        self, model: nn.Module, modules: Mapping[str, nn.Module], *, layers: Sequence[str], source: str
    ) -> None:
        super().__init__()
        self.model, self._modules_by_layer = model, dict(modules)
        self._layers, self.source = tuple(layers), source
        self._description: dict[str, object] | None = None
        self.eval().requires_grad_(False)

    @property
    @abstractmethod
    def stride(self) -> int:
        """Pixels per patch."""

    @property
    @abstractmethod
    def layers(self) -> dict[str, int]:
        """The layers whose features are returned, with their number of heads."""

    @abstractmethod
    def _run(self, frames: Float[Tensor, "batch 3 height width"]) -> None:
        """One forward pass of the model for RGB frames in [0, 1] on its device."""

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: the model is frozen."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    @property
    def description(self) -> Mapping[str, object]:
        """What features depend on; computed once."""
        if self._description is None:
            described: Any = self.model if hasattr(self.model, "to_json_string") else self.model.config
            self._description = {
                "checkpoint": self.source,
                "weights": weights_fingerprint(self.model),
                "configs": hashlib.sha256(described.to_json_string().encode()).hexdigest()[:16],
                "layers": list(self._layers),
                "precision": str(self.model.dtype).removeprefix("torch."),
            }
        return self._description

    @torch.no_grad()
    def features(
        self,
        frames: Float[Tensor, "batch 3 height width"],
        generator: Generators,
        *,
        prompt: Float[Tensor, "prompts tokens dim"] | None = None,
        cross: Collection[str] = (),
    ) -> list[Features]:
        """See `Backbone`. The generator is not used."""
        if prompt is not None or cross:
            raise ValueError(f"{type(self).__name__} has no prompt")
        with full_precision(self.device.type), capture(self._modules_by_layer, self._layers) as captured:
            self._run(frames.to(self.device))
        rows, columns = (size // self.stride for size in frames.shape[-2:])
        on_grid = partial(patches_on_grid, grid=(rows, columns))
        return [Features(name, *map(on_grid, captured.self_attention[name])) for name in self._layers]
