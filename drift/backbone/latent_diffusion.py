"""Any latent diffusion model of Stable Diffusion's family as a backbone (design 2.1 and 2.2)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from drift.backbone.attention import chosen_layers, recorded, self_attention_layers
from drift.backbone.interface import Backbone, LayerReading
from drift.backbone.inversion import ddim_inverted, inversion_timesteps
from drift.backbone.precision import PRECISIONS, computing_in
from drift.backbone.reading_cache import ReadingCache, reading_key
from drift.errors import OptionError
from drift.options import choice, whole_number
from drift.stopwatch import Stopwatch

__all__ = ["NOISES", "LatentDiffusion"]

NOISES = ("gaussian", "ddim_inversion", "none")


class LatentDiffusion(nn.Module, Backbone):
    """A frozen diffusion model that encodes frames and reads self-attention at one timestep.

    Args:
        vae, unet, text_encoder, tokenizer, scheduler: the model's parts, as diffusers loads them.
        layers: self-attention layers to read, by the name of their transformer ("up_blocks.1.attentions.0").
        timestep: τ, from 0 (no noise) to the scheduler's last training timestep.
        noise: how a latent is taken to τ: `ddim_inversion`, by the model's own deterministic path;
            `gaussian`, the forward process; `none`, as it is.
        inversion_steps: S, of DDIM inversion; 1 to τ. Each is a pass of the whole UNet.
        ensemble: how many draws of gaussian noise the readings are averaged over.
        prompt: the text condition; empty for the unconditional one.
        source: what the parts were loaded from, for `description`.
        precision: in which the model computes: `auto`, bfloat16 on an x86 CPU with instructions for it and
            elsewhere as the trainer says; `bfloat16`; `float32`.
        cache: where `read_frames` keeps what it reads, and takes it from; None for nowhere.

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
        inversion_steps: int = 10,
        prompt: str = "",
        source: str = "",
        precision: str = "float32",
        cache: ReadingCache | None = None,
    ) -> None:
        super().__init__()
        known = self_attention_layers(unet)
        unknown = [name for name in layers if name not in known]
        if not layers or unknown or len(set(layers)) < len(layers):
            raise OptionError("layers", list(layers), "one or more, each once, of " + ", ".join(known))
        whole_number("timestep", timestep, minimum=0, maximum=scheduler.config["num_train_timesteps"] - 1)
        choice("noise", noise, NOISES)
        whole_number("ensemble", ensemble, minimum=1)
        if noise == "ddim_inversion":
            inversion_timesteps(timestep, inversion_steps)
        choice("precision", precision, PRECISIONS)
        if not isinstance(prompt, str):
            raise OptionError("prompt", prompt, 'a text, "" for none')
        self.vae, self.unet, self.text_encoder = vae, unet, text_encoder
        self.tokenizer, self.scheduler = tokenizer, scheduler
        self.layers, self.timestep = tuple(layers), timestep
        self.noise, self.ensemble, self.prompt = noise, ensemble, prompt
        self.inversion_steps, self.precision, self.source = inversion_steps, precision, source
        self.cache = cache
        self._condition: Tensor | None = None
        self._described: dict[str, object] | None = None
        self.eval().requires_grad_(False)
        for part in (self.vae, self.unet):
            part.to(memory_format=torch.channels_last)  # convolutions: up to twice as fast

    def train(self, mode: bool = True) -> LatentDiffusion:
        """Stays in evaluation mode: the model is frozen, whatever the trainer says."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return self.unet.conv_in.weight.device  # its own `device` goes through all modules, for every frame

    @property
    def stride(self) -> int:
        """Pixels per latent: 8 for Stable Diffusion."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def description(self) -> dict[str, object]:
        """What readings depend on: where the model comes from, its weights, and how it is read."""
        described = {
            "checkpoint": self.source,
            "weights": _fingerprint([self.unet, self.text_encoder, self.vae]),
            "prediction_type": self.scheduler.config["prediction_type"],
            "layers": list(self.layers),
            "timestep": self.timestep,
            "noise": self.noise,
            "prompt": self.prompt,
        }
        if self.noise == "gaussian":
            described["ensemble"] = self.ensemble
        if self.noise == "ddim_inversion":
            described["inversion_steps"] = self.inversion_steps
        return described

    @property
    def heads(self) -> dict[str, int]:
        """How many heads each chosen layer has."""
        layers = chosen_layers(self.unet, self.layers)
        return {name: int(block.attn1.heads) for name, (_, block) in layers.items()}

    @torch.no_grad()
    def encode(
        self, frames: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Latents of RGB frames in [0, 1]: the posterior's mode, in the UNet's scale.

        Height and width must be multiples of `stride`.
        """
        images = (frames * 2 - 1).to(self.vae.dtype, memory_format=torch.channels_last)
        with computing_in(self.precision, self.device):
            latents = self.vae.encode(images).latent_dist.mode().to(images.dtype)
        shift = self.vae.config.get("shift_factor") or 0.0
        return (latents - shift) * self.vae.config["scaling_factor"]

    @torch.no_grad()
    def read(
        self,
        latents: Float[Tensor, "batch channels rows columns"],
        generator: torch.Generator,
        *,
        condition: Float[Tensor, "groups tokens dim"] | None = None,
        cross: Collection[str] = (),
    ) -> list[LayerReading]:
        """Queries, keys and inputs of the chosen layers from one pass at τ, in float32.

        The pass ends where the last chosen layer has its queries and keys: nothing past that is
        computed. DDIM inversion takes `inversion_steps` whole passes before it. Noise is drawn on the
        generator's device, so that a seed means the same on every one. Under a condition of several groups
        there is such a pass, or such passes, for each, with the same noise; the readings are their mean.
        A layer of `cross` has to be computed up to its cross-attention.
        """
        groups = [self.condition()] if condition is None else condition.split(1)
        draws = []
        for _ in range(self._draws()):
            noise = self._noise(latents, generator)
            for group in groups:
                draws.append(self._read_once(self._noised(latents, noise, group), group, cross))
        return [_mean(readings) for readings in zip(*draws, strict=True)]

    def read_frames(
        self,
        frames: Float[Tensor, "batch 3 height width"],
        generator: torch.Generator,
        *,
        condition: Float[Tensor, "groups tokens dim"] | None = None,
        cross: Collection[str] = (),
        stopwatch: Stopwatch | None = None,
    ) -> list[LayerReading]:
        """As any backbone; from the cache, where there is one and they are in it."""
        stopwatch = stopwatch or Stopwatch()
        if self.cache is None:
            return super().read_frames(
                frames, generator, condition=condition, cross=cross, stopwatch=stopwatch
            )
        with stopwatch.stage("cache"):
            key = reading_key(self._described_once(), frames, generator.get_state(), condition, list(cross))
            found = self.cache.load(key)
        if found is not None:
            readings, noise = found
            generator.set_state(noise)
            return [reading.on(self.device) for reading in readings]
        readings = super().read_frames(
            frames, generator, condition=condition, cross=cross, stopwatch=stopwatch
        )
        with stopwatch.stage("cache"):
            self.cache.save(key, readings, generator.get_state())
        return readings

    @torch.no_grad()
    def predict(
        self,
        latents: Float[Tensor, "batch channels rows columns"],
        timestep: int,
        *,
        condition: Float[Tensor, "1 tokens dim"] | None = None,
    ) -> Float[Tensor, "batch channels rows columns"]:
        """The whole UNet's output for noisy latents: noise or velocity, as the scheduler's `prediction_type` says."""
        conditions = self._conditions(condition, len(latents))
        with computing_in(self.precision, self.device):
            output = self.unet(latents.to(self.unet.dtype), timestep, encoder_hidden_states=conditions)
        return output.sample.to(latents)

    @torch.no_grad()
    def noised(
        self, latents: Float[Tensor, "batch channels rows columns"], generator: torch.Generator
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Clean latents taken to τ as `noise` says, under the backbone's own prompt; one draw."""
        return self._noised(latents, self._noise(latents, generator), self.condition())

    def denoising_target(
        self,
        clean: Float[Tensor, "batch channels rows columns"],
        noisy: Float[Tensor, "batch channels rows columns"],
    ) -> Float[Tensor, "batch channels rows columns"]:
        """What the UNet should say of noisy latents at τ: their noise, or velocity."""
        kept = self.scheduler.alphas_cumprod[self.timestep].to(clean)
        noise = (noisy - kept.sqrt() * clean) / (1 - kept).sqrt()
        if self.scheduler.config["prediction_type"] == "v_prediction":
            return kept.sqrt() * noise - (1 - kept).sqrt() * clean
        return noise

    def _draws(self) -> int:
        return self.ensemble if self.noise == "gaussian" else 1

    def _noise(self, latents: Tensor, generator: torch.Generator) -> Tensor | None:
        if self.noise != "gaussian":
            return None
        return torch.randn(latents.shape, generator=generator, device=generator.device).to(latents)

    def _noised(self, latents: Tensor, noise: Tensor | None, condition: Tensor) -> Tensor:
        if noise is not None:
            timesteps = torch.tensor([self.timestep], device=latents.device)
            return self.scheduler.add_noise(latents, noise, timesteps)
        if self.noise == "none":
            return latents
        predict = partial(self.predict, condition=condition)
        return ddim_inverted(
            latents, predict, self.scheduler, timestep=self.timestep, steps=self.inversion_steps
        )

    def _read_once(self, latents: Tensor, condition: Tensor, cross: Collection[str]) -> list[LayerReading]:
        conditions = self._conditions(condition, len(latents))
        with (
            recorded(self.unet, self.layers, cross=list(cross)) as recording,
            computing_in(self.precision, self.device),
        ):
            self.unet(latents.to(self.unet.dtype), self.timestep, encoder_hidden_states=conditions)
        queries = {name: reading.queries for name, reading in recording.cross_attention.items()}
        readings = recording.self_attention
        return [replace(readings[name], prompt_queries=queries.get(name)) for name in self.layers]

    def _conditions(self, condition: Tensor | None, count: int) -> Tensor:
        """A condition, or the backbone's own, once for each of `count` frames."""
        chosen = self.condition() if condition is None else condition
        return chosen.to(self.device, self.unet.dtype).expand(count, -1, -1)

    def _described_once(self) -> dict[str, object]:
        """The description, and in what the model computes."""
        if self._described is None:
            configs = [dict(part.config) for part in (self.scheduler, self.vae, self.unet)]
            told = json.dumps(configs, sort_keys=True, default=str).encode()
            self._described = {**self.description, "configs": hashlib.sha256(told).hexdigest()}
        kind = self.device.type
        with computing_in(self.precision, self.device):
            computes_in = (
                torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.unet.dtype
            )
        return {**self._described, "precision": str(computes_in), "device": kind, "torch": torch.__version__}

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
            with torch.inference_mode(False):  # a prompt is optimised from it
                self._condition = self.text_encoder(ids.clone()).last_hidden_state.to(self.unet.dtype)
        return self._condition

    def _prompt_length(self) -> int:
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)


def _mean(readings: Sequence[LayerReading]) -> LayerReading:
    """The mean of one layer's readings over draws of noise, in float32."""

    def mean(part: str) -> Tensor:
        return torch.stack([getattr(reading, part).float() for reading in readings]).mean(0)

    prompt_queries = None if readings[0].prompt_queries is None else mean("prompt_queries")
    return LayerReading(readings[0].name, mean("queries"), mean("keys"), mean("inputs"), prompt_queries)


def _fingerprint(parts: Sequence[nn.Module]) -> str:
    """A hash of a few numbers of every weight: tells models apart without reading all of them."""
    found = hashlib.sha256()
    for part in parts:
        for name, weight in part.state_dict().items():
            found.update(name.encode() + str(tuple(weight.shape)).encode())
            found.update(weight.flatten()[:8].float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]
