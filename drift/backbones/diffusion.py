"""What all diffusion models share: noise, one forward pass that captures attention, and features on a grid.

`DiffusionModel` is the common part; a family of models says in a few methods what it does otherwise: how frames become
latents, what its denoiser takes, and where on the frame its tokens lie. `LatentDiffusionModel` adds an autoencoder,
`PromptedModel` cross-attention to a prompt, and `joint_attention.py` attention of image and prompt together.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from drift.backbones.autoencoders import clean_latents, without_decoder
from drift.backbones.capture import Block, attention_layers, blocks, capture, check_layers, self_attention
from drift.backbones.interface import AttentionPass, Features
from drift.checkpoint_files import weights_fingerprint
from drift.errors import OptionError
from drift.noising import Gaussian, Noise, NoNoise
from drift.noising.interface import Generators
from drift.noising.schedule import last_timestep
from drift.options import whole_number
from drift.precision import full_precision

__all__ = [
    "DiffusionModel",
    "LatentDiffusionModel",
    "PromptedModel",
    "UNetModel",
    "halved_until",
    "no_prompt",
]

_TEMPORARY = ("_prompt", "_pooled")  # embeddings of the text prompt, which no checkpoint holds


class DiffusionModel(nn.Module, ABC):
    """A frozen diffusion model that computes self-attention features of frames at one timestep.

    Implements `Backbone` and `Denoiser`. Computes in the data type of its weights; features are float32.

    Args:
        denoiser: the model that denoises, of diffusers.
        scheduler: its noise schedule and prediction type.
        prompt: embeddings of the text prompt; see `no_prompt`.
        layers: names of the layers whose features are returned, among `available_layers`: self-attention layers, or
            blocks of a UNet, whose output is the queries, keys and tokens of a single head, as in DIFT; None for all.
        timestep: τ, from 0 to the scheduler's last timestep.
        noise: how latents reach τ; None for one draw of Gaussian noise.
        source: the checkpoint, for `description`.

    Raises:
        OptionError: an option is out of range, or the model has no such layer.
    """

    conditioning = "none"
    """How the tokens attend to a text prompt: not at all, by "cross-attention", or by "joint attention"."""

    batch = 1
    denoiser: Any
    _prompt: Tensor

    def __init__(
        self,
        *,
        denoiser: Any,
        scheduler: Any,
        prompt: Float[Tensor, "1 tokens dim"],
        layers: Sequence[str] | None,
        timestep: int,
        noise: Noise | None = None,
        source: str = "",
    ) -> None:
        super().__init__()
        whole_number("timestep", timestep, minimum=0, maximum=last_timestep(scheduler))
        self.denoiser, self.scheduler = denoiser, scheduler
        self.noise: Noise = noise or Gaussian()
        self.noise.check(timestep)
        self.timestep, self.source = timestep, source
        self._attention = attention_layers(denoiser)  # a dictionary: searching all modules takes milliseconds
        self._modules_by_layer: dict[str, Any] = {**self._attention, **self._blocks()}
        if layers is not None:
            check_layers(layers, self._modules_by_layer)
        self._layers = tuple(self._modules_by_layer if layers is None else layers)
        self.register_buffer("_prompt", prompt.detach().to(denoiser.dtype), persistent=False)
        self._description: dict[str, object] | None = None
        self._freeze()

    def _freeze(self) -> None:
        model: Any = self.eval().requires_grad_(False)
        model.to(memory_format=torch.channels_last)  # convolutions are up to twice as fast

    def train(self, mode: bool = True) -> DiffusionModel:
        """Stays in evaluation mode: the model is frozen."""
        return super().train(False)

    # What families differ in

    @property
    @abstractmethod
    def stride(self) -> int:
        """Pixels per token of the finest grid along each axis; frames are padded to its multiples."""

    @abstractmethod
    def encode(
        self, frames: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Clean latents of RGB frames in [0, 1], in the denoiser's scale, float32."""

    @abstractmethod
    def _output(self, latents: Tensor, timestep: int, prompt: Tensor) -> Tensor:
        """Output of the denoiser for latents in its data type, and a prompt for each of them."""

    @abstractmethod
    def _on_grid(
        self, tokens: Float[Tensor, "*batch tokens dim"], rows: int, columns: int
    ) -> Float[Tensor, "*batch grid_rows grid_columns dim"]:
        """The tokens of the image where they lie on latents of `rows` and `columns`."""

    def _blocks(self) -> dict[str, Block]:
        """The blocks whose outputs, feature maps, can serve as features."""
        return {}

    # What they share

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self._prompt.device

    @property
    def layers(self) -> dict[str, int]:
        """The layers whose features are returned, with their number of heads; 1 for a block."""
        every = self.attention_layers
        return {name: every.get(name, 1) for name in self._layers}

    @property
    def attention_layers(self) -> dict[str, int]:
        """All self-attention layers in the order of the forward pass, with their number of heads."""
        return {name: int(self_attention(layer).heads) for name, layer in self._attention.items()}

    @property
    def available_layers(self) -> tuple[str, ...]:
        """The names that `layers` can hold."""
        return tuple(self._modules_by_layer)

    @property
    def description(self) -> Mapping[str, object]:
        """What features depend on; computed once."""
        if self._description is None:
            parts = [self.scheduler, *(part for part in self.children() if hasattr(part, "config"))]
            encoded = json.dumps([dict(part.config) for part in parts], sort_keys=True, default=str).encode()
            prompt = b"".join(
                getattr(self, name).float().cpu().numpy().tobytes()
                for name in _TEMPORARY
                if hasattr(self, name)
            )
            self._description = {
                "checkpoint": self.source,
                "weights": weights_fingerprint(self),
                "configs": hashlib.sha256(encoded).hexdigest()[:16],
                "prompt": hashlib.sha256(prompt).hexdigest()[:16],
                "prediction_type": self.scheduler.config.get("prediction_type", "flow"),
                "layers": list(self._layers),
                "timestep": self.timestep,
                "precision": str(self.denoiser.dtype).removeprefix("torch."),
                **self.noise.description,
            }
        return self._description

    @torch.no_grad()
    def noised(
        self, latents: Float[Tensor, "batch channels rows columns"], generator: torch.Generator
    ) -> Float[Tensor, "batch channels rows columns"]:
        """Clean latents taken to τ under the backbone's own prompt; one draw."""
        return self.noise(latents, self, self._prompt, generator)[0, 0]

    @torch.no_grad()
    def features(
        self,
        frames: Float[Tensor, "batch 3 height width"],
        generator: Generators,
        *,
        prompt: Float[Tensor, "prompts tokens dim"] | None = None,
        cross: Collection[str] = (),
    ) -> list[Features]:
        """See `Backbone`. All draws of noise and all prompts run in one batch, of which the features are the mean."""
        prompts = self._prompt if prompt is None else prompt.to(self.device)
        noisy = self.noise(self.encode(frames), self, prompts, generator)
        draws, batch = noisy.shape[0], noisy.shape[2]
        noisy = noisy.expand(-1, len(prompts), -1, -1, -1, -1).flatten(0, 2)
        conditions = prompts.repeat_interleave(batch, 0).repeat(draws, 1, 1)
        layers = list(dict.fromkeys([*self._layers, *cross]))
        attended = self.attend(noisy, conditions, layers=layers, cross=cross)

        def mean(tensor: Tensor) -> Tensor:
            return tensor.float().unflatten(0, (-1, batch)).mean(0)

        averaged = []
        for name in layers:
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
        predicted = None
        with (
            full_precision(self.device.type),
            capture(self._modules_by_layer, layers, cross, early_exit=not output) as captured,
        ):
            predicted = self._run(latents, self.timestep, prompt)
        rows, columns = latents.shape[-2:]
        on_grid = partial(self._on_grid, rows=rows, columns=columns)
        features = {name: Features(name, *map(on_grid, x)) for name, x in captured.self_attention.items()}
        for name, block in captured.blocks.items():
            tokens = on_grid(block.flatten(2).mT)
            features[name] = Features(name, tokens[:, None], tokens[:, None], tokens)
        queries = {name: on_grid(captured.cross_attention[name]) for name in cross}
        return AttentionPass(features, queries, predicted)

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

    def _run(self, latents: Tensor, timestep: int, prompt: Tensor) -> Tensor:
        conditions = prompt.to(self.device, self.denoiser.dtype).expand(len(latents), -1, -1)
        output = self._output(latents.to(self.denoiser.dtype), timestep, conditions)
        return output[:, : latents.shape[1]].float()  # some models predict the variance too


class LatentDiffusionModel(DiffusionModel):
    """A diffusion model on the latents of an autoencoder, whose decoder is dropped.

    Args:
        vae: the autoencoder.
        options: see `DiffusionModel`.
    """

    vae: Any

    def __init__(self, *, vae: nn.Module, **options: Any) -> None:
        super().__init__(**options)
        self.vae = without_decoder(vae)
        self._freeze()

    @property
    def patch_size(self) -> int:
        """Latents per token along each axis; 1 for a UNet, whose layers have grids of several sizes."""
        return int(self.denoiser.config.get("patch_size") or 1)

    @property
    def stride(self) -> int:
        """Pixels per token, of the finest grid of a UNet: 8 for Stable Diffusion."""
        ratio = getattr(self.vae, "spatial_compression_ratio", None) or self.vae.config.get(
            "encoder_patch_size"
        )
        return self.patch_size * int(ratio or 2 ** (len(self.vae.config["block_out_channels"]) - 1))

    @torch.no_grad()
    def encode(
        self, frames: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """See `DiffusionModel`. The mode of the autoencoder's posterior."""
        with full_precision(self.device.type):
            return clean_latents(self.vae, frames)

    def _on_grid(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        return tokens.unflatten(-2, (rows // self.patch_size, columns // self.patch_size))


class PromptedModel(LatentDiffusionModel):
    """A latent diffusion model with cross-attention to a text prompt. Implements `PromptBackbone`."""

    conditioning = "cross-attention"

    @property
    def prompt(self) -> Float[Tensor, "1 tokens dim"]:
        """Embeddings of the backbone's own prompt."""
        return self._prompt

    def prompt_keys(
        self, layer: str, embeddings: Float[Tensor, "tokens dim"]
    ) -> Float[Tensor, "heads tokens key_dim"]:
        """See `PromptBackbone`."""
        attention: Any = self._attention[layer].attn2
        with full_precision(self.device.type):
            context = self._context(embeddings.to(self.device, self.denoiser.dtype))
            keys: Tensor = attention.to_k(context)
        return keys.unflatten(1, (attention.heads, -1)).transpose(0, 1)

    def _context(self, embeddings: Float[Tensor, "tokens dim"]) -> Tensor:
        """What cross-attention layers are given for embeddings of a prompt."""
        return embeddings

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


class UNetModel(PromptedModel):
    """A UNet with cross-attention to a text prompt."""

    @property
    def unet(self) -> Any:
        """The denoiser by its name in diffusers."""
        return self.denoiser

    def _blocks(self) -> dict[str, Block]:
        return blocks(self.denoiser)

    def _on_grid(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        return tokens.unflatten(-2, halved_until(tokens.shape[-2], rows, columns))


def halved_until(tokens: int, rows: int, columns: int) -> tuple[int, int]:
    """The grid of a UNet's layer with so many tokens: rows and columns halved, rounding up, until they match."""
    while rows * columns > tokens:
        rows, columns = -(-rows // 2), -(-columns // 2)
    return rows, columns


def no_prompt() -> Float[Tensor, "1 0 0"]:
    """The prompt of a model without one."""
    return torch.zeros(1, 0, 0)
