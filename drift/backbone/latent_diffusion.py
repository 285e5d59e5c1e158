"""Any latent diffusion model of Stable Diffusion's family as a backbone (design 2.1 and 2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from drift.backbone.attention import recorded, self_attention_layers
from drift.backbone.interface import LayerReading
from drift.errors import OptionError
from drift.options import choice, whole_number

__all__ = ["NOISES", "LatentDiffusion"]

NOISES = ("gaussian", "none")


class LatentDiffusion(nn.Module):
    """A frozen diffusion model that encodes frames and reads self-attention at one timestep.

    Args:
        vae, unet, text_encoder, tokenizer, scheduler: the model's parts, as diffusers loads them.
        layers: self-attention layers to read, by the name of their transformer ("up_blocks.1.attentions.0").
        timestep: τ, from 0 (no noise) to the scheduler's last training timestep.
        noise: how a latent is taken to τ: `gaussian`, the forward process; `none`, as it is.
        ensemble: how many draws of gaussian noise the readings are averaged over.
        prompt: the text condition; empty for the unconditional one.

    Raises:
        OptionError: an option is out of range, or the model has no layer of that name.
    """

    def __init__(
        self,
        *,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler: DDIMScheduler,
        layers: Sequence[str],
        timestep: int,
        noise: str = "gaussian",
        ensemble: int = 1,
        prompt: str = "",
    ) -> None:
        super().__init__()
        known = self_attention_layers(unet)
        unknown = [name for name in layers if name not in known]
        if not layers or unknown or len(set(layers)) < len(layers):
            raise OptionError("layers", list(layers), "one or more, each once, of " + ", ".join(known))
        whole_number("timestep", timestep, minimum=0, maximum=scheduler.config["num_train_timesteps"] - 1)
        choice("noise", noise, NOISES)
        whole_number("ensemble", ensemble, minimum=1)
        if not isinstance(prompt, str):
            raise OptionError("prompt", prompt, 'a text, "" for none')
        self.vae, self.unet, self.text_encoder = vae, unet, text_encoder
        self.tokenizer, self.scheduler = tokenizer, scheduler
        self.layers, self.timestep = tuple(layers), timestep
        self.noise, self.ensemble, self.prompt = noise, ensemble, prompt
        self._condition: Tensor | None = None
        self.eval().requires_grad_(False)
        self.vae.to(memory_format=torch.channels_last)  # convolutions at full resolution: twice as fast

    def train(self, mode: bool = True) -> LatentDiffusion:
        """Stays in evaluation mode: the model is frozen, whatever the trainer says."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return self.unet.device

    @property
    def stride(self) -> int:
        """Pixels per latent: 8 for Stable Diffusion."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @torch.no_grad()
    def encode(
        self, frames: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Latents of RGB frames in [0, 1]: the posterior's mode, in the UNet's scale.

        Height and width must be multiples of `stride`.
        """
        images = (frames * 2 - 1).to(self.vae.dtype, memory_format=torch.channels_last)
        latents = self.vae.encode(images).latent_dist.mode()
        shift = self.vae.config.get("shift_factor") or 0.0
        return (latents - shift) * self.vae.config["scaling_factor"]

    @torch.no_grad()
    def read(
        self, latents: Float[Tensor, "batch channels rows columns"], generator: torch.Generator
    ) -> list[LayerReading]:
        """Queries, keys and inputs of the chosen layers from one pass at τ, in float32.

        The pass ends where the last chosen layer has its queries and keys: nothing past that is
        computed. Noise is drawn on the generator's device, so that a seed means the same on every one.
        """
        draws = [self._read_once(self._noised(latents, generator)) for _ in range(self._draws())]
        return [_mean(readings) for readings in zip(*draws, strict=True)]

    def _draws(self) -> int:
        return self.ensemble if self.noise == "gaussian" else 1

    def _noised(self, latents: Tensor, generator: torch.Generator) -> Tensor:
        if self.noise == "none":
            return latents
        noise = torch.randn(latents.shape, generator=generator, device=generator.device)
        noise = noise.to(latents)
        return self.scheduler.add_noise(latents, noise, torch.tensor([self.timestep], device=latents.device))

    def _read_once(self, latents: Tensor) -> list[LayerReading]:
        condition = self.condition().to(latents.device).expand(len(latents), -1, -1)
        with recorded(self.unet, self.layers) as readings:
            self.unet(latents.to(self.unet.dtype), self.timestep, encoder_hidden_states=condition)
        return [readings[name] for name in self.layers]

    @torch.no_grad()
    def condition(self) -> Float[Tensor, "1 tokens dim"]:
        """The text condition c of the prompt; encoded once."""
        if self._condition is None:
            tokens = self.tokenizer(
                self.prompt,
                padding="max_length",
                max_length=self._prompt_length(),
                truncation=True,
                return_tensors="pt",
            )
            ids = tokens.input_ids.to(self.text_encoder.device)
            self._condition = self.text_encoder(ids).last_hidden_state.to(self.unet.dtype)
        return self._condition

    def _prompt_length(self) -> int:
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)


def _mean(readings: Sequence[LayerReading]) -> LayerReading:
    """The mean of one layer's readings over draws of noise, in float32."""

    def mean(part: str) -> Tensor:
        return torch.stack([getattr(reading, part).float() for reading in readings]).mean(0)

    return LayerReading(readings[0].name, mean("queries"), mean("keys"), mean("inputs"))
