"""The autoencoder of the embedded model: features of a frozen convolutional network as latents.

A diffusion model whose latents are a pretrained encoder's features is a representation autoencoder (Zheng et al.,
arXiv 2510.11690). Here the encoder is EfficientNet-lite0 without its last stage.
"""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, IdentityDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from drift.efficientnet import COARSEST_STRIDE, EfficientNetLite0

__all__ = ["FeatureAutoencoder", "imagenet_stages", "stage_outputs"]

_STAGES = (2, 4, 5)  # blocks 4, 10 and 14, of strides 8, 16 and 32
_CHANNELS = 40 + 112 + 192


class FeatureAutoencoder(ModelMixin, ConfigMixin):
    """Latents from three stages of EfficientNet-lite0, and a small convolutional decoder.

    Each stage's features are scaled to unit length at every location, concatenated on the grid of stride 8
    (344 channels), and projected linearly to `latent_channels`.

    Args:
        latent_channels: channels of the latents.
        block_out_channels: widths of the decoder, from full resolution to stride 8.
        scaling_factor: 1, since the projection gives latents of unit standard deviation.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 128,
        block_out_channels: tuple[int, ...] = (16, 32, 64, 96),
        scaling_factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.encoder = imagenet_stages(_STAGES[-1])
        self.projection = nn.Conv2d(_CHANNELS, latent_channels, 1)
        self.decoder = _decoder(latent_channels, block_out_channels)

    @property
    def spatial_compression_ratio(self) -> int:
        """Pixels per latent along each axis."""
        return 8

    def features(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 344 height/8 width/8"]:
        """Unit-length features of the stages, concatenated.

        Args:
            images: RGB in [-1, 1], height and width multiples of 8.
        """
        rows, columns = images.shape[-2] // 8, images.shape[-1] // 8
        below, right = (-side % COARSEST_STRIDE for side in images.shape[-2:])
        padded = F.pad(images, (0, right, 0, below), mode="replicate")
        outputs = stage_outputs(self.encoder, padded, _STAGES)
        return torch.cat([F.normalize(output, dim=1) for output in outputs], dim=1)[..., :rows, :columns]

    def encode(
        self, images: Float[Tensor, "batch 3 height width"], return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[IdentityDistribution]:
        """Latents `(batch, latent_channels, height / 8, width / 8)` as a distribution without variance."""
        latents = IdentityDistribution(self.projection(self.features(images)))
        return AutoencoderKLOutput(latent_dist=latents) if return_dict else (latents,)

    def decode(
        self,
        latents: Float[Tensor, "batch channels rows columns"],
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Images `(batch, 3, 8 * rows, 8 * columns)`, RGB in about [-1, 1]."""
        images = self.decoder(latents)
        return DecoderOutput(sample=images) if return_dict else (images,)


def imagenet_stages(last: int) -> nn.ModuleList:
    """Stem and stages 0 to `last` of EfficientNet-lite0, batch norms folded, random weights.

    The stem is the first entry, so that entry `n + 1` is stage `n`.
    """
    network = EfficientNetLite0()
    return nn.ModuleList([network.stem, *network.stages[: last + 1]])


def stage_outputs(
    stages: nn.ModuleList, images: Float[Tensor, "batch 3 height width"], which: tuple[int, ...]
) -> list[Tensor]:
    """Outputs of the chosen stages, resized bilinearly to the first one's grid.

    Args:
        stages: as `imagenet_stages` returns them.
        images: RGB in [-1, 1].
        which: numbers of stages, rising.
    """
    normalized = (images * (127.5 / 128) + 0.5 / 128).contiguous(memory_format=torch.channels_last)
    features = F.relu6(stages[0](normalized), inplace=True)
    outputs: list[Tensor] = []
    for number, stage in enumerate(stages[1 : which[-1] + 2]):
        features = stage(features)
        if number in which:
            grid = outputs[0].shape[-2:] if outputs else features.shape[-2:]
            outputs.append(F.interpolate(features, grid, mode="bilinear", align_corners=False))
    return outputs


def _decoder(latent_channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(latent_channels, widths[-1], 3, padding=1)]
    for before, after in zip(widths[:0:-1], widths[-2::-1], strict=True):
        layers += [nn.SiLU(), nn.Conv2d(before, before, 3, padding=1), nn.SiLU()]
        layers += [nn.Conv2d(before, 4 * after, 3, padding=1), nn.PixelShuffle(2)]
    return nn.Sequential(*layers, nn.SiLU(), nn.Conv2d(widths[0], 3, 3, padding=1))
