"""The interface between image models and the rest of drift: `Features` and the protocol `Backbone`.

A family of models is one file whose class implements `Backbone`. `PromptBackbone` adds what only models with a text
prompt can do; `as_prompt_backbone` asks for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, cast

import torch
from jaxtyping import Float
from torch import Tensor

from drift.errors import OptionError
from drift.noising.interface import Generators

__all__ = ["AttentionPass", "Backbone", "Features", "PromptBackbone", "as_prompt_backbone", "concatenate"]


@dataclass(frozen=True)
class Features:
    """What one attention layer computes with, for a batch of frames.

    Attributes:
        layer: the layer's name in the model.
        queries: queries of each head, after query norms and rotary embedding, not yet scaled by 1/√dim.
        keys: keys of each head, as the queries.
        tokens: the input of the layer, one vector per position.
        prompt_queries: queries of the cross-attention that follows the layer, where they were requested.
    """

    layer: str
    queries: Float[Tensor, "batch heads height width dim"]
    keys: Float[Tensor, "batch heads height width dim"]
    tokens: Float[Tensor, "batch height width channels"]
    prompt_queries: Float[Tensor, "batch prompt_heads height width prompt_dim"] | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.queries.shape[2], self.queries.shape[3]

    def to(self, device: torch.device) -> Features:
        """The features on `device`."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return replace(self, **moved)  # type: ignore[arg-type]

    def split(self) -> list[Features]:
        """Splits the batch into batches of one frame. Tensors are copied, so that none keeps the whole batch alive."""
        if len(self.queries) == 1:
            return [self]
        tensors = self.tensors()
        return [
            Features(self.layer, **{name: tensor[i : i + 1].clone() for name, tensor in tensors.items()})
            for i in range(len(self.queries))
        ]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by attribute name, without those that are None."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "layer"}
        return {name: value for name, value in values.items() if value is not None}


def concatenate(batches: Sequence[Features]) -> Features:
    """Concatenates the features of one layer along the batch dimension; the inverse of `Features.split`."""
    if len(batches) == 1:
        return batches[0]
    tensors = [batch.tensors() for batch in batches]
    return Features(batches[0].layer, **{name: torch.cat([t[name] for t in tensors]) for name in tensors[0]})


class Backbone(Protocol):
    """A frozen image model with self-attention. Implementations are `torch.nn.Module`s or plain objects."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""

    @property
    def stride(self) -> int:
        """Pixels per token of the finest grid along each axis; frames are padded to its multiples."""

    @property
    def layers(self) -> Mapping[str, int]:
        """The layers whose features are returned, in order, and the number of heads of each."""

    @property
    def batch(self) -> int:
        """Number of frames of a clip per forward pass."""

    @property
    def description(self) -> Mapping[str, object]:
        """What features depend on besides the frames: checkpoint, weights, layers, noise; JSON-serialisable."""

    def features(
        self,
        frames: Float[Tensor, "batch 3 height width"],
        generator: Generators,
        *,
        prompt: Float[Tensor, "prompts tokens dim"] | None = None,
        cross: Collection[str] = (),
    ) -> list[Features]:
        """Features of attention layers for a batch of frames, in float32.

        Args:
            frames: RGB in [0, 1]; height and width are multiples of `stride`.
            generator: source of the noise added to the frames, if any; see `Generators`.
            prompt: embeddings of the prompts; the features are averaged over several. None for the backbone's own
                prompt. Only a `PromptBackbone` accepts another value.
            cross: layers whose `prompt_queries` are requested. Only a `PromptBackbone` accepts them.

        Returns:
            Features of `layers` in order, then of those layers of `cross` that are not among them.
        """


@dataclass(frozen=True)
class AttentionPass:
    """What one forward pass of a `PromptBackbone` yields.

    Attributes:
        features: features of the requested self-attention layers, by layer.
        prompt_queries: queries of the requested cross-attention layers, by layer, not yet scaled by 1/√dim.
        output: output of the model for the latents (noise or velocity), where it was requested.
    """

    features: Mapping[str, Features]
    prompt_queries: Mapping[str, Float[Tensor, "batch heads height width dim"]]
    output: Float[Tensor, "batch channels rows columns"] | None = None


class PromptBackbone(Backbone, Protocol):
    """A diffusion model whose tokens attend to a prompt: what textual inversion needs."""

    @property
    def prompt(self) -> Float[Tensor, "1 tokens dim"]:
        """Embeddings of the backbone's own prompt."""

    @property
    def attention_layers(self) -> Mapping[str, int]:
        """All attention layers of the model in the order of the forward pass, with their number of heads."""

    def encode(
        self, frames: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Clean latents of RGB frames in [0, 1], height and width multiples of `stride`."""

    def noised(
        self, latents: Float[Tensor, "batch channels rows columns"], generator: torch.Generator
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Clean latents taken to the timestep at which features are computed, under the backbone's own prompt."""

    def attend(
        self,
        latents: Float[Tensor, "batch channels rows columns"],
        prompt: Float[Tensor, "#batch tokens dim"],
        *,
        layers: Collection[str] = (),
        cross: Collection[str] = (),
        output: bool = False,
    ) -> AttentionPass:
        """One forward pass over noisy latents, differentiable with respect to `prompt`.

        The pass ends at the last requested layer unless `output` is set.
        """

    def prompt_keys(
        self, layer: str, embeddings: Float[Tensor, "tokens dim"]
    ) -> Float[Tensor, "heads tokens key_dim"]:
        """Keys of embeddings in the cross-attention of `layer`, differentiable with respect to them."""

    def training_target(
        self,
        clean: Float[Tensor, "batch channels rows columns"],
        noisy: Float[Tensor, "batch channels rows columns"],
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Training target (noise or velocity) of the model for `noisy` latents whose clean latents are `clean`.

        Raises:
            OptionError: features are computed on latents without noise, so there is no target.
        """


def as_prompt_backbone(backbone: Backbone, option: str, value: object) -> PromptBackbone:
    """The backbone as a `PromptBackbone`.

    Args:
        backbone: any backbone.
        option, value: the option that needs a prompt, for the error message.

    Raises:
        OptionError: the backbone has no prompt.
    """
    if not hasattr(backbone, "prompt_keys"):
        name = type(getattr(backbone, "backbone", backbone)).__name__  # inside a cache
        raise OptionError(
            option, value, f"a value that needs no cross-attention to a prompt: {name} has none"
        )
    return cast(PromptBackbone, backbone)
