"""The embedded model's UNet: attention across views, keys that are queries, projections that are rotations."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0

from pretraining.unet import (
    ViewsTogether,
    build_unet,
    make_rotations,
    mean_skew,
    self_attentions,
    set_self_attention,
    tie_keys_to_queries,
)


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = build_unet(latent_channels=16)
    tie_keys_to_queries(unet)
    return unet


def test_keys_are_tied_to_queries_and_start_as_rotations(unet: UNet2DConditionModel) -> None:
    assert self_attentions(unet)
    assert all(attention.to_k.weight is attention.to_q.weight for attention in self_attentions(unet))
    assert float(mean_skew(unet).detach()) < 1e-8


def test_skew_counts_what_is_no_scaled_rotation(unet: UNet2DConditionModel) -> None:
    with torch.no_grad():
        for attention in self_attentions(unet):
            attention.to_q.weight.mul_(3)
    assert float(mean_skew(unet).detach()) < 1e-6, "the scale is free"
    with torch.no_grad():
        for attention in self_attentions(unet):
            attention.to_q.weight[0] = attention.to_q.weight[1]
    assert float(mean_skew(unet).detach()) > 0.01


def test_views_together_see_each_other_and_no_other_scene(unet: UNet2DConditionModel) -> None:
    latents, condition = torch.randn(4, 16, 8, 8), torch.zeros(4, 77, 128)
    changed = latents.clone()
    changed[1] += 1
    for processor, reached in (
        (ViewsTogether(), [True, True, False, False]),
        (AttnProcessor2_0(), [False, True, False, False]),
    ):
        set_self_attention(unet, processor)
        with torch.no_grad():
            before, after = (unet(z, 20, encoder_hidden_states=condition).sample for z in (latents, changed))
        assert [not torch.allclose(a, b, atol=1e-6) for a, b in zip(before, after, strict=True)] == reached


def test_two_equal_views_together_are_as_each_alone(unet: UNet2DConditionModel) -> None:
    latents = torch.randn(1, 16, 8, 8).expand(2, -1, -1, -1)
    condition = torch.zeros(2, 77, 128)
    with torch.no_grad():
        set_self_attention(unet, AttnProcessor2_0())
        alone = unet(latents, 20, encoder_hidden_states=condition).sample
        set_self_attention(unet, ViewsTogether())
        together = unet(latents, 20, encoder_hidden_states=condition).sample
    assert torch.allclose(alone, together, atol=1e-5)


def test_rotations_are_the_nearest_ones(unet: UNet2DConditionModel) -> None:
    attention = self_attentions(unet)[0]
    rotation = attention.to_q.weight.detach().clone()
    with torch.no_grad():
        attention.to_q.weight.mul_(2).add_(0.01 * torch.randn_like(rotation))
    make_rotations(unet)
    assert float(mean_skew(unet).detach()) < 1e-8
    assert (attention.to_q.weight / 2 - rotation).abs().max() < 0.03
    assert attention.to_k.weight is attention.to_q.weight
