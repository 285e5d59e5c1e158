"""The autoencoder of the first embedded model: a fixed PCA encoder and a trained decoder.

The encoder is not trained. A transform of 8 x 8 patches to their principal components is written into
the weights of Stable Diffusion's encoder, whose residual blocks pass their input on. It is exact, costs
no training, and keeps what label propagation needs: at 16 numbers a patch it loses a tenth of the energy
that a convolutional encoder of this size loses after the training that two CPU cores can give it.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

from pretraining.representation import FeatureAutoencoder
from pretraining.scenes import SceneBatch
from pretraining.schedule import warmup_cosine

__all__ = ["AutoencoderTraining", "build_autoencoder", "set_principal_encoder"]

_GROUPS = 8
_ANCHOR = 50.0
"""Large constant activation that fixes the statistics of a normalisation group."""


def build_autoencoder(
    *, widths: tuple[int, ...] = (8, 32, 64, 64), latent_channels: int = 16
) -> AutoencoderKL:
    """A narrow autoencoder in Stable Diffusion's layout: four levels, hence a stride of 8.

    Its residual blocks pass their input on, so that the untrained convolutions between them are all
    that happens.
    """
    vae = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=_GROUPS,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    for block in vae.modules():
        if isinstance(block, ResnetBlock2D):
            nn.init.zeros_(block.conv2.weight)
            nn.init.zeros_(block.conv2.bias)
    return vae


@torch.no_grad()
def set_principal_encoder(vae: AutoencoderKL, images: Tensor, *, whitening: float = 0.5) -> None:
    """Makes the encoder a linear transform to the principal components of `images`' patches.

    Level by level, 2 x 2 patches of the level's channels are replaced by as many of their principal
    components as the next level has room for. `scaling_factor` is set so that latents have a standard
    deviation of 1 over all channels.

    Args:
        vae: as `build_autoencoder` makes it; changed in place, its encoder frozen.
        images: `(batch, 3, height, width)` in [-1, 1], sides multiples of 8.
        whitening: latents are divided by their standard deviation to this power: 0 leaves them
            orthonormal, 1 gives all of them the same variance.
    """
    encoder, latents = vae.encoder, vae.config["latent_channels"]
    _pass_on(encoder.conv_in)
    features, filled = images, 3
    levels = list(encoder.down_blocks)
    for place, level in enumerate(levels[:-1]):
        shortcut = level.resnets[0].conv_shortcut
        if shortcut is not None:
            _pass_on(shortcut)
        last = place == len(levels) - 2
        keep = latents if last else level.downsamplers[0].conv.out_channels
        basis, mean = _principal_components(features, min(keep, 4 * filled))
        features = torch.einsum("kcyx,bchywx->bkhw", basis, _patches(features))
        if last:
            deviation = features.permute(1, 0, 2, 3).flatten(1).std(1)
            basis = basis / deviation[:, None, None, None] ** whitening
            scale = _write_signed(level.downsamplers[0].conv, basis)
            _write_readout(vae, scale, centre=mean / deviation**whitening)
        else:
            _write(level.downsamplers[0].conv, basis)
        filled = len(basis)
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    spread = float(vae.encode(images).latent_dist.mode().std())
    vae.register_to_config(scaling_factor=round(1 / spread, 4))


def _patches(features: Tensor) -> Tensor:
    """`(batch, channels, rows, 2, columns, 2)` views of 2 x 2 patches."""
    return features.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))


def _principal_components(features: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Orthonormal principal components of 2 x 2 patches, `(keep, channels, 2, 2)`, and the projected mean `(keep,)`."""
    channels = features.shape[1]
    patches = _patches(features).permute(0, 2, 4, 1, 3, 5).reshape(-1, 4 * channels).double()
    _, vectors = torch.linalg.eigh(torch.cov(patches.T))
    basis = vectors.flip(1)[:, :keep].T
    mean = (basis @ patches.mean(0)).to(features.dtype)
    return basis.to(features.dtype).unflatten(1, (channels, 2, 2)), mean


def _pass_on(convolution: nn.Conv2d) -> None:
    """Makes a convolution copy each input channel to the output channel of the same index; others are 0."""
    nn.init.dirac_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)


def _write(convolution: nn.Conv2d, basis: Tensor) -> None:
    """Writes `basis` into a stride-2 convolution, aligned with the top left of its window."""
    nn.init.zeros_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    convolution.weight[: len(basis), : basis.shape[1], :2, :2] = basis


def _write_signed(convolution: nn.Conv2d, basis: Tensor) -> Tensor:
    """Writes each component and its negative, and a pair of constant channels per normalisation group.

    Returns:
        The channel of each component; that of its negative is the next one.
    """
    width = convolution.out_channels // _GROUPS
    pairs = (width - 2) // 2
    if len(basis) > pairs * _GROUPS:
        raise ValueError(f"{len(basis)} latents do not fit in {convolution.out_channels} channels")
    numbers = torch.arange(len(basis))
    channels = numbers % _GROUPS * width + numbers // _GROUPS * 2
    nn.init.zeros_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    convolution.weight[channels, : basis.shape[1], :2, :2] = basis
    convolution.weight[channels + 1, : basis.shape[1], :2, :2] = -basis
    convolution.bias[width - 2 :: width] = _ANCHOR
    convolution.bias[width - 1 :: width] = -_ANCHOR
    return channels


def _write_readout(vae: AutoencoderKL, channels: Tensor, *, centre: Tensor) -> None:
    """Sets the last layers so that they invert normalisation and activation: silu(x) - silu(-x) = x."""
    encoder, width = vae.encoder, vae.encoder.conv_out.in_channels // _GROUPS
    nn.init.constant_(encoder.conv_norm_out.weight, _ANCHOR * (2 / width) ** 0.5)
    nn.init.zeros_(encoder.conv_norm_out.bias)
    nn.init.zeros_(encoder.conv_out.weight)
    nn.init.zeros_(encoder.conv_out.bias)
    numbers = torch.arange(len(channels))
    encoder.conv_out.weight[numbers, channels, 1, 1] = 1
    encoder.conv_out.weight[numbers, channels + 1, 1, 1] = -1
    encoder.conv_out.bias[numbers] = -centre
    encoder.conv_out.bias[len(channels) :] = -10.0  # the logarithm of the variance: hardly any noise
    _pass_on(vae.quant_conv)


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
        vae: AutoencoderKL | FeatureAutoencoder,
        *,
        max_steps: int,
        learning_rate: float = 2e-3,
        edge_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["vae"])
        self.vae = vae.to(memory_format=torch.channels_last)
        self.vae.decoder.requires_grad_(True)
        if isinstance(vae, AutoencoderKL):
            self.vae.post_quant_conv.requires_grad_(True)

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
