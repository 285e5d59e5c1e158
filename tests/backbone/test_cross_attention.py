"""Cross-attention maps that are read must be those that the model computes with."""

from __future__ import annotations

import pytest
import torch

from drift.backbone import load_latent_diffusion
from drift.backbone.attention import recorded, self_attention_layers
from drift.errors import OptionError

LAYERS = ["down_blocks.1.attentions.0", "up_blocks.2.attentions.1"]


@pytest.fixture(scope="module")
def backbone(checkpoint):
    return load_latent_diffusion(str(checkpoint), layers=LAYERS, timestep=51)


def run(backbone, latents, condition):
    return backbone.unet(latents, 51, encoder_hidden_states=condition)


@pytest.mark.parametrize("name", LAYERS)
def test_the_maps_give_the_layers_own_output(backbone, name):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 11, 15, generator=generator)
    condition = torch.randn(2, 77, backbone.condition().shape[-1], generator=generator)
    block = self_attention_layers(backbone.unet)[name][1]
    seen = {}
    handle = block.attn2.register_forward_hook(lambda m, a, out: seen.update(output=out))
    with torch.no_grad():
        run(backbone, latents, condition)
    handle.remove()
    with torch.no_grad(), recorded(backbone.unet, [], cross=[name]) as recording:
        run(backbone, latents, condition)
    probabilities = recording.cross_attention[name].logits().softmax(-1)
    assert torch.allclose(probabilities.sum(-1), torch.ones(()), atol=1e-5)
    with torch.no_grad():
        values = block.attn2.to_v(condition).unflatten(2, (block.attn2.heads, -1)).transpose(1, 2)
        attended = probabilities.flatten(2, 3) @ values
        output = block.attn2.to_out[0](attended.transpose(1, 2).flatten(2))
    assert torch.allclose(output, seen["output"], atol=1e-5)


def test_gradients_reach_the_condition(backbone):
    condition = torch.randn(1, 77, backbone.condition().shape[-1], requires_grad=True)
    with recorded(backbone.unet, [], cross=LAYERS) as recording:
        run(backbone, torch.randn(1, 4, 8, 8), condition)
    recording.cross_attention[LAYERS[-1]].logits()[..., 3].sum().backward()
    assert condition.grad is not None
    assert condition.grad.abs().sum() > 0


def test_the_pass_ends_at_the_last_chosen_layer_and_leaves_no_hook(backbone):
    finished = []
    handle = backbone.unet.register_forward_hook(lambda m, a, out: finished.append(1))
    with torch.no_grad(), recorded(backbone.unet, [], cross=LAYERS) as recording:
        run(backbone, torch.randn(1, 4, 8, 8), backbone.condition())
    assert set(recording.cross_attention) == set(LAYERS)
    assert not finished
    with torch.no_grad():
        run(backbone, torch.randn(1, 4, 8, 8), backbone.condition())
    assert finished
    handle.remove()


def test_a_layer_that_is_not_there_is_named(backbone):
    with (
        pytest.raises(OptionError, match=r"mid_block\.attentions\.9"),
        recorded(backbone.unet, [], cross=["mid_block.attentions.9"]),
    ):
        pass
