"""Representation autoencoders (arXiv 2510.11690): a frozen image encoder and a transformer that decodes its tokens.

diffusers has the autoencoder (`AutoencoderRAE`) and no transformer of its own for its latents. Another transformer, as
`DiTTransformer2DModel`, may be trained on them: such a checkpoint names `AutoencoderRAE` as its `vae`, and belongs to
the family of its transformer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderRAE
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from drift.backbones.autoencoders import encoder_tokens
from drift.backbones.capture import capture, check_layers, patches_on_grid
from drift.backbones.interface import Features
from drift.checkpoint_files import load_part, load_weights, weights_fingerprint, weights_variant
from drift.precision import full_precision

__all__ = ["RepresentationAutoencoder", "from_checkpoint"]

CHECKPOINTS = {"AutoencoderRAE": "rae"}


def from_checkpoint(
    path: Path, *, source: str, dtype: torch.dtype, layers: Sequence[str] | None = ("decoder.0",)
) -> RepresentationAutoencoder:
    """A representation autoencoder in diffusers' layout.

    Args:
        path: the folder of the checkpoint.
        source: the checkpoint as the user named it, for the description.
        dtype: data type of weights and activations.
        layers: see `RepresentationAutoencoder`.

    Raises:
        InputError: the checkpoint is incomplete or corrupt.
        OptionError: the model has no such layer.
    """

    def load(folder: Path) -> Any:
        variant = weights_variant([file.name for file in folder.iterdir()], dtype, folder)
        return load_weights(AutoencoderRAE, folder, dtype, variant=variant)

    return RepresentationAutoencoder(load_part(path, load), layers=layers, source=source)


class RepresentationAutoencoder(nn.Module):
    """A frozen representation autoencoder that computes self-attention features of frames, without noise and prompt.

    Implements `Backbone`. Position embeddings are interpolated to the frames' size.

    Args:
        autoencoder: diffusers' model; becomes part of the backbone.
        layers: names of the layers whose features are returned, of the encoder ("encoder.11") or of the decoder
            ("decoder.0"); None for all.
        source: the checkpoint, for `description`.

    Raises:
        OptionError: a layer is named twice, or the model has no such layer.
    """

    def __init__(self, autoencoder: Any, *, layers: Sequence[str] | None, source: str = "") -> None:
        super().__init__()
        lists = (module for module in autoencoder.encoder.modules() if isinstance(module, nn.ModuleList))
        inside = {"encoder": next(lists), "decoder": autoencoder.decoder.decoder_layers}
        every = {f"{part}.{n}": layer for part, several in inside.items() for n, layer in enumerate(several)}
        if layers is not None:
            check_layers(layers, every)
        autoencoder.encoder.set_attn_implementation("sdpa")  # the attention that `capture` sees
        self.autoencoder, self._modules_by_layer = autoencoder, every
        self._layers, self.source = tuple(every if layers is None else layers), source
        self.eval().requires_grad_(False)
        self._description: dict[str, object] | None = None

    def train(self, mode: bool = True) -> RepresentationAutoencoder:
        """Stays in evaluation mode: the model is frozen."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return torch.device(self.autoencoder.encoder_mean.device)

    @property
    def stride(self) -> int:
        """Pixels per patch of the encoder: 14 for DINOv2, 16 for the others."""
        return int(self.autoencoder.config["encoder_patch_size"])

    @property
    def layers(self) -> dict[str, int]:
        """The layers whose features are returned, with their number of heads."""
        config = self.autoencoder.config
        heads = {
            "encoder": config["encoder_hidden_size"] // 64,
            "decoder": config["decoder_num_attention_heads"],
        }
        return {name: int(heads[name.partition(".")[0]]) for name in self._layers}

    @property
    def available_layers(self) -> tuple[str, ...]:
        """The names that `layers` can hold."""
        return tuple(self._modules_by_layer)

    @property
    def description(self) -> Mapping[str, object]:
        """What features depend on; computed once."""
        if self._description is None:
            config = self.autoencoder.to_json_string().encode()
            self._description = {
                "checkpoint": self.source,
                "weights": weights_fingerprint(self.autoencoder),
                "configs": hashlib.sha256(config).hexdigest()[:16],
                "layers": list(self._layers),
                "precision": str(self.autoencoder.dtype).removeprefix("torch."),
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
        rows, columns = (size // self.stride for size in frames.shape[-2:])
        with full_precision(self.device.type), capture(self._modules_by_layer, self._layers) as captured:
            self._decode(encoder_tokens(self.autoencoder, frames.to(self.device)))
        on_grid = partial(patches_on_grid, grid=(rows, columns))
        return [Features(name, *map(on_grid, captured.self_attention[name])) for name in self._layers]

    def _decode(self, tokens: Float[Tensor, "batch rows columns channels"]) -> None:
        """Runs the layers of the decoder, at the grid of the tokens instead of the one size that it is trained for."""
        decoder = self.autoencoder.decoder
        positions = decoder.decoder_pos_embed.to(tokens)
        side = int(decoder.num_patches**0.5)
        of_patches = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
        resized = F.interpolate(of_patches, tokens.shape[1:3], mode="bicubic", align_corners=False)
        embedded = decoder.decoder_embed(tokens) + resized.permute(0, 2, 3, 1).to(tokens)
        first = decoder.trainable_cls_token + positions[:, :1]
        hidden = torch.cat([first.expand(len(tokens), -1, -1), embedded.flatten(1, 2)], dim=1)
        for layer in decoder.decoder_layers:
            hidden = layer(hidden)
