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

from pretraining.attentions import Queries, cross_attention_queries, self_attentions
from pretraining.naming import named_words, naming_loss
from pretraining.scenes import SceneBatch, caption
from pretraining.schedule import warmup_cosine
from pretraining.text import build_text_encoder

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


def build_unet(
    *,
    latent_channels: int = 16,
    text_width: int = 128,
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 2,
) -> UNet2DConditionModel:
    """A UNet at 1/8 and 1/16 of the image with heads of 32 channels and no mid block."""
    return UNet2DConditionModel(
        sample_size=28,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(128, 192),
        layers_per_block=1,
        down_block_types=down_block_types,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        mid_block_type=None,
        cross_attention_dim=text_width,
        attention_head_dim=(4, 6),  # heads, in spite of the key's name
        use_linear_projection=True,
        norm_num_groups=16,
    )


def tie_keys_to_queries(unet: UNet2DConditionModel) -> None:
    """Ties the key projection of every self-attention to its query projection, initialised orthogonally.

    Keys of their own specialise on what the denoiser wants to fetch; tied to the queries they
    answer which tokens are alike, which is what label propagation asks. The projection starts as a
    rotation: what is alike in the layer's input is alike in its queries.
    """
    for attention in self_attentions(unet):
        torch.nn.init.orthogonal_(attention.to_q.weight)
        attention.to_k.weight = attention.to_q.weight


@torch.no_grad()
def make_rotations(unet: UNet2DConditionModel) -> None:
    """Replaces every self-attention's query projection by the nearest scaled rotation (polar factor).

    Tokens have a large part in common, so that small differences in their keys' length would outweigh
    what tells them apart.
    """
    for attention in self_attentions(unet):
        left, stretches, right = torch.linalg.svd(attention.to_q.weight)
        attention.to_q.weight.copy_(stretches.mean() * left @ right)


class ViewsTogether(AttnProcessor2_0):
    """Self-attention over the tokens of both views of a scene, which are neighbours in the batch.

    As they have noise of different strength, the more noisy one can be mended with what the other
    shows, wherever in the picture that is: what fetches it is correspondence.
    """

    def __call__(
        self, attention: Attention, hidden_states: Tensor, *arguments: Any, **options: Any
    ) -> Tensor:
        """Maps `(2 * scenes, tokens, channels)` to the same shape."""
        together = hidden_states.unflatten(0, (-1, 2)).flatten(1, 2)
        mixed = super().__call__(attention, together, *arguments, **options)
        return mixed.unflatten(1, (2, -1)).flatten(0, 1)


def set_self_attention(unet: UNet2DConditionModel, processor: AttnProcessor2_0) -> None:
    """Sets the attention processor of every self-attention in `unet`."""
    for attention in self_attentions(unet):
        attention.set_processor(processor)


def mean_skew(unet: UNet2DConditionModel) -> Tensor:
    """Mean squared deviation of the query projections from scaled rotations; 0 if all of them are one."""
    skews = []
    for attention in self_attentions(unet):
        weight = attention.to_q.weight.float()
        products = weight @ weight.mT
        identity = torch.eye(len(products), device=products.device)
        skews.append((products / products.diagonal().mean() - identity).square().sum() / len(products))
    return torch.stack(skews).mean()


def build_scheduler() -> DDIMScheduler:
    """DDIM scheduler with the noise schedule of Stable Diffusion 2.1 and v-prediction."""
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
    """Denoising of scenes with captions; each scene has two views, `(scenes, 2, 3, side, side)` in [-1, 1].

    Args:
        vae: autoencoder; frozen.
        tokenizer: tokenizer of the captions.
        names: names of all objects in the training pictures.
        max_steps: length of the learning-rate schedule.
        learning_rate: peak learning rate.
        caption_dropout: fraction of scenes trained with the empty caption.
        together: fraction of batches in which self-attention joins the two views of a scene.
        orthogonality: weight of the penalty on query projections that are no scaled rotations.
        naming: weight of the naming loss, see `pretraining.naming`.
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
        self.save_hyperparameters(ignore=["vae", "teacher", "tokenizer", "names"])
        self.vae = vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.tokenizer, self.names = tokenizer, list(names)
        self.text_encoder: CLIPTextModel = build_text_encoder(tokenizer)
        self.unet = self.build_unet(vae.config["latent_channels"])
        tie_keys_to_queries(self.unet)
        self.scheduler = build_scheduler()

    def build_unet(self, latent_channels: int) -> UNet2DConditionModel:
        """The UNet that is trained."""
        return build_unet(latent_channels=latent_channels)

    def encoded(self, captions: Sequence[str]) -> Tensor:
        """Text embeddings of captions, `(captions, 77, channels)`."""
        tokens = self.tokenizer(
            list(captions), padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        return self.text_encoder(tokens.to(self.device)).last_hidden_state

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        """Scaled latents of images `(batch, 3, height, width)` in [-1, 1]."""
        images = images.to(memory_format=torch.channels_last)
        return self.vae.encode(images).latent_dist.mode().float() * self.vae.config["scaling_factor"]

    def _condition(self, captions: list[str]) -> Tensor:
        """Text embeddings for both views of each scene, some of them of the empty caption."""
        kept = torch.rand(len(captions)) >= self.hparams["caption_dropout"]
        condition = self.encoded([text if keep else "" for text, keep in zip(captions, kept, strict=True)])
        return condition.repeat_interleave(2, dim=0)

    def training_step(self, batch: SceneBatch, batch_index: int) -> Tensor:
        """Mean squared error of the predicted velocity; each view has a random timestep."""
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
        """Naming loss of the batch; views with less noise weigh more."""
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
        """AdamW on UNet and text encoder, linear warm-up and cosine decay."""
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
