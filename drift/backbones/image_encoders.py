"""`ImageEncoder`: base class of the image encoders of transformers. A family is one subclass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from drift.backbones.capture import check_layers
from drift.backbones.vision_transformers import VisionTransformer
from drift.checkpoint_files import load_part, load_weights

__all__ = ["ImageEncoder"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageEncoder(VisionTransformer):
    """A frozen vision transformer of transformers that computes self-attention features of frames.

    See `VisionTransformer`. Layers after the last requested one are dropped.

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
        every = model.get_submodule(self.layer_list)
        assert isinstance(every, nn.ModuleList)
        available = tuple(f"{self.layer_list}.{number}" for number in range(len(every)))
        names = available[-1:] if layers is None else layers
        check_layers(names, available, ", or null for the last")
        del every[1 + max(int(name.rpartition(".")[2]) for name in names) :]
        model.set_attn_implementation("sdpa")  # the attention that `capture` sees
        attention = {name: model.get_submodule(f"{name}.{self.attention}") for name in names}
        super().__init__(model, attention, layers=names, source=source)
        self.available_layers = available
        self.register_buffer("_mean", torch.tensor(self.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std).view(3, 1, 1), persistent=False)

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
        load = partial(load_weights, cls.architecture, dtype=dtype, unused=cls.unused)
        return cls(load_part(path, load), layers=layers, source=source)

    @property
    def stride(self) -> int:
        """Pixels per patch."""
        return int(self.model.config.patch_size)

    @property
    def layers(self) -> dict[str, int]:
        """The layers whose features are returned, with their number of heads."""
        return dict.fromkeys(self._layers, int(self.model.config.num_attention_heads))

    def _run(self, frames: Tensor) -> None:
        self._encode(((frames - self._mean) / self._std).to(self.model.dtype))

    def _encode(self, pixels: Float[Tensor, "batch 3 height width"]) -> None:
        """One forward pass of the model."""
        self.model(pixels)
