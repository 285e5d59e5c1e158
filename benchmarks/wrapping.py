"""A backbone around another one, which passes everything on: what those that keep or share work with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from drift.backbone import Backbone, LayerReading

__all__ = ["SharedFeatures", "WrappedBackbone"]


class WrappedBackbone(Backbone):
    """A backbone by what `backbone` does; subclasses change one part of it."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone

    @property
    def device(self) -> torch.device:
        """The other one's."""
        return self._backbone.device

    @property
    def stride(self) -> int:
        """The other one's."""
        return self._backbone.stride

    def encode(self, frames: Tensor) -> Tensor:
        """The other one's latents."""
        return self._backbone.encode(frames)

    def read(self, latents: Tensor, generator: torch.Generator, **prompt: Any) -> list[LayerReading]:
        """The other one's readings."""
        return self._backbone.read(latents, generator, **prompt)


class SharedFeatures(WrappedBackbone):
    """A backbone that several trackers use in turn on the same frame, and that works once for all of them."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self._frames: Tensor | None = None
        self._latents: Tensor | None = None
        self._readings: list[LayerReading] = []

    def encode(self, frames: Tensor) -> Tensor:
        """The other one's latents; those from before for the same frames."""
        if self._latents is None or self._frames is None or not torch.equal(frames, self._frames):
            self._frames, self._latents = frames, super().encode(frames)
            self._readings = []
        return self._latents

    def read(self, latents: Tensor, generator: torch.Generator, **prompt: Any) -> list[LayerReading]:
        """The other one's readings; those from before for the same frames."""
        if not self._readings:
            self._readings = super().read(latents, generator, **prompt)
        return self._readings
