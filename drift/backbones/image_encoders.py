"""`ImageEncoder`: what vision transformers without noise, latents and prompt share. A family is one subclass."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from drift.backbones.capture import capture, check_layers, patches_on_grid
from drift.backbones.interface import Features
from drift.checkpoint_files import load_part, load_weights, weights_fingerprint, weights_variant
from drift.precision import full_precision

__all__ = ["ImageEncoder"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageEncoder(nn.Module):
    """A frozen vision transformer of transformers that computes self-attention features of frames.

    Implements `Backbone`. Features leave out class and register tokens, which precede the patches. Layers after the
    last requested one are dropped.

    Class attributes, which a family defines:
        architecture: the class of the model in transformers.
        layer_list: the model's list of layers, as a path of submodules ("encoder.layer").
        attention: the attention of a layer.
        mean, std: of RGB values in [0, 1], which are normalised by them.
        unused: prefixes of weights in checkpoints that the model does without.

    Args:
        model: transformers' model; becomes part of the backbone.
        layers: names of the layers whose features are returned ("encoder.layer.11"); None for the last.
        source: the checkpoint, for `description`.

    Attributes:
        available_layers: names of all layers of the checkpoint.

    Raises:
        OptionError: a layer is named twice, or the model has no such layer.
    """

    architecture: ClassVar[type[PreTrainedModel]]
    layer_list: ClassVar[str] = "encoder.layer"
    attention: ClassVar[str] = "attention"
    mean: ClassVar[tuple[float, float, float]] = IMAGENET_MEAN
    std: ClassVar[tuple[float, float, float]] = IMAGENET_STD
    unused: ClassVar[tuple[str, ...]] = ("classifier.",)

    _mean: Tensor
    _std: Tensor

    def __init__(
        self, model: PreTrainedModel, *, layers: Sequence[str] | None = None, source: str = ""
    ) -> None:
        super().__init__()
        every = model.get_submodule(self.layer_list)
        assert isinstance(every, nn.ModuleList)
        self.available_layers = tuple(f"{self.layer_list}.{number}" for number in range(len(every)))
        names = self.available_layers[-1:] if layers is None else layers
        check_layers(names, self.available_layers, ", or null for the last")
        self._layers, self.source = tuple(names), source
        del every[1 + max(int(name.rpartition(".")[2]) for name in self._layers) :]
        model.set_attn_implementation("sdpa")  # the attention that `capture` sees
        self.model = model
        self.register_buffer("_mean", torch.tensor(self.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)
        self._description: dict[str, object] | None = None

    @classmethod
    def from_checkpoint(
        cls, path: Path, *, source: str, dtype: torch.dtype, layers: Sequence[str] | None = None
    ) -> Self:
        """A model in transformers' layout.

        Args:
            path: the folder of the checkpoint.
            source: the checkpoint as the user named it, for the description.
            dtype: data type of weights and activations.
            layers: names of the layers whose features are computed; None for the last.

        Raises:
            InputError: the checkpoint is incomplete or corrupt.
            OptionError: the model has no such layer.
        """

        def load(folder: Path) -> Any:
            variant = weights_variant([file.name for file in folder.iterdir()], dtype, folder)
            return load_weights(cls.architecture, folder, dtype, variant=variant, unused=cls.unused)

        return cls(load_part(path, load), layers=layers, source=source)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: the model is frozen."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self._mean.device

    @property
    def stride(self) -> int:
        """Pixels per patch."""
        return int(self.model.config.patch_size)

    @property
    def layers(self) -> dict[str, int]:
        """The layers whose features are returned, with their number of heads."""
        return dict.fromkeys(self._layers, int(self.model.config.num_attention_heads))

    @property
    def description(self) -> Mapping[str, object]:
        """What features depend on; computed once."""
        if self._description is None:
            config = self.model.config.to_json_string().encode()
            self._description = {
                "checkpoint": self.source,
                "weights": weights_fingerprint(self.model),
                "configs": hashlib.sha256(config).hexdigest()[:16],
                "layers": list(self._layers),
                "precision": str(self.model.dtype).removeprefix("torch."),
            }
        return self._description

    @torch.no_grad()
    def features(
        self,
        frames: Float[Tensor, "batch 3 height width"],
        generator: torch.Generator,
        *,
        prompt: Float[Tensor, "prompts tokens dim"] | None = None,
        cross: Collection[str] = (),
    ) -> list[Features]:
        """See `Backbone`. The generator is not used."""
        if prompt is not None or cross:
            raise ValueError(f"{type(self).__name__} has no prompt")
        pixels = ((frames.to(self.device) - self._mean) / self._std).to(self.model.dtype)
        attention = {name: self.model.get_submodule(f"{name}.{self.attention}") for name in self._layers}
        with full_precision(self.device.type), capture(attention, self._layers) as captured:
            self._encode(pixels)
        rows, columns = (size // self.stride for size in frames.shape[-2:])
        on_grid = partial(patches_on_grid, grid=(rows, columns))
        return [Features(name, *map(on_grid, captured.self_attention[name])) for name in self._layers]

    def _encode(self, pixels: Float[Tensor, "batch 3 height width"]) -> None:
        """One forward pass of the model."""
        self.model(pixels)
