"""A backbone whose features are shared by several trackers."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from drift.backbones import Backbone, Features
from drift.noising.interface import Generators

__all__ = ["SharedFeatures"]


class SharedFeatures:
    """Computes the features of a frame once for all trackers that process it before the next frame.

    The trackers must use the same seed and the backbone's own prompt.

    Args:
        backbone: any backbone.
    """

    batch = 1

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._frames: Tensor | None = None
        self._features: list[Features] = []

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self._backbone.device

    @property
    def stride(self) -> int:
        """See `Backbone`."""
        return self._backbone.stride

    @property
    def layers(self) -> Mapping[str, int]:
        """See `Backbone`."""
        return self._backbone.layers

    @property
    def description(self) -> Mapping[str, object]:
        """See `Backbone`."""
        return self._backbone.description

    def features(
        self,
        frames: Tensor,
        generator: Generators,
        *,
        prompt: Tensor | None = None,
        cross: Collection[str] = (),
    ) -> list[Features]:
        """See `Backbone`."""
        assert prompt is None
        assert not cross
        if self._frames is None or not torch.equal(frames, self._frames):
            self._features, self._frames = self._backbone.features(frames, generator), frames
        return self._features
