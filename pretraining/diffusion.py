"""Training of the embedded model's UNet and text encoder on the latents of a frozen autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor2_0
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from drift.backbones.feature_autoencoder import FeatureAutoencoder
from pretraining.alignment import (
    Teacher,
    cosine_loss,
    queries_until,
    relational_loss,
    rotate_queries,
    start_from_latents,
)
from pretraining.grounding import grounding_loss, kinds_of_tokens
from pretraining.scenes import SceneBatch, caption
from pretraining.schedule import warmup_cosine
from pretraining.text import build_text_encoder
from pretraining.unet import (
    Queries,
    ViewsTogether,
    build_unet,
    cross_attention_queries,
    make_rotations,
    mean_skew,
    self_attentions,
    set_self_attention,
    tie_keys_to_queries,
)

__all__ = ["READ_LAYER", "DiffusionTraining", "build_scheduler", "save_pipeline"]

READ_LAYER = "up_blocks.1.attentions.0"
"""The layer whose queries are aligned, and which trackers read."""


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
    """Denoising of feature latents, and alignment of the queries of `READ_LAYER` with a teacher.

    Batches of both kinds alternate at random. In a denoising batch each view of a scene has noise of its own strength.
    In an alignment batch the queries are compared with the teacher's features of the same images; the UNet runs up to
    that layer only. In both, the cross-attention is trained to find what the caption names.

    Args:
        vae: autoencoder; frozen.
        teacher: calibrated; frozen.
        tokenizer: tokenizer of the captions.
        names: names of all objects in the training pictures.
        max_steps: length of the learning-rate schedule.
        learning_rate: peak learning rate.
        caption_dropout: fraction of scenes with the empty caption, in denoising batches.
        together: fraction of denoising batches in which self-attention joins the two views of a scene.
        orthogonality: weight of the penalty on query projections that are no scaled rotations.
        grounding: weight of the grounding loss, see `pretraining.grounding`.
        alignment: fraction of alignment batches.
        relational: weight of the relational loss beside the cosine loss.
        temperature: of the relational loss.
        low_noise: timesteps below this one are drawn for four of five images of alignment batches.
    """

    def __init__(
        self,
        vae: FeatureAutoencoder,
        teacher: Teacher,
        tokenizer: CLIPTokenizer,
        *,
        names: Sequence[str],
        max_steps: int,
        learning_rate: float = 6e-4,
        caption_dropout: float = 0.1,
        together: float = 0.6,
        orthogonality: float = 0.1,
        grounding: float = 0.1,
        alignment: float = 0.75,
        relational: float = 1.0,
        temperature: float = 0.07,
        low_noise: int = 60,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["vae", "teacher", "tokenizer", "names"])
        self.vae = vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self.teacher = teacher
        self.tokenizer, self.names = tokenizer, list(names)
        self.text_encoder: CLIPTextModel = build_text_encoder(tokenizer)
        self.unet = build_unet(latent_channels=vae.config["latent_channels"])
        tie_keys_to_queries(self.unet)
        self.scheduler = build_scheduler()

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

    def _some(self, captions: Sequence[str], dropout: float) -> list[str]:
        """The captions, some of them replaced by the empty one."""
        kept = torch.rand(len(captions)) >= dropout
        return [text if keep else "" for text, keep in zip(captions, kept, strict=True)]

    @torch.no_grad()
    def start_from(self, images: Float[Tensor, "batch 3 height width"]) -> None:
        """Initialises the UNet from the latents, and its queries close to the teacher's features of `images`."""
        start_from_latents(self.unet)
        condition = self.encoded([""]).expand(len(images), -1, -1)
        timesteps = torch.zeros(len(images), dtype=torch.long)
        queries = queries_until(self.unet, READ_LAYER, self.latents(images), timesteps, condition)
        rotate_queries(self.unet, READ_LAYER, queries, self.teacher(images).flatten(2).mT)

    def training_step(self, batch: SceneBatch, batch_index: int) -> Tensor:
        """The loss of one batch, whose kind is drawn."""
        is_alignment = float(torch.rand(())) < self.hparams["alignment"]
        return self._alignment_step(batch) if is_alignment else self._denoising_step(batch)

    def _denoising_step(self, batch: SceneBatch) -> Tensor:
        images = batch.views.flatten(0, 1)
        latents = self.latents(images)
        noise = torch.randn_like(latents)
        steps = self.scheduler.config["num_train_timesteps"]
        timesteps = torch.randint(steps, (len(latents),), device=self.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        target = self.scheduler.get_velocity(latents, noise, timesteps)
        together = float(torch.rand(())) < self.hparams["together"]
        set_self_attention(self.unet, ViewsTogether() if together else AttnProcessor2_0())
        captions = self._some(batch.captions, self.hparams["caption_dropout"])
        condition = self.encoded(captions).repeat_interleave(2, dim=0)
        with cross_attention_queries(self.unet) as queries:
            velocity = self.unet(noisy, timesteps, condition).sample.float()
        loss = F.mse_loss(velocity, target)
        self.log_dict({"loss": loss})
        self.log("loss_together" if together else "loss_alone", loss)
        others: list[list[str]] = [[] for _ in captions]
        return loss + self._regularised(batch, captions, others, condition, queries, 1 - timesteps / steps)

    def _alignment_step(self, batch: SceneBatch) -> Tensor:
        images = batch.views.flatten(0, 1)
        drawn = [self._with_others(names) for names in batch.names]
        captions = self._some([text for text, _ in drawn], 0.5)
        condition = self.encoded(captions).repeat_interleave(2, dim=0)
        set_self_attention(self.unet, AttnProcessor2_0())
        noisy, timesteps = self._slightly_noisy(self.latents(images))
        with cross_attention_queries(self.unet) as queries:
            student = queries_until(self.unet, READ_LAYER, noisy, timesteps, condition)
        mirrored = bool(torch.rand(()) < 0.5)  # the mean over both is what is learned
        teacher = self.teacher(images, mirrored=mirrored).flatten(2).mT
        cosine = cosine_loss(student, teacher)
        relational = relational_loss(
            student.unflatten(0, (-1, 2)),
            teacher.unflatten(0, (-1, 2)),
            temperature=self.hparams["temperature"],
        )
        self.log_dict({"cosine": cosine, "relational": relational})
        others = [names for _, names in drawn]
        weights = 1 - timesteps / self.scheduler.config["num_train_timesteps"]
        return (
            cosine
            + self.hparams["relational"] * relational
            + self._regularised(batch, captions, others, condition, queries, weights)
        )

    def _with_others(self, names: Sequence[str]) -> tuple[str, list[str]]:
        """A caption of a scene's names and some that it does not show, in any order, and those others."""
        drawn = [self.names[i] for i in torch.randint(len(self.names), (int(torch.randint(4, ())),))]
        others = sorted(set(drawn) - set(names))
        every = [*names, *others]
        return caption([every[i] for i in torch.randperm(len(every))]), others

    def _slightly_noisy(
        self, latents: Float[Tensor, "batch channels rows columns"]
    ) -> tuple[Float[Tensor, "batch channels rows columns"], Tensor]:
        """Latents at timesteps as they are read: mostly low, and some without noise."""
        count, device, low = len(latents), latents.device, self.hparams["low_noise"]
        rarely = torch.rand(count, device=device) < 0.2
        high = torch.randint(low, 500, (count,), device=device)
        timesteps = torch.where(rarely, high, torch.randint(low, (count,), device=device))
        noisy = self.scheduler.add_noise(latents, torch.randn_like(latents), timesteps)
        clean = ~rarely & (torch.rand(count, device=device) < 0.4)
        return torch.where(clean[:, None, None, None], latents, noisy), timesteps

    def _regularised(
        self,
        batch: SceneBatch,
        captions: Sequence[str],
        others: Sequence[Sequence[str]],
        condition: Tensor,
        queries: Queries,
        weights: Tensor,
    ) -> Tensor:
        """Grounding loss of the names in `captions` and penalty on queries that are no rotations, weighted."""
        kinds = kinds_of_tokens(self.tokenizer, captions, batch.names, others).to(self.device)
        grounding = grounding_loss(
            queries, condition, kinds.repeat_interleave(2, dim=0), batch.covers.flatten(0, 1), weights
        )
        skew = mean_skew(self.unet)
        self.log_dict({"grounding": grounding, "skew": skew})
        return self.hparams["orthogonality"] * skew + self.hparams["grounding"] * grounding

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
