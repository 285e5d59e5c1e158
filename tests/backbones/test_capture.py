"""Captured queries and keys must be those that the model computes attention with."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch.nn import functional as F

from drift import NoNoise, load_backbone
from drift.backbones.capture import attention_layers, capture, chosen_layers, watch_attention
from drift.errors import OptionError

LAYERS = ["down_blocks.1.attentions.0", "up_blocks.1.attentions.2", "up_blocks.2.attentions.1"]


@pytest.fixture(scope="module")
def backbone(checkpoint):
    return load_backbone(str(checkpoint), layers=LAYERS, timestep=51, noise=NoNoise(), precision="float32")


@pytest.fixture(scope="module")
def latents(backbone):
    return torch.randn(2, 4, 11, 15, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def prompt(backbone):
    return torch.randn(2, 77, backbone.prompt.shape[-1], generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def observe(backbone, latents, prompt, name):
    """Inputs and outputs of a layer's attentions in the whole forward pass, by plain hooks."""
    block = attention_layers(backbone.unet)[name]
    seen = {}
    handles = [
        block.norm1.register_forward_hook(lambda m, a, out: seen.update(inputs=out)),
        block.attn1.register_forward_hook(lambda m, a, out: seen.update(attn1=out)),
        block.attn2.register_forward_hook(lambda m, a, out: seen.update(attn2=out)),
    ]
    backbone.unet(latents, backbone.timestep, encoder_hidden_states=prompt)
    for handle in handles:
        handle.remove()
    return block, seen


def attend(attention, queries, keys, context):
    """The output of an attention module, from captured queries and keys."""
    values = attention.to_v(context).unflatten(2, (attention.heads, -1)).transpose(1, 2)
    weights = (queries @ keys.mT / queries.shape[-1] ** 0.5).softmax(-1)
    return attention.to_out[0]((weights @ values).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_captured_self_attention_gives_the_output_of_the_layer(backbone, latents, prompt, name):
    features = backbone.attend(latents, prompt, layers=LAYERS).features[name]
    block, seen = observe(backbone, latents, prompt, name)
    assert torch.equal(features.tokens.flatten(1, 2), seen["inputs"])
    queries, keys = (part.flatten(2, 3) for part in (features.queries, features.keys))
    output = attend(block.attn1, queries, keys, features.tokens.flatten(1, 2))
    assert torch.allclose(output, seen["attn1"], atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_captured_cross_attention_gives_the_output_of_the_layer(backbone, latents, prompt, name):
    queries = backbone.attend(latents, prompt, cross=[name]).prompt_queries[name].flatten(2, 3)
    keys = torch.stack([backbone.prompt_keys(name, embeddings) for embeddings in prompt])
    block, seen = observe(backbone, latents, prompt, name)
    assert torch.allclose(attend(block.attn2, queries, keys, prompt), seen["attn2"], atol=1e-5)


def test_the_output_of_a_block_serves_as_features(backbone, latents, prompt):
    seen = {}
    handle = backbone.unet.up_blocks[2].register_forward_hook(lambda m, a, out: seen.update(output=out))
    with torch.no_grad():
        backbone.unet(latents, backbone.timestep, encoder_hidden_states=prompt)
    handle.remove()
    features = backbone.attend(latents, prompt, layers=["up_blocks.2"]).features["up_blocks.2"]
    assert torch.equal(features.tokens.permute(0, 3, 1, 2), seen["output"])
    assert features.queries.shape == (2, 1, 11, 15, 32)


def test_queries_and_keys_are_captured_after_norms_and_rotation(backbone, latents, prompt):
    """A processor that changes queries and keys as query norms and rotary embeddings do."""

    class Rotating(AttnProcessor2_0):
        def __call__(self, attn, hidden_states, *arguments, **options):
            queries, keys = (
                F.normalize(layer(hidden_states).unflatten(2, (attn.heads, -1)).transpose(1, 2), dim=-1).flip(
                    -1
                )
                for layer in (attn.to_q, attn.to_k)
            )
            self.compared = queries, keys
            F.scaled_dot_product_attention(queries, keys, keys)
            return hidden_states

    attention = attention_layers(backbone.unet)[LAYERS[0]].attn1
    own, rotating = attention.processor, Rotating()
    attention.processor = rotating
    try:
        features = backbone.attend(latents, prompt, layers=LAYERS[:1]).features[LAYERS[0]]
    finally:
        attention.processor = own
    for captured, compared in zip((features.queries, features.keys), rotating.compared, strict=True):
        assert torch.equal(captured.flatten(2, 3), compared)


def test_gradients_reach_the_prompt(backbone, latents, prompt):
    learned = prompt.clone().requires_grad_()
    queries = backbone.attend(latents, learned, cross=LAYERS[1:]).prompt_queries[LAYERS[-1]]
    (gradient,) = torch.autograd.grad(queries.sum(), learned)
    assert gradient.abs().sum() > 0


def test_nothing_after_the_last_captured_layer_runs(backbone, latents):
    layers = attention_layers(backbone.unet)
    attended, outputs = [], []
    handles = [
        block.attn1.to_out[0].register_forward_pre_hook(lambda m, a, name=name: attended.append(name))
        for name, block in layers.items()
    ]
    handles.append(backbone.unet.conv_out.register_forward_pre_hook(lambda m, a: outputs.append(1)))
    backbone.attend(latents, backbone.prompt, layers=LAYERS)
    assert attended == list(layers)[: list(layers).index(LAYERS[-1])]
    assert not outputs
    assert backbone.attend(latents, backbone.prompt, layers=LAYERS, output=True).output.shape == latents.shape
    for handle in handles:
        handle.remove()


def test_the_model_is_left_as_it_was(backbone, latents):
    def state():
        processors = list(backbone.unet.attn_processors.values())
        return processors, sum(len(m._forward_hooks) for m in backbone.unet.modules())

    before = state()
    backbone.attend(latents, backbone.prompt, layers=[*LAYERS, "up_blocks.2"], cross=LAYERS)
    assert state() == before
    modules = chosen_layers(backbone.unet, LAYERS)
    with pytest.raises(RuntimeError, match="broken"), capture(modules, LAYERS):
        raise RuntimeError("broken")
    assert state() == before


def test_watch_attention_takes_arguments_by_name():
    seen = []
    tokens = torch.rand(1, 1, 2, 4)
    with watch_attention(lambda query, key: seen.append((query, key))):
        F.scaled_dot_product_attention(query=tokens, key=tokens * 2, value=tokens)
        F.scaled_dot_product_attention(tokens, tokens * 2, value=tokens)
    assert len(seen) == 2
    assert all(torch.equal(query, tokens) and torch.equal(key, tokens * 2) for query, key in seen)


def test_layers_are_named_in_the_order_of_the_forward_pass(backbone):
    names = list(attention_layers(backbone.unet))
    assert names[0] == "down_blocks.0.attentions.0"
    assert names.index("mid_block.attentions.0") == 6
    assert names[-1] == "up_blocks.3.attentions.2"


@pytest.mark.parametrize("names", [[], ["nowhere"], LAYERS[:1] * 2, "up_blocks.2"])
def test_layers_that_do_not_exist_are_refused_with_those_that_do(backbone, names):
    with pytest.raises(OptionError, match=r"layers=.*down_blocks.0.attentions.0.*up_blocks.3"):
        chosen_layers(backbone.unet, names)
