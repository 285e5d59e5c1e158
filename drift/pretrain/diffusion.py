"""Training of the embedded model's UNet and text encoder on the latents of a frozen autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from drift.pretrain.attentions import Queries, cross_attention_queries, self_attentions
from drift.pretrain.naming import named_words, naming_loss
from drift.pretrain.scenes import SceneBatch, caption
from drift.pretrain.schedule import warmup_cosine
from drift.pretrain.text import build_text_encoder

__all__ = [
    "DiffusionTraining",
    "ViewsTogether",
    "build_scheduler",
    "build_unet",
    "make_rotations",
    "mean_skew",
    "save_pipeline",
    "set_self_attention",
    "tie_keys_to_queries",
]


def build_unet(*, latent_channels: int = 16, text_width: int = 128) -> UNet2DConditionModel:
    """Attention at 1/8 and 1/16 of the image, heads 32 wide, no mid block."""
    return UNet2DConditionModel(
        sample_size=28,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(128, 192),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        mid_block_type=None,
        cross_attention_dim=text_width,
        attention_head_dim=(4, 6),  # heads, in spite of the key's name
        use_linear_projection=True,
        norm_num_groups=16,
    )


def tie_keys_to_queries(unet: UNet2DConditionModel) -> None:
    """Lets every self-attention compare tokens in one space, as a similarity does.

    Keys of their own specialise on what the denoiser wants to fetch; tied to the queries they
    answer which tokens are alike, which is what label propagation asks. The projection starts as a
    rotation: what is alike in the layer's input is alike in its queries.
    """
    for attention in self_attentions(unet):
        torch.nn.init.orthogonal_(attention.to_q.weight)
        attention.to_k.weight = attention.to_q.weight


@torch.no_grad()
def make_rotations(unet: UNet2DConditionModel) -> None:
    """Replaces every self-attention's projection, nearly a scaled rotation, by the nearest one (polar factor).

    Tokens have a large part in common, so that small differences in their keys' length would outweigh
    what tells them apart.
    """
    for attention in self_attentions(unet):
        left, stretches, right = torch.linalg.svd(attention.to_q.weight)
        attention.to_q.weight.copy_(stretches.mean() * left @ right)


class ViewsTogether(AttnProcessor2_0):
    """Self-attention in which the two views of a scene, neighbours in the batch, see each other.

    As they have noise of different strength, the more noisy one can be mended with what the other
    shows, wherever in the picture that is: what fetches it is correspondence.
    """

    def __call__(
        self, attention: Attention, hidden_states: Tensor, *arguments: Any, **options: Any
    ) -> Tensor:
        """Tokens `(2 * scenes, tokens, channels)` to as many."""
        together = hidden_states.unflatten(0, (-1, 2)).flatten(1, 2)
        mixed = super().__call__(attention, together, *arguments, **options)
        return mixed.unflatten(1, (2, -1)).flatten(0, 1)


def set_self_attention(unet: UNet2DConditionModel, processor: AttnProcessor2_0) -> None:
    """Has every self-attention of `unet` work with `processor`."""
    for attention in self_attentions(unet):
        attention.set_processor(processor)


def mean_skew(unet: UNet2DConditionModel) -> Tensor:
    """How far the self-attentions' projections are from scaled rotations: 0 where all of them are one."""
    skews = []
    for attention in self_attentions(unet):
        weight = attention.to_q.weight.float()
        products = weight @ weight.mT
        identity = torch.eye(len(products), device=products.device)
        skews.append((products / products.diagonal().mean() - identity).square().sum() / len(products))
    return torch.stack(skews).mean()


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion 2.1's noise schedule, with v-prediction."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


class DiffusionTraining(L.LightningModule):
    """The denoising loss on the two views of scenes, `(scenes, 2, 3, side, side)` in [-1, 1], with captions.

    Args:
        vae: frozen.
        tokenizer: of the captions.
        names: of all objects there are.
        max_steps: length of the learning rate's schedule.
        learning_rate: its peak.
        caption_dropout: share of scenes that are trained without a caption.
        together: share of batches in which the two views of a scene see each other. In the others each
            view is alone, as a frame is when it is read.
        orthogonality: weight of the pull of every self-attention's projection towards a rotation, under
            which its queries and keys hold all that its input does.
        naming: weight of the naming loss, see `drift.pretrain.naming`.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        tokenizer: CLIPTokenizer,
        *,
        names: Sequence[str],
        max_steps: int,
        learning_rate: float = 6e-4,
        caption_dropout: float = 0.1,
        together: float = 0.6,
        orthogonality: float = 0.1,
        naming: float = 0.05,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["vae", "tokenizer", "names"])
        self.vae = vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.tokenizer, self.names = tokenizer, list(names)
        self.text_encoder: CLIPTextModel = build_text_encoder(tokenizer)
        self.unet = build_unet(latent_channels=vae.config["latent_channels"])
        tie_keys_to_queries(self.unet)
        self.scheduler = build_scheduler()

    def encoded(self, captions: Sequence[str]) -> Tensor:
        """The text encoder's output, `(captions, 77, channels)`."""
        tokens = self.tokenizer(
            list(captions), padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        return self.text_encoder(tokens.to(self.device)).last_hidden_state

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        """Of images `(batch, 3, height, width)` in [-1, 1], in the UNet's scale."""
        images = images.to(memory_format=torch.channels_last)
        return self.vae.encode(images).latent_dist.mode().float() * self.vae.config["scaling_factor"]

    def _condition(self, captions: list[str]) -> Tensor:
        """Of each caption, or of none, twice: once for each view."""
        kept = torch.rand(len(captions)) >= self.hparams["caption_dropout"]
        condition = self.encoded([text if keep else "" for text, keep in zip(captions, kept, strict=True)])
        return condition.repeat_interleave(2, dim=0)

    def training_step(self, batch: SceneBatch, batch_index: int) -> Tensor:
        """The mean squared error of the predicted velocity, at a timestep drawn for each view."""
        images = batch.views.flatten(0, 1)
        latents = self.latents(images)
        noise = torch.randn_like(latents)
        steps = self.scheduler.config["num_train_timesteps"]
        timesteps = torch.randint(steps, (len(latents),), device=self.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        target = self.scheduler.get_velocity(latents, noise, timesteps)
        together = float(torch.rand(())) < self.hparams["together"]
        set_self_attention(self.unet, ViewsTogether() if together else AttnProcessor2_0())
        with cross_attention_queries(self.unet) as queries:
            velocity = self.unet(noisy, timesteps, self._condition(batch.captions)).sample.float()
        loss = F.mse_loss(velocity, target)
        skew = mean_skew(self.unet)
        naming = self._naming(batch, queries, 1 - timesteps / steps)
        self.log_dict({"loss": loss, "skew": skew, "naming": naming})
        self.log("loss_together" if together else "loss_alone", loss)
        return loss + self.hparams["orthogonality"] * skew + self.hparams["naming"] * naming

    def _naming(self, batch: SceneBatch, queries: Queries, weights: Tensor) -> Tensor:
        """Every view has to tell its own names from those of others, most of all where there is little noise."""
        captions = [*batch.captions]
        names = [*batch.names]
        for _ in range(12):
            drawn = [self.names[i] for i in torch.randint(len(self.names), (2,))]
            captions.append(caption(drawn))
            names.append(drawn)
        words = named_words(self.tokenizer, captions, names, self.encoded(captions))
        own = [set(each) for each in batch.names for _ in range(2)]
        return naming_loss(queries, words, own, weights)

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and decay, for all but the autoencoder."""
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.hparams["learning_rate"], weight_decay=0.01)
        return warmup_cosine(optimizer, max_steps=self.hparams["max_steps"])


def save_pipeline(module: DiffusionTraining, folder: Path) -> None:
    """Writes the model in diffusers' folder layout, in half precision."""
    set_self_attention(module.unet, AttnProcessor2_0())
    make_rotations(module.unet)
    for attention in self_attentions(module.unet):  # safetensors refuses weights that share memory
        attention.to_k.weight = torch.nn.Parameter(attention.to_q.weight.detach().clone())
    StableDiffusionPipeline(
        vae=module.vae,
        text_encoder=module.text_encoder,
        tokenizer=module.tokenizer,
        unet=module.unet,
        scheduler=module.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(dtype=torch.float16).save_pretrained(folder, safe_serialization=True)
