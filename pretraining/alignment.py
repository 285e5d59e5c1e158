"""Representation alignment of the layer that is read (REPA, Yu et al., arXiv 2410.06940).

Queries of one self-attention layer are aligned with the features of a teacher, a network that is too slow to
run on every frame: EfficientNet-lite0 on images of twice the size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from drift.backbones.feature_autoencoder import imagenet_stages, stage_outputs
from pretraining.autoencoder import load_imagenet, principal_directions

__all__ = [
    "Teacher",
    "cosine_loss",
    "queries_until",
    "relational_loss",
    "rotate_queries",
    "start_from_latents",
]

_STAGES = (4, 5)  # blocks 10 (stride 16) and 14 (stride 32)


class Teacher(nn.Module):
    """Features of EfficientNet-lite0, blocks 10 and 14, of images at twice their size, as principal components.

    Args:
        channels: number of components.
    """

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        self.stages = imagenet_stages(_STAGES[-1])
        self.projection = nn.Conv2d(304, channels, 1)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def features(
        self, images: Float[Tensor, "batch 3 height width"], *, mirrored: bool = False
    ) -> Float[Tensor, "batch 304 height/8 width/8"]:
        """Unit-length features of both blocks, concatenated.

        Args:
            images: RGB in [-1, 1], height and width multiples of 16.
            mirrored: compute them from the mirrored images, and mirror them back.
        """
        large = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
        large = (large.flip(-1) if mirrored else large).contiguous(memory_format=torch.channels_last)
        outputs = [F.normalize(output, dim=1) for output in stage_outputs(self.stages, large, _STAGES)]
        features = torch.cat(outputs, dim=1)
        return features.flip(-1) if mirrored else features

    @torch.no_grad()
    def forward(
        self, images: Float[Tensor, "batch 3 height width"], *, mirrored: bool = False
    ) -> Float[Tensor, "batch channels height/8 width/8"]:
        """Principal components of `features`."""
        components: Tensor = self.projection(self.features(images, mirrored=mirrored))
        return components

    @torch.no_grad()
    def calibrate(self, images: Float[Tensor, "batch 3 height width"]) -> None:
        """Loads the weights trained on ImageNet and computes the principal components from `images`."""
        load_imagenet(self.stages)
        features = self.features(images).permute(0, 2, 3, 1).flatten(0, 2)
        basis, mean, _ = principal_directions(features, self.projection.out_channels)
        self.projection.weight.copy_(basis[..., None, None])
        assert self.projection.bias is not None
        self.projection.bias.copy_(-basis @ mean)


def cosine_loss(
    student: Float[Tensor, "batch tokens channels"], teacher: Float[Tensor, "batch tokens channels"]
) -> Tensor:
    """One minus the mean cosine similarity of corresponding tokens."""
    return 1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1).mean()


def relational_loss(
    student: Float[Tensor, "scenes 2 tokens channels"],
    teacher: Float[Tensor, "scenes 2 tokens channels"],
    *,
    temperature: float,
) -> Tensor:
    """KL divergence of the correspondence between two views, from the teacher's to the student's.

    The correspondence of a token is the softmax, over the tokens of the other view, of its cosine similarities
    divided by `temperature`: what label propagation computes.
    """
    target = (_similarities(teacher) / temperature).log_softmax(-1)
    found = (_similarities(student) / temperature).log_softmax(-1)
    return F.kl_div(found, target, log_target=True, reduction="none").sum(-1).mean()


def _similarities(tokens: Tensor) -> Tensor:
    """From each view to the other, `(scenes, 2, tokens, tokens)`."""
    with torch.autocast(tokens.device.type, enabled=False):
        unit = F.normalize(tokens.float(), dim=-1)
        return unit @ unit.flip(1).mT


class _LayerReached(Exception):
    """Ends a forward pass at the layer that is read."""


@contextmanager
def _recorded(block: BasicTransformerBlock) -> Iterator[list[Tensor]]:
    """Within it, a pass of the UNet records the queries of the block's self-attention and ends there."""
    queries: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple, projected: Tensor) -> None:
        queries.append(projected)
        raise _LayerReached

    handle = block.attn1.to_q.register_forward_hook(keep)
    try:
        yield queries
    finally:
        handle.remove()


def queries_until(
    unet: UNet2DConditionModel,
    layer: str,
    latents: Float[Tensor, "batch channels rows columns"],
    timesteps: Tensor,
    condition: Float[Tensor, "batch tokens dim"],
) -> Float[Tensor, "batch rows*columns dim"]:
    """Queries of a self-attention layer, heads concatenated; nothing after the layer is computed.

    Args:
        unet: the model.
        layer: name of the layer's transformer, `up_blocks.1.attentions.0`.
        latents: noisy latents at `timesteps`.
        timesteps: `(batch,)`.
        condition: output of the text encoder.
    """
    block = unet.get_submodule(layer).transformer_blocks[0]
    with _recorded(block) as queries, suppress(_LayerReached):
        unet(latents, timesteps, encoder_hidden_states=condition)
    return queries[0]


@torch.no_grad()
def start_from_latents(unet: UNet2DConditionModel) -> None:
    """Initialises `unet` so that queries of `up_blocks.1.attentions.0` are a rotation of the latents.

    Training then starts from the latents' own correspondence instead of from noise: residual blocks add
    nothing, and the skip connection at 1/8 passes the latents on.
    """
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
    _write_latents(unet.conv_in, groups=unet.config["norm_num_groups"])
    block = unet.up_blocks[1]
    shortcut = block.resnets[0].conv_shortcut
    width = shortcut.out_channels
    shortcut.weight[:, -width:] = torch.eye(width)[..., None, None]  # the skip is concatenated last
    shortcut.weight[:, :-width].mul_(0.1)
    nn.init.zeros_(shortcut.bias)
    nn.init.eye_(block.attentions[0].proj_in.weight)
    nn.init.zeros_(block.attentions[0].proj_in.bias)


def _write_latents(convolution: nn.Conv2d, *, groups: int) -> None:
    """Copies every input channel to an output channel, spread evenly over the groups of the normalisation."""
    width = convolution.out_channels // groups
    numbers = torch.arange(convolution.in_channels)
    if len(numbers) > convolution.out_channels:
        raise ValueError(f"{len(numbers)} latent channels do not fit in {convolution.out_channels}")
    nn.init.zeros_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    convolution.weight[numbers % groups * width + numbers // groups, numbers, 1, 1] = 1


@torch.no_grad()
def rotate_queries(
    unet: UNet2DConditionModel,
    layer: str,
    queries: Float[Tensor, "batch tokens dim"],
    teacher: Float[Tensor, "batch tokens dim"],
) -> None:
    """Rotates a layer's query projection so that its queries are closest to the teacher's features.

    This is the orthogonal Procrustes problem; similarities between queries do not change. Keys that are tied to
    the queries rotate with them.

    Args:
        unet: changed in place.
        layer: name of the layer's transformer.
        queries: as the layer computes them now.
        teacher: of the same images.
    """
    products = F.normalize(teacher.float(), dim=-1).flatten(0, 1).mT @ F.normalize(
        queries.float(), dim=-1
    ).flatten(0, 1)
    left, _, right = torch.linalg.svd(products)
    projection = unet.get_submodule(layer).transformer_blocks[0].attn1.to_q
    projection.weight.copy_(left @ right @ projection.weight)
