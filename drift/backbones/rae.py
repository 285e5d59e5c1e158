"""Representation autoencoders (arXiv 2510.11690): a frozen image encoder and a transformer that decodes its tokens.

diffusers has the autoencoder (`AutoencoderRAE`) and no transformer of its own for its latents. Another transformer, as
`DiTTransformer2DModel`, may be trained on them: such a checkpoint names `AutoencoderRAE` as its `vae`, and belongs to
the family of its transformer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderRAE
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from drift.backbones.autoencoders import encoder_tokens
from drift.backbones.capture import check_layers
from drift.backbones.vision_transformers import VisionTransformer
from drift.checkpoint_files import load_part, load_weights

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
    autoencoder = load_part(path, partial(load_weights, AutoencoderRAE, dtype=dtype))
    return RepresentationAutoencoder(autoencoder, layers=layers, source=source)


class RepresentationAutoencoder(VisionTransformer):
    """A frozen representation autoencoder that computes self-attention features of frames, without noise and prompt.

    See `VisionTransformer`. Position embeddings are interpolated to the frames' size.

    Args:
        autoencoder: diffusers' model; becomes part of the backbone.
        layers: names of the layers whose features are returned, of the encoder ("encoder.11") or of the decoder
            ("decoder.0"); None for all.
        source: the checkpoint, for `description`.

    Raises:
        OptionError: a layer is named twice, or the model has no such layer.
    """

    def __init__(self, autoencoder: Any, *, layers: Sequence[str] | None, source: str = "") -> None:
        lists = (module for module in autoencoder.encoder.modules() if isinstance(module, nn.ModuleList))
        inside = {"encoder": next(lists), "decoder": autoencoder.decoder.decoder_layers}
        every = {f"{part}.{n}": layer for part, several in inside.items() for n, layer in enumerate(several)}
        if layers is not None:
            check_layers(layers, every)
        autoencoder.encoder.set_attn_implementation("sdpa")  # the attention that `capture` sees
        super().__init__(autoencoder, every, layers=tuple(every if layers is None else layers), source=source)

    @property
    def stride(self) -> int:
        """Pixels per patch of the encoder: 14 for DINOv2, 16 for the others."""
        return int(self.model.config["encoder_patch_size"])

    @property
    def layers(self) -> dict[str, int]:
        """The layers whose features are returned, with their number of heads."""
        config = self.model.config
        heads = {
            "encoder": config["encoder_hidden_size"] // 64,
            "decoder": config["decoder_num_attention_heads"],
        }
        return {name: int(heads[name.partition(".")[0]]) for name in self._layers}

    @property
    def available_layers(self) -> tuple[str, ...]:
        """The names that `layers` can hold."""
        return tuple(self._modules_by_layer)

    def _run(self, frames: Tensor) -> None:
        self._decode(encoder_tokens(self.model, frames))

    def _decode(self, tokens: Float[Tensor, "batch rows columns channels"]) -> None:
        """Runs the layers of the decoder, at the grid of the tokens instead of the one size that it is trained for."""
        decoder = self.model.decoder
        positions = decoder.decoder_pos_embed.to(tokens)
        side = int(decoder.num_patches**0.5)
        of_patches = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2).float()
        resized = F.interpolate(of_patches, tokens.shape[1:3], mode="bicubic", align_corners=False)
        embedded = decoder.decoder_embed(tokens) + resized.permute(0, 2, 3, 1).to(tokens)
        first = decoder.trainable_cls_token + positions[:, :1]
        hidden = torch.cat([first.expand(len(tokens), -1, -1), embedded.flatten(1, 2)], dim=1)
        for layer in decoder.decoder_layers:
            hidden = layer(hidden)
