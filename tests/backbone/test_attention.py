"""Queries and keys that are read must be those that the model computes with."""

from __future__ import annotations

import pytest
import torch

from drift.backbone import load_latent_diffusion
from drift.backbone.attention import recorded, self_attention_layers
from drift.errors import OptionError

LAYERS = ["down_blocks.1.attentions.0", "up_blocks.1.attentions.2", "up_blocks.2.attentions.1"]


@pytest.fixture(scope="module")
def backbone(checkpoint):
    return load_latent_diffusion(str(checkpoint), layers=LAYERS, timestep=51)


@pytest.fixture(scope="module")
def latents(backbone):
    generator = torch.Generator().manual_seed(3)
    return backbone.encode(torch.rand(2, 3, 88, 120, generator=generator))


def run_whole(backbone, latents, name):
    """The whole forward, with plain hooks: a layer's projections, input and output."""
    block = self_attention_layers(backbone.unet)[name][1]
    seen = {}
    handles = [
        block.attn1.to_q.register_forward_hook(lambda m, a, out: seen.update(q=out)),
        block.attn1.to_k.register_forward_hook(lambda m, a, out: seen.update(k=out)),
        block.attn1.register_forward_hook(lambda m, a, out: seen.update(output=out)),
        block.norm1.register_forward_hook(lambda m, a, out: seen.update(inputs=out)),
    ]
    with torch.no_grad():
        condition = backbone.condition().expand(len(latents), -1, -1)
        backbone.unet(latents, backbone.timestep, encoder_hidden_states=condition)
    for handle in handles:
        handle.remove()
    return block, seen


@pytest.mark.parametrize("name", LAYERS)
def test_queries_and_keys_give_the_layers_own_output(backbone, latents, name):
    backbone.noise = "none"
    reading = next(r for r in backbone.read(latents, torch.Generator()) if r.name == name)
    block, seen = run_whole(backbone, latents, name)
    heads, dim = reading.queries.shape[1], reading.queries.shape[-1]
    queries, keys = (part.flatten(2, 3) for part in (reading.queries, reading.keys))
    with torch.no_grad():
        values = block.attn1.to_v(reading.inputs.flatten(1, 2)).unflatten(2, (heads, dim)).transpose(1, 2)
        attention = (queries @ keys.transpose(2, 3) / dim**0.5).softmax(-1)
        output = block.attn1.to_out[0]((attention @ values).transpose(1, 2).flatten(2))
    assert torch.allclose(output, seen["output"], atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_an_early_stop_reads_the_same_as_the_whole_forward(backbone, latents, name):
    backbone.noise = "none"
    reading = next(r for r in backbone.read(latents, torch.Generator()) if r.name == name)
    _, seen = run_whole(backbone, latents, name)
    for part, whole in (("queries", "q"), ("keys", "k")):
        heads = getattr(reading, part).flatten(2, 3).transpose(1, 2).flatten(2)
        assert torch.equal(heads, seen[whole])
    assert torch.equal(reading.inputs.flatten(1, 2), seen["inputs"])


def test_nothing_past_the_last_chosen_layer_runs(backbone, latents):
    runs = []
    layers = self_attention_layers(backbone.unet)
    names = list(layers)
    handles = [
        module.register_forward_pre_hook(lambda m, a, name=name: runs.append(name))
        for name, module in backbone.unet.named_modules()
        if name.startswith("up_blocks.") or name == "conv_out"
    ]
    attended = []
    for name, (_, block) in layers.items():
        handles.append(
            block.attn1.to_out[0].register_forward_pre_hook(lambda m, a, n=name: attended.append(n))
        )
    try:
        backbone.noise = "none"
        backbone.read(latents, torch.Generator())
    finally:
        for handle in handles:
            handle.remove()
    last = names.index(LAYERS[-1])
    assert attended == names[:last], "the last chosen layer must not attend, nor any after it"
    assert not [name for name in runs if name.startswith("up_blocks.3") or name == "conv_out"]


def test_hooks_leave_no_trace(backbone, latents):
    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.unet.modules())

    before = hooks()
    backbone.read(latents, torch.Generator().manual_seed(0))
    assert hooks() == before
    with pytest.raises(RuntimeError, match="broken"), recorded(backbone.unet, LAYERS):
        raise RuntimeError("broken")
    assert hooks() == before


def test_layers_are_named_in_the_order_of_the_forward(backbone):
    names = list(self_attention_layers(backbone.unet))
    assert names[0] == "down_blocks.0.attentions.0"
    assert names.index("mid_block.attentions.0") == 6
    assert names[-1] == "up_blocks.3.attentions.2"


def test_an_unknown_layer_is_refused_with_those_there_are(backbone):
    with pytest.raises(OptionError, match="down_blocks.0.attentions.0"), recorded(backbone.unet, ["nowhere"]):
        pass
