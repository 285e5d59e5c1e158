"""Latent diffusion models with a UNet and a text prompt: Stable Diffusion 1.x and 2.x and the embedded model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from drift.backbones.capture import attention_layers, blocks, capture, chosen_layers
from drift.backbones.checkpoint_files import weights_fingerprint
from drift.backbones.interface import AttentionPass, Features
from drift.errors import OptionError
from drift.noising import Gaussian, Noise, NoNoise
from drift.options import whole_number
from drift.precision import full_precision

__all__ = ["StableDiffusion"]


class StableDiffusion(nn.Module):
    """A frozen latent diffusion model that computes self-attention features of frames at one timestep.

    Implements `PromptBackbone` and `Denoiser`. Computes in the data type of its weights; features are float32.
    The decoder of `vae` is dropped.

    Args:
        vae: autoencoder; encodes images in [-1, 1].
        unet: denoiser.
        scheduler: its noise schedule and prediction type.
        prompt: embeddings of the text prompt.
        layers: names of the layers whose features are returned: self-attention layers ("up_blocks.1.attentions.0"), or
            blocks ("up_blocks.2") whose output serves as queries, keys and tokens of a single head, as in DIFT.
        timestep: τ, from 0 to the scheduler's last training timestep.
        noise: how latents reach τ.
        source: the checkpoint, for `description`.

    Raises:
        OptionError: an option is out of range, or the model has no such layer.
    """

    vae: Any
    unet: Any
    _prompt: Tensor

    def __init__(
        self,
        *,
        vae: nn.Module,
        unet: UNet2DConditionModel,
        scheduler: DDIMScheduler,
        prompt: Float[Tensor, "1 tokens dim"],
        layers: Sequence[str],
        timestep: int,
        noise: Noise | None = None,
        source: str = "",
    ) -> None:
        super().__init__()
        last = scheduler.config["num_train_timesteps"] - 1
        whole_number("timestep", timestep, minimum=0, maximum=last)
        self.vae, self.unet, self.scheduler = vae, unet, scheduler
        self.noise: Noise = noise or Gaussian()
        self.noise.check(timestep)
        self.timestep, self.source = timestep, source
        self._layers = tuple(chosen_layers(unet, layers))
        self._attention = attention_layers(unet)  # a dictionary: searching all modules takes milliseconds
        for part in ("decoder", "post_quant_conv"):  # masks are never decoded from latents
            if isinstance(getattr(vae, part, None), nn.Module):
                setattr(vae, part, None)
        self.register_buffer("_prompt", prompt.detach().to(unet.dtype), persistent=False)
        self.eval().requires_grad_(False)
        for part in (self.vae, self.unet):
            part.to(memory_format=torch.channels_last)  # convolutions are up to twice as fast
        self._description: dict[str, object] | None = None

    def train(self, mode: bool = True) -> StableDiffusion:
        """Stays in evaluation mode: the model is frozen."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self._prompt.device

    @property
    def stride(self) -> int:
        """Pixels per latent: 8 for Stable Diffusion."""
        ratio = getattr(self.vae, "spatial_compression_ratio", None) or self.vae.config.get(
            "encoder_patch_size"
        )
        return int(ratio or 2 ** (len(self.vae.config["block_out_channels"]) - 1))

    @property
    def layers(self) -> dict[str, int]:
        """The layers whose features are returned, with their number of heads."""
        every = self.attention_layers
        return {name: every.get(name, 1) for name in self._layers}

    @property
    def attention_layers(self) -> dict[str, int]:
        """All attention layers, with their number of heads."""
        return {name: int(block.attn1.heads) for name, block in self._attention.items()}

    @property
    def prompt(self) -> Float[Tensor, "1 tokens dim"]:
        """Embeddings of the backbone's own prompt."""
        return self._prompt

    @property
    def description(self) -> Mapping[str, object]:
        """What features depend on; computed once."""
        if self._description is None:
            configs = [dict(part.config) for part in (self.scheduler, self.vae, self.unet)]
            encoded = json.dumps(configs, sort_keys=True, default=str).encode()
            self._description = {
                "checkpoint": self.source,
                "weights": weights_fingerprint(self),
                "configs": hashlib.sha256(encoded).hexdigest()[:16],
                "prompt": hashlib.sha256(self.prompt.float().cpu().numpy().tobytes()).hexdigest()[:16],
                "prediction_type": self.scheduler.config["prediction_type"],
                "layers": list(self._layers),
                "timestep": self.timestep,
                "precision": str(self.unet.dtype).removeprefix("torch."),
                **self.noise.description,
            }
        return self._description

    @torch.no_grad()
    def encode(
        self, frames: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Latents of RGB frames in [0, 1], in the UNet's scale: the mode of the posterior, float32."""
        images = (frames * 2 - 1).to(self.vae.dtype, memory_format=torch.channels_last)
        with full_precision(self.device.type):
            encoded = self.vae.encode(images)
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
        shift = self.vae.config.get("shift_factor") or 0.0
        return (latents.float() - shift) * self.vae.config["scaling_factor"]

    @torch.no_grad()
    def noised(
        self, latents: Float[Tensor, "batch channels rows columns"], generator: torch.Generator
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Clean latents taken to τ under the backbone's own prompt; one draw."""
        return self.noise(latents, self, self.prompt, generator)[0, 0]

    @torch.no_grad()
    def features(
        self,
        frames: Float[Tensor, "batch 3 height width"],
        generator: torch.Generator,
        *,
        prompt: Float[Tensor, "prompts tokens dim"] | None = None,
        cross: Collection[str] = (),
    ) -> list[Features]:
        """See `Backbone`. All draws of noise and all prompts run in one batch, of which the features are the mean."""
        prompts = self.prompt if prompt is None else prompt.to(self.device)
        noisy = self.noise(self.encode(frames), self, prompts, generator)
        draws, batch = noisy.shape[0], noisy.shape[2]
        noisy = noisy.expand(-1, len(prompts), -1, -1, -1, -1).flatten(0, 2)
        conditions = prompts.repeat_interleave(batch, 0).repeat(draws, 1, 1)
        attended = self.attend(noisy, conditions, layers=self._layers, cross=cross)

        def mean(tensor: Tensor) -> Tensor:
            return tensor.float().unflatten(0, (-1, batch)).mean(0)

        averaged = []
        for name in self._layers:
            tensors = attended.features[name].tensors()
            if name in attended.prompt_queries:
                tensors["prompt_queries"] = attended.prompt_queries[name]
            averaged.append(Features(name, **{part: mean(tensor) for part, tensor in tensors.items()}))
        return averaged

    def attend(
        self,
        latents: Float[Tensor, "batch channels rows columns"],
        prompt: Float[Tensor, "#batch tokens dim"],
        *,
        layers: Collection[str] = (),
        cross: Collection[str] = (),
        output: bool = False,
    ) -> AttentionPass:
        """See `PromptBackbone`."""
        modules: dict[str, nn.Module] = {**self._attention, **blocks(self.unet)}
        predicted = None
        with (
            full_precision(self.device.type),
            capture(modules, layers, cross, early_exit=not output) as captured,
        ):
            predicted = self._run(latents, self.timestep, prompt)
        size = latents.shape[-2:]

        def on_grid(tokens: Tensor) -> Tensor:
            return tokens.unflatten(-2, _grid(tokens.shape[-2], *size))

        features = {name: Features(name, *map(on_grid, x)) for name, x in captured.self_attention.items()}
        for name, block in captured.blocks.items():
            tokens = block.permute(0, 2, 3, 1)
            features[name] = Features(name, tokens[:, None], tokens[:, None], tokens)
        queries = {name: on_grid(captured.cross_attention[name]) for name in cross}
        return AttentionPass(features, queries, predicted)

    def prompt_keys(
        self, layer: str, embeddings: Float[Tensor, "tokens dim"]
    ) -> Float[Tensor, "heads tokens key_dim"]:
        """See `PromptBackbone`."""
        attention = self._attention[layer].attn2
        with full_precision(self.device.type):
            keys = attention.to_k(embeddings.to(self.device, self.unet.dtype))
        return keys.unflatten(1, (attention.heads, -1)).transpose(0, 1)

    @torch.no_grad()
    def denoise(
        self,
        latents: Float[Tensor, "batch channels rows columns"],
        timestep: int,
        prompt: Float[Tensor, "#batch tokens dim"],
    ) -> Float[Tensor, "batch channels rows columns"]:
        """See `Denoiser`."""
        with full_precision(self.device.type):
            return self._run(latents, timestep, prompt)

    def training_target(
        self,
        clean: Float[Tensor, "batch channels rows columns"],
        noisy: Float[Tensor, "batch channels rows columns"],
    ) -> Float[Tensor, "batch channels rows columns"]:
        """See `PromptBackbone`."""
        if isinstance(self.noise, NoNoise):
            raise OptionError(
                "diffusion_weight", "above 0", "0 with noise=none: latents without noise have no target"
            )
        alpha = self.scheduler.alphas_cumprod[self.timestep].to(clean)
        noise = (noisy - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        if self.scheduler.config["prediction_type"] == "v_prediction":
            return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        return noise

    def _run(self, latents: Tensor, timestep: int, prompt: Tensor) -> Tensor:
        conditions = prompt.to(self.device, self.unet.dtype).expand(len(latents), -1, -1)
        sample: Any = self.unet(latents.to(self.unet.dtype), timestep, encoder_hidden_states=conditions)
        return sample.sample.float()


def _grid(tokens: int, rows: int, columns: int) -> tuple[int, int]:
    """The grid of a layer with so many tokens: latents' rows and columns halved, rounding up, until they match."""
    while rows * columns > tokens:
        rows, columns = -(-rows // 2), -(-columns // 2)
    return rows, columns
