"""Training of the embedded model's UNet and text encoder on the latents of a frozen autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from drift.pretrain.schedule import warmup_cosine
from drift.pretrain.text import build_text_encoder

__all__ = ["DiffusionTraining", "build_scheduler", "build_unet", "save_pipeline", "tie_keys_to_queries"]


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
    answer which tokens are alike, which is what label propagation asks.
    """
    for block in unet.modules():
        if isinstance(block, BasicTransformerBlock):
            block.attn1.to_k.weight = block.attn1.to_q.weight


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
    """The denoising loss on scenes `(batch, 3, side, side)` in [-1, 1] with captions."""

    def __init__(
        self,
        vae: AutoencoderKL,
        tokenizer: CLIPTokenizer,
        *,
        max_steps: int,
        learning_rate: float = 6e-4,
        caption_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["vae", "tokenizer"])
        self.vae = vae.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.text_encoder: CLIPTextModel = build_text_encoder(tokenizer)
        self.unet = build_unet(latent_channels=vae.config["latent_channels"])
        tie_keys_to_queries(self.unet)
        self.scheduler = build_scheduler()

    def _condition(self, captions: list[str]) -> Tensor:
        kept = torch.rand(len(captions)) >= self.hparams["caption_dropout"]
        captions = [text if keep else "" for text, keep in zip(captions, kept, strict=True)]
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        return self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state

    def training_step(self, batch: tuple[Tensor, list[str]], batch_index: int) -> Tensor:
        """The mean squared error of the predicted velocity, at timesteps drawn uniformly."""
        images, captions = batch
        with torch.no_grad():
            latents = self.vae.encode(images).latent_dist.sample().float() * self.vae.config["scaling_factor"]
        noise = torch.randn_like(latents)
        timesteps = torch.randint(
            self.scheduler.config["num_train_timesteps"], (len(latents),), device=self.device
        )
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        target = self.scheduler.get_velocity(latents, noise, timesteps)
        loss = F.mse_loss(self.unet(noisy, timesteps, self._condition(captions)).sample.float(), target)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and decay, for all but the autoencoder."""
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.hparams["learning_rate"], weight_decay=0.01)
        return warmup_cosine(optimizer, max_steps=self.hparams["max_steps"])


def save_pipeline(module: DiffusionTraining, folder: Path) -> None:
    """Writes the model in diffusers' folder layout, in half precision."""
    for block in module.unet.modules():
        if isinstance(block, BasicTransformerBlock):  # safetensors refuses weights that share memory
            block.attn1.to_k.weight = torch.nn.Parameter(block.attn1.to_q.weight.detach().clone())
    module.vae.register_to_config(_name_or_path="")  # no path of the machine that trained it
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
