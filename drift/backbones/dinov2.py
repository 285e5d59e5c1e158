"""DINOv2 (arXiv 2304.07193): a vision transformer without noise, latents and prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Dinov2Model

from drift.backbones.capture import LastLayerCaptured, watch_attention
from drift.backbones.checkpoint_files import load_part, load_weights, weights_fingerprint, weights_variant
from drift.backbones.interface import Features
from drift.errors import OptionError
from drift.precision import full_precision

__all__ = ["DINOv2", "from_checkpoint"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


def from_checkpoint(
    path: Path, *, source: str, dtype: torch.dtype, layers: Sequence[str] | None = None
) -> DINOv2:
    """A DINOv2 model in transformers' layout.

    Args:
        path: the folder of the checkpoint.
        source: the checkpoint as the user named it, for the description.
        dtype: data type of weights and activations.
        layers: names of the layers whose features are computed ("encoder.layer.11"); None for the last.

    Raises:
        InputError: the checkpoint is incomplete or corrupt.
        OptionError: the model has no such layer.
    """

    def load(folder: Path) -> Any:
        variant = weights_variant([file.name for file in folder.iterdir()], dtype, folder)
        return load_weights(Dinov2Model, folder, dtype, variant=variant, unused=("classifier.",))

    return DINOv2(load_part(path, load), layers=layers, source=source)


class DINOv2(nn.Module):
    """A frozen DINOv2 model that computes self-attention features of frames.

    Implements `Backbone`. Frames are normalised with ImageNet's mean and standard deviation; position embeddings are
    interpolated to the frames' size by the model. Features leave out the class token. Layers after the last requested
    one are dropped.

    Args:
        model: transformers' model; becomes part of the backbone.
        layers: names of the layers whose features are returned ("encoder.layer.11"); None for the last.
        source: the checkpoint, for `description`.

    Raises:
        OptionError: a layer is named twice, or the model has no such layer.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(self, model: Dinov2Model, *, layers: Sequence[str] | None = None, source: str = "") -> None:
        super().__init__()
        every = [f"encoder.layer.{number}" for number in range(len(model.encoder.layer))]
        names = every[-1:] if layers is None else layers
        if (
            isinstance(names, str)
            or not names
            or len(set(names)) < len(names)
            or not set(names) <= set(every)
        ):
            allowed = "one or more distinct layers among " + ", ".join(every) + ", or null for the last"
            raise OptionError("layers", names if isinstance(names, str) else list(names), allowed)
        self._layers, self.source = tuple(names), source
        model.encoder.layer = model.encoder.layer[: max(map(every.index, names)) + 1]
        model.set_attn_implementation("sdpa")  # the attention that `watch_attention` sees
        self.model = model
        self.register_buffer("_mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(_STD).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)
        self._description: dict[str, object] | None = None

    def train(self, mode: bool = True) -> DINOv2:
        """Stays in evaluation mode: the model is frozen."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self._mean.device

    @property
    def stride(self) -> int:
        """Pixels per patch: 14 for the published models."""
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
        with full_precision(self.device.type):
            captured = self._captured(pixels)
        grid = tuple(size // self.stride for size in frames.shape[-2:])

        def on_grid(tokens: Tensor) -> Tensor:
            patches = tokens[..., tokens.shape[-2] - grid[0] * grid[1] :, :]
            return patches.unflatten(-2, grid).float()

        return [Features(name, *map(on_grid, captured[name])) for name in self._layers]

    def _captured(self, pixels: Tensor) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Queries, keys and inputs of the attention of `layers`. The pass ends at the last of them."""
        captured: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        entered: list[tuple[str, Tensor]] = []

        def enter(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            entered.append((name, inputs[0]))

        def keep(queries: Tensor, keys: Tensor) -> None:
            if entered:
                name, inputs = entered.pop()
                captured[name] = (queries, keys, inputs)
            if len(captured) == len(self._layers):
                raise LastLayerCaptured

        with ExitStack() as hooks:
            for name in self._layers:
                attention = self.model.get_submodule(name).attention
                hooks.callback(attention.register_forward_pre_hook(partial(enter, name)).remove)
            with suppress(LastLayerCaptured), watch_attention(keep):
                self.model(pixels)
        return captured
