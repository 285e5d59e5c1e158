"""Training of the second embedded model: denoising of feature latents, and alignment of one layer's queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from jaxtyping import Float
from torch import Tensor
from transformers import CLIPTokenizer

from pretraining.alignment import (
    Teacher,
    cosine_loss,
    queries_until,
    relational_loss,
    rotate_queries,
    start_from_latents,
)
from pretraining.diffusion import DiffusionTraining, build_unet, mean_skew, set_self_attention
from pretraining.representation import FeatureAutoencoder
from pretraining.scenes import SceneBatch

__all__ = ["READ_LAYER", "AlignedDiffusionTraining"]

READ_LAYER = "up_blocks.1.attentions.0"


class AlignedDiffusionTraining(DiffusionTraining):
    """Alternates between denoising batches and alignment batches.

    A denoising batch is one of `DiffusionTraining`. In an alignment batch the queries of `READ_LAYER` are
    compared with the teacher's features of the same images; the UNet runs up to that layer only.

    Args:
        vae: frozen.
        teacher: calibrated.
        tokenizer: of the captions.
        names: of all objects there are.
        max_steps: length of the learning rate's schedule.
        alignment: share of alignment batches.
        relational: weight of the relational loss beside the cosine loss.
        temperature: of the relational loss.
        low_noise: timesteps below this one are drawn for four of five images of alignment batches.
        options: further arguments of `DiffusionTraining`.
    """

    def __init__(
        self,
        vae: FeatureAutoencoder,
        teacher: Teacher,
        tokenizer: CLIPTokenizer,
        *,
        names: Sequence[str],
        max_steps: int,
        alignment: float = 0.75,
        relational: float = 1.0,
        temperature: float = 0.07,
        low_noise: int = 60,
        **options: Any,
    ) -> None:
        super().__init__(vae, tokenizer, names=names, max_steps=max_steps, **options)
        self.save_hyperparameters(ignore=["vae", "teacher", "tokenizer", "names"])
        self.teacher = teacher

    def build_unet(self, latent_channels: int) -> Any:
        """No attention at 1/8 on the way down."""
        return build_unet(
            latent_channels=latent_channels, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D")
        )

    def training_step(self, batch: SceneBatch, batch_index: int) -> Tensor:
        """The loss of one batch, whose kind is drawn."""
        if float(torch.rand(())) < self.hparams["alignment"]:
            return self._alignment_step(batch)
        return super().training_step(batch, batch_index)

    @torch.no_grad()
    def start_from(self, images: Float[Tensor, "batch 3 height width"]) -> None:
        """Initialises the UNet from the latents, and its queries close to the teacher's features of `images`."""
        start_from_latents(self.unet)
        condition = self.encoded([""]).expand(len(images), -1, -1)
        timesteps = torch.zeros(len(images), dtype=torch.long)
        queries = queries_until(self.unet, READ_LAYER, self.latents(images), timesteps, condition)
        rotate_queries(self.unet, READ_LAYER, queries, self.teacher(images).flatten(2).mT)

    def _alignment_step(self, batch: SceneBatch) -> Tensor:
        images = batch.views.flatten(0, 1)
        condition = self._condition([text if torch.rand(()) < 0.5 else "" for text in batch.captions])
        set_self_attention(self.unet, AttnProcessor2_0())
        noisy, timesteps = self._slightly_noisy(self.latents(images))
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
        skew = self.hparams["orthogonality"] * mean_skew(self.unet)
        return cosine + self.hparams["relational"] * relational + skew

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
