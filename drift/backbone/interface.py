"""What the tracker asks of a backbone. A new family of models is one file that meets `Backbone`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from drift.stopwatch import Stopwatch

__all__ = ["Backbone", "LayerReading"]


@dataclass(frozen=True)
class LayerReading:
    """What one self-attention layer computes with, for a batch of frames.

    Attributes:
        name: the layer's name in the model.
        queries: one vector per head and token, not yet scaled by 1/√dim.
        keys: likewise.
        inputs: the tokens that the layer projects to queries and keys.
        prompt_queries: those of the cross-attention that follows, where it was asked for.
    """

    name: str
    queries: Float[Tensor, "batch heads height width dim"]
    keys: Float[Tensor, "batch heads height width dim"]
    inputs: Float[Tensor, "batch height width channels"]
    prompt_queries: Float[Tensor, "batch heads height width dim"] | None = None

    def on(self, device: torch.device) -> LayerReading:
        """The same on a device."""
        asked = None if self.prompt_queries is None else self.prompt_queries.to(device)
        return LayerReading(
            self.name, self.queries.to(device), self.keys.to(device), self.inputs.to(device), asked
        )


class Backbone(Protocol):
    """A frozen image model with self-attention."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""

    @property
    def stride(self) -> int:
        """Pixels per latent, along each axis; frames are padded to its multiples."""

    def encode(
        self, frames: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Latents of RGB frames in [0, 1] whose height and width are multiples of `stride`."""

    def read(
        self,
        latents: Float[Tensor, "batch channels rows columns"],
        generator: torch.Generator,
        *,
        condition: Float[Tensor, "groups tokens dim"] | None = None,
        cross: Collection[str] = (),
    ) -> list[LayerReading]:
        """The chosen layers' readings, in the order in which they were chosen; noise is drawn from `generator`.

        Under `condition`, the mean over its groups; None for the backbone's own. One that has none ignores it.
        `cross` names those of the layers whose cross-attention's queries are wanted too.
        """

    def read_frames(
        self,
        frames: Float[Tensor, "batch 3 height width"],
        generator: torch.Generator,
        *,
        condition: Float[Tensor, "groups tokens dim"] | None = None,
        cross: Collection[str] = (),
        stopwatch: Stopwatch | None = None,
    ) -> list[LayerReading]:
        """`encode` and `read` in one, as stages of the stopwatch; a backbone may have its readings from elsewhere."""
        stopwatch = stopwatch or Stopwatch()
        with stopwatch.stage("encode"):
            latents = self.encode(frames)
        with stopwatch.stage("unet"):
            return self.read(latents, generator, condition=condition, cross=cross)
