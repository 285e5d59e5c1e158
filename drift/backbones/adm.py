"""ADM (arXiv 2105.05233): unconditional diffusion in pixel space, whose features are those of DIFT-ADM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from drift.backbones.capture import Block, blocks
from drift.backbones.diffusion import DiffusionModel, halved_until, no_prompt
from drift.backbones.folders import load_scheduler
from drift.checkpoint_files import load_part, load_weights, read_json
from drift.errors import InputError
from drift.noising import Noise

__all__ = ["ADM", "from_checkpoint"]

CHECKPOINTS = {"DDPMPipeline": "adm", "DDIMPipeline": "adm", "UNet2DModel": "adm"}


def from_checkpoint(
    path: Path,
    *,
    source: str,
    dtype: torch.dtype,
    layers: Sequence[str] | None = ("output_blocks.7",),
    timestep: int = 51,
    noise: Noise | None = None,
) -> ADM:
    """An ADM model in diffusers' layout: a pipeline of UNet and scheduler, or a UNet alone.

    Conversions of OpenAI's checkpoints that say `attention_legacy_order` hold queries, keys and values head by head;
    they are brought into diffusers' order.

    Args:
        path: the folder of the checkpoint.
        source: the checkpoint as the user named it.
        dtype: data type of weights and activations.
        layers: see `ADM`.
        timestep, noise: see `DiffusionModel`.

    Raises:
        InputError: the checkpoint is incomplete, corrupt, or conditioned on classes.
        OptionError: an option is out of range.
    """
    folder = path / "unet" if (path / "unet").is_dir() else path
    config = read_json(folder / "config.json")
    if config.get("num_class_embeds") or config.get("class_embed_type"):
        raise InputError(
            f"backbone.checkpoint={source}: conditioned on classes; give an unconditional checkpoint"
        )
    schedules = [place for place in (path / "scheduler", path) if (place / "scheduler_config.json").exists()]
    return ADM(
        unet=load_part(folder, lambda place: _load_unet(place, config, dtype)),
        scheduler=load_part(schedules[0], load_scheduler) if schedules else DDIMScheduler(clip_sample=False),
        layers=layers,
        timestep=timestep,
        noise=noise,
        source=source,
    )


def _load_unet(folder: Path, config: dict[str, Any], dtype: torch.dtype) -> Any:
    options: dict[str, Any] = {}
    if (
        config.get("time_embedding_type") == "adm"
    ):  # of the conversion: the same as diffusers' with these options
        options = {"time_embedding_type": "positional", "flip_sin_to_cos": True, "freq_shift": 0}
        options["attn_norm_num_groups"] = config.get("norm_num_groups", 32)
    unet = load_weights(UNet2DModel, folder, dtype, **options)
    if config.get("attention_legacy_order"):
        _reorder_heads(unet)
    return unet


@torch.no_grad()
def _reorder_heads(unet: nn.Module) -> None:
    """Brings `(heads, 3, dim)` rows of queries, keys and values into the order `(3, heads, dim)`, in place."""
    for module in unet.modules():
        if not hasattr(module, "to_q"):
            continue
        projections: list[Any] = [module.to_q, module.to_k, module.to_v]
        for part in ("weight", "bias"):
            fused = torch.cat([getattr(projection, part) for projection in projections])
            by_head = fused.unflatten(0, (module.heads, 3, -1)).transpose(0, 1).flatten(1, 2)
            for projection, rows in zip(projections, by_head, strict=True):
                getattr(projection, part).copy_(rows)


class ADM(DiffusionModel):
    """A UNet that denoises pixels.

    Frames whose size the UNet cannot halve as often as it does are padded within it, and the features cut back.

    Args:
        unet: denoiser, a `UNet2DModel` of diffusers.
        layers: self-attention layers ("up_blocks.2.attentions.1"); blocks on the way up as guided-diffusion and DIFT
            number them ("output_blocks.7"); or those of diffusers ("up_blocks.2"), which end with one of these.
        options: `scheduler`, `timestep`, `noise`, `source`; see `DiffusionModel`.
    """

    def __init__(self, *, unet: nn.Module, **options: Any) -> None:
        super().__init__(denoiser=unet, prompt=no_prompt(), **options)

    @property
    def stride(self) -> int:
        """Pixels per token of the finest of `layers`: 8 for DIFT-ADM."""
        return min(self._stride(name) for name in self._layers)

    @torch.no_grad()
    def encode(self, frames: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Pixels in [-1, 1]."""
        return (frames * 2 - 1).float()

    def _output(self, latents: Tensor, timestep: int, prompt: Tensor) -> Tensor:
        height, width = latents.shape[-2:]
        rows, columns = self._padded(height), self._padded(width)
        padded = F.pad(latents, (0, columns - width, 0, rows - height), mode="replicate")
        output: Tensor = self.denoiser(padded, timestep).sample
        return output[..., :height, :width]

    def _on_grid(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        padded = self._padded(rows), self._padded(columns)
        grid = halved_until(tokens.shape[-2], *padded)
        stride = padded[0] // grid[0]
        return tokens.unflatten(-2, grid)[..., : -(-rows // stride), : -(-columns // stride), :]

    def _blocks(self) -> dict[str, Block]:
        numbered = [module for block in self.denoiser.up_blocks for module in _outputs(block)]
        return {f"output_blocks.{number}": Block(module) for number, module in enumerate(numbered)} | blocks(
            self.denoiser
        )

    @property
    def _levels(self) -> int:
        return len(self.denoiser.config["block_out_channels"])

    def _padded(self, length: int) -> int:
        multiple = 2 ** (self._levels - 1)
        return -(-length // multiple) * multiple

    def _stride(self, layer: str) -> int:
        """Pixels per token of a layer."""
        kind, *place = layer.split(".")
        if kind == "mid_block":
            return 2 ** (self._levels - 1)
        number = int(place[0])
        if kind == "down_blocks":
            return 2**number
        last = len(place) == 1  # the output of a block, which ends with an upsampler
        if kind == "output_blocks":
            depth = self.denoiser.config["layers_per_block"] + 1
            number, last = number // depth, number % depth == depth - 1
        return int(2 ** max(self._levels - 1 - number - last, 0))


def _outputs(block: Any) -> list[nn.Module]:
    """The last module of each resnet of a block, its attention and its upsampler, as guided-diffusion numbers them."""
    attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
    found = [attention or resnet for resnet, attention in zip(block.resnets, attentions, strict=True)]
    if getattr(block, "upsamplers", None):
        found[-1] = block.upsamplers[-1]
    return found
