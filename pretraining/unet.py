"""The UNet of the embedded model and access to its attention layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

__all__ = [
    "Queries",
    "ViewsTogether",
    "build_unet",
    "cross_attention_queries",
    "make_rotations",
    "mean_skew",
    "self_attentions",
    "set_self_attention",
    "tie_keys_to_queries",
]

Queries = list[tuple[Attention, Tensor]]
"""Cross-attention modules with their queries `(views, tokens, channels)`."""


def build_unet(
    *,
    latent_channels: int,
    text_width: int = 128,
) -> UNet2DConditionModel:
    """A UNet at 1/8 and 1/16 of the image with heads of 32 channels and no mid block.

    On the way down there is no attention at 1/8, where it takes the most time.
    """
    return UNet2DConditionModel(
        sample_size=28,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(128, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
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


def self_attentions(unet: UNet2DConditionModel) -> list[Attention]:
    """Self-attention modules of `unet`, in order."""
    return [block.attn1 for block in _blocks(unet)]


@contextmanager
def cross_attention_queries(unet: UNet2DConditionModel) -> Iterator[Queries]:
    """Records the queries of every cross-attention during forward passes of `unet` inside the context."""
    queries: Queries = []
    handles = []
    for block in _blocks(unet):

        def keep(
            module: nn.Module, arguments: tuple, projected: Tensor, attention: Attention = block.attn2
        ) -> None:
            queries.append((attention, projected))

        handles.append(block.attn2.to_q.register_forward_hook(keep))
    try:
        yield queries
    finally:
        for handle in handles:
            handle.remove()


def _blocks(unet: UNet2DConditionModel) -> Iterator[BasicTransformerBlock]:
    return (module for module in unet.modules() if isinstance(module, BasicTransformerBlock))
