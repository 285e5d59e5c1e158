"""Every family of diffusion models: features are what the real classes compute attention with, wherever they lie."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from examples import moving_square
from small_models import CHECKPOINTS, small_rae

from drift import (
    Gaussian,
    LatentInversion,
    NoNoise,
    PromptOptions,
    TextualInversion,
    fit,
    invert_latents,
    load_backbone,
)
from drift.backbones.capture import Block, capture, self_attention
from drift.errors import InputError, OptionError
from drift.noising.schedule import add_noise
from drift.propagation.labels import pad_to_stride

DIFFUSION = [name for name in CHECKPOINTS if name != "rae"]
TRANSFORMERS = ["dit", "flux", "pixart", "sd35"]
LAYERS = {
    "adm": ["mid_block.attentions.0", "up_blocks.2.attentions.1"],
    "dit": ["transformer_blocks.0", "transformer_blocks.2"],
    "flux": ["transformer_blocks.0", "transformer_blocks.1", "single_transformer_blocks.1"],
    "pixart": ["transformer_blocks.0", "transformer_blocks.2"],
    "sd35": [
        "transformer_blocks.0",
        "transformer_blocks.1",
        "transformer_blocks.1.attn2",
        "transformer_blocks.10",
    ],
    "sdxl": ["down_blocks.1.attentions.0", "up_blocks.0.attentions.1.transformer_blocks.1"],
    "rae": ["encoder.0", "decoder.1"],
}
SIZE = {"rae": (56, 84)}


@pytest.fixture
def load(small_checkpoint):
    def loaded(name, **options):
        options = {"precision": "float32", "layers": LAYERS[name]} | options
        return load_backbone(str(small_checkpoint(name)), **options)

    return loaded


def frames(name="sdxl", batch=2, seed=0):
    return torch.rand(batch, 3, *SIZE.get(name, (48, 80)), generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def inputs(backbone, seed=1):
    """Latents of two frames, 64 x 96 pixels, and prompts for them."""
    random = generator(seed)
    latents = backbone.encode(torch.rand(2, 3, 64, 96, generator=random))
    prompt = backbone._prompt
    return torch.randn(latents.shape, generator=random), torch.randn(2, *prompt.shape[1:], generator=random)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_features_lie_on_the_grid_of_the_frames(load, name):
    backbone = load(name)
    assert backbone.train() is backbone
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.modules())
    features = backbone.features(frames(name), generator())
    assert [layer.layer for layer in features] == list(backbone.layers) == LAYERS[name]
    height, width = SIZE.get(name, (48, 80))
    for layer, heads in zip(features, backbone.layers.values(), strict=True):
        rows, columns = layer.grid
        halvings = math.ceil(math.log2(height / rows / backbone.stride))
        stride = backbone.stride * 2**halvings
        assert halvings >= 0
        assert (rows, columns) == (-(-height // stride), -(-width // stride))
        assert layer.queries.shape == layer.keys.shape == (2, heads, rows, columns, layer.queries.shape[-1])
        assert layer.tokens.shape[:3] == (2, rows, columns)
        assert all(
            tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in layer.tensors().values()
        )


def values_of(attention, hidden, context):
    """Values of an attention in the order of its keys: of the prompt behind those of the image, or before (Flux)."""
    values = [attention.to_v(hidden)]
    if context is not None:
        values.append(attention.add_v_proj(context))
    if type(attention).__name__ == "FluxAttention":
        values.reverse()
    return torch.cat(values, dim=1)


def output_of(attention, hidden, context, queries, keys):
    """What an attention returns for the image, from captured queries and keys: its own softmax and projection."""
    tokens = attention.group_norm(hidden.flatten(2)).mT if hidden.ndim == 4 else hidden
    values = values_of(attention, tokens, context).unflatten(2, (attention.heads, -1)).transpose(1, 2)
    weights = (queries @ keys.mT / queries.shape[-1] ** 0.5).softmax(-1)
    attended = (weights @ values).transpose(1, 2).flatten(2)
    if getattr(attention, "to_out", None) is None:  # a single block of Flux, which projects outside
        return attended
    count = attended.shape[1] if context is None else hidden.shape[1]
    of_image = attended[:, -count:] if type(attention).__name__ == "FluxAttention" else attended[:, :count]
    projected = attention.to_out[0](of_image)
    return projected.mT.unflatten(2, hidden.shape[-2:]) + hidden if hidden.ndim == 4 else projected


@pytest.mark.parametrize("name", DIFFUSION)
@torch.no_grad()
def test_captured_queries_and_keys_give_the_output_of_the_layer(load, name):
    backbone = load(name)
    latents, prompt = inputs(backbone)
    seen = {}

    def keep(layer):
        def hook(module, arguments, options, output):
            hidden = arguments[0] if arguments else options["hidden_states"]
            output = output[0] if isinstance(output, tuple) else output
            seen[layer] = (module, hidden, options.get("encoder_hidden_states"), output)

        return hook

    for layer in LAYERS[name]:
        attention = self_attention(backbone._modules_by_layer[layer])
        attention.register_forward_hook(keep(layer), with_kwargs=True)
    with capture(backbone._modules_by_layer, LAYERS[name], early_exit=False) as captured:
        backbone._run(latents, backbone.timestep, prompt)
    on_grid = backbone.attend(latents, prompt, layers=LAYERS[name]).features
    for layer, (attention, hidden, context, output) in seen.items():
        queries, keys, _ = captured.self_attention[layer]
        assert torch.allclose(output_of(attention, hidden, context, queries, keys), output, atol=1e-5), layer
        features = on_grid[layer]
        count = features.grid[0] * features.grid[1]
        start = queries.shape[2] - count if name == "flux" else 0
        assert torch.equal(features.queries.flatten(2, 3), queries[:, :, start : start + count])
        assert torch.equal(features.keys.flatten(2, 3), keys[:, :, start : start + count])


@pytest.mark.parametrize("encoder", ["dinov2", "mae"])
@torch.no_grad()
def test_captured_queries_and_keys_give_the_output_of_the_layers_of_an_autoencoder(tmp_path, encoder):
    small_rae(tmp_path, encoder)
    backbone, seen = load_backbone(str(tmp_path), precision="float32", layers=None), {}
    for weight in backbone.parameters():
        if weight.dim() > 1:  # of the size of trained weights, so that attention is not uniform
            torch.nn.init.normal_(weight, std=0.2, generator=generator())
    for layer, module in backbone._modules_by_layer.items():
        self_attention(module).register_forward_hook(
            lambda attention, _, output, layer=layer: seen.update({layer: (attention, output)})
        )
    images = torch.rand(2, 3, 3 * backbone.stride, 5 * backbone.stride, generator=generator(2))
    with capture(backbone._modules_by_layer, backbone.layers, early_exit=False) as captured:
        backbone._run(images)
    assert list(seen) == ["encoder.0", "encoder.1", "decoder.0", "decoder.1"]
    for features in backbone.features(images, generator()):
        attention, output = seen[features.layer]
        queries, keys, hidden = captured.self_attention[features.layer]
        if features.layer.startswith("encoder"):  # of transformers, with other names than in diffusers
            attention.heads, attention.to_v = queries.shape[1], attention.v_proj
            attention.to_out = [getattr(attention, "o_proj", None) or attention.out_proj]
            output = output[0]
        given = output_of(attention, hidden, None, queries, keys)
        assert torch.allclose(given, output, rtol=1e-5, atol=1e-5), features.layer
        uniform = output_of(attention, hidden, None, 0 * queries, keys)
        assert (uniform - output).abs().max() > 0.1, "attention is not uniform"
        assert torch.equal(features.queries.flatten(2, 3), queries[:, :, -15:])
        assert torch.equal(features.keys.flatten(2, 3), keys[:, :, -15:])


@pytest.mark.parametrize("name", ["sdxl", "pixart"])
@torch.no_grad()
def test_captured_cross_attention_gives_the_output_of_the_layer(load, name):
    backbone = load(name, prompt="a photo of a dog")
    latents, _ = inputs(backbone)
    layer, prompt = LAYERS[name][-1], backbone.prompt.expand(2, -1, -1)
    block, seen = backbone.denoiser.get_submodule(layer), {}
    block.attn2.register_forward_hook(lambda m, a, out: seen.update(output=out))
    backbone.denoise(latents, backbone.timestep, prompt)
    queries = backbone.attend(latents, prompt, cross=[layer]).prompt_queries[layer].flatten(2, 3)
    keys = backbone.prompt_keys(layer, backbone.prompt[0])
    logits = queries @ keys.mT / queries.shape[-1] ** 0.5
    if name == "pixart":
        logits = logits + (~backbone._mask[:, None, None]) * -10000.0
    values = block.attn2.to_v(backbone._context(prompt)).unflatten(2, (block.attn2.heads, -1)).transpose(1, 2)
    output = block.attn2.to_out[0]((logits.softmax(-1) @ values).transpose(1, 2).flatten(2))
    assert torch.allclose(output, seen["output"], atol=1e-5)


@pytest.mark.parametrize("name", DIFFUSION)
def test_early_exit_gives_the_features_of_the_whole_pass(load, name):
    backbone = load(name)
    latents, prompt = inputs(backbone)
    with torch.no_grad():
        early = backbone.attend(latents, prompt, layers=LAYERS[name])
        whole = backbone.attend(latents, prompt, layers=LAYERS[name], output=True)
    assert early.output is None
    assert whole.output.shape == latents.shape
    for layer in LAYERS[name]:
        for part, tensor in early.features[layer].tensors().items():
            assert torch.equal(tensor, whole.features[layer].tensors()[part]), (layer, part)


@pytest.mark.parametrize("name", TRANSFORMERS)
@torch.no_grad()
def test_a_patch_changes_the_token_at_its_place(load, name):
    backbone = load(name)
    latents, prompt = inputs(backbone)
    changed = latents.clone()
    changed[..., 2:4, 6:8] += 1  # the patch in row 1 and column 3
    before, after = (
        backbone.attend(z, prompt, layers=["transformer_blocks.0"]).features["transformer_blocks.0"]
        for z in (latents, changed)
    )
    for part in ("queries", "keys", "tokens"):
        one, other = before.tensors()[part], after.tensors()[part]
        differs = (one - other).abs().amax(-1)
        differs = (differs if part == "tokens" else differs.amax(1)) > 1e-6
        assert differs.nonzero().tolist() == [[0, 1, 3], [1, 1, 3]]


@pytest.mark.parametrize("name", TRANSFORMERS)
@torch.no_grad()
def test_the_output_lies_where_the_latents_do(load, name):
    """As diffusers puts the patches of a square image together."""
    backbone = load(name)
    random = generator(3)
    latents = torch.randn(1, 4, 8, 8, generator=random)
    prompt = torch.randn(1, *backbone._prompt.shape[1:], generator=random)
    output = backbone.denoise(latents, 30, prompt)
    model, time = backbone.denoiser, torch.tensor([30])
    if name == "dit":
        expected = model(latents, timestep=time, class_labels=torch.tensor([10])).sample[:, :4]
    elif name == "sd35":
        expected = model(
            latents, timestep=time, encoder_hidden_states=prompt, pooled_projections=backbone._pooled
        ).sample
    elif name == "pixart":
        sizes = {"resolution": torch.tensor([[64.0, 64.0]]), "aspect_ratio": torch.tensor([[1.0]])}
        expected = model(
            latents, timestep=time, encoder_hidden_states=prompt, added_cond_kwargs=sizes
        ).sample[:, :4]
    else:
        packed = FluxPipeline._pack_latents(latents, 1, 4, 8, 8)
        expected = FluxPipeline._unpack_latents(
            model(
                packed,
                encoder_hidden_states=prompt,
                pooled_projections=backbone._pooled,
                timestep=time / 1000,
                guidance=torch.tensor([1.0]),
                img_ids=FluxPipeline._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32),
                txt_ids=torch.zeros(prompt.shape[1], 3),
            ).sample,
            64,
            64,
            8,
        )
    assert torch.allclose(output, expected, atol=1e-5)


# Rectified flow


@pytest.mark.parametrize("name", ["flux", "sd35"])
def test_noise_of_a_rectified_flow_is_mixed_in(load, name):
    backbone = load(name, timestep=250, noise=Gaussian(2))
    assert isinstance(backbone.scheduler, FlowMatchEulerDiscreteScheduler)
    latents, noise = torch.randn(1, 4, 6, 10), torch.randn(1, 4, 6, 10)
    assert torch.allclose(add_noise(backbone.scheduler, latents, noise, 250), 0.75 * latents + 0.25 * noise)
    noisy = backbone.noise(torch.full((1, 4, 64, 64), 3.0), backbone, backbone._prompt, generator())
    assert noisy.shape == (2, 1, 1, 4, 64, 64)
    assert noisy.mean().item() == pytest.approx(0.75 * 3, abs=0.02)
    assert noisy.std().item() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("name", ["flux", "sd35"])
def test_inversion_of_a_rectified_flow_and_sampling_return_the_latents(load, name):
    """Sampled by diffusers' `FlowMatchEulerDiscreteScheduler`."""
    backbone = load(name)
    latents = backbone.encode(frames(batch=1))
    prompt = backbone._prompt[:, :8]  # the hundreds of tokens of the whole prompt take most of the time
    errors = []
    for steps in (3, 75):
        noisy = invert_latents(
            latents,
            lambda z, t: backbone.denoise(z, t, prompt),
            backbone.scheduler,
            timestep=500,
            steps=steps,
        )
        assert (noisy - latents).abs().mean() > 0.1 * latents.std()
        sampler = FlowMatchEulerDiscreteScheduler(shift=1.0)
        sampler.set_timesteps(sigmas=[0.5 * (steps - step) / steps for step in range(steps)])
        for time in sampler.timesteps:
            output = backbone.denoise(noisy, int(time.round()), prompt)
            noisy = sampler.step(output, time, noisy).prev_sample
        errors.append(float((noisy - latents).abs().mean() / latents.std()))
    assert errors[1] < errors[0] / 10, (
        "the error of first-order steps falls as their number grows, here by 25"
    )
    assert errors[1] < 0.03


@pytest.mark.parametrize("name", ["flux", "sd35"])
def test_timesteps_of_a_rectified_flow_reach_pure_noise(load, name):
    assert load(name, timestep=1000).timestep == 1000
    with pytest.raises(OptionError, match=r"timestep=1001: allowed is a whole number, 0 to 1000"):
        load(name, timestep=1001)


@pytest.mark.parametrize("name", DIFFUSION)
@pytest.mark.parametrize(
    "noise", [NoNoise(), Gaussian(2), LatentInversion(2)], ids=lambda n: type(n).__name__
)
def test_every_noise_is_possible(load, name, noise):
    backbone = load(name, noise=noise)
    once, again = (backbone.features(frames(), generator(5))[-1].queries for _ in range(2))
    assert torch.equal(once, again)
    assert once.isfinite().all()
    assert backbone.description["noise"] == noise.description["noise"]


# Blocks of ADM


def test_the_blocks_of_adm_are_numbered_as_in_guided_diffusion(load):
    """`index2factor` in `eval_davis.py` of DIFT: the stride of each of the 18 blocks on the way up."""
    strides = [32, 32, 16, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2, 1, 1, 1, 1]
    names = [f"output_blocks.{number}" for number in range(18)]
    backbone = load("adm", layers=names)
    features = backbone.features(frames(batch=1), generator())
    assert [backbone._stride(name) for name in names] == strides
    for one, stride in zip(features, strides, strict=True):
        assert one.grid == (-(-48 // stride), -(-80 // stride))
        assert one.queries.shape[1] == 1
        assert torch.equal(one.queries[:, 0], one.tokens)
    assert load("adm", layers=["output_blocks.7"]).stride == 8
    assert isinstance(backbone._modules_by_layer["output_blocks.7"], Block)


@torch.no_grad()
def test_the_output_of_a_block_of_adm_is_that_of_its_attention(load):
    backbone, seen = load("adm", layers=["output_blocks.7"], noise=NoNoise()), {}
    backbone.denoiser.up_blocks[2].attentions[1].register_forward_hook(lambda m, a, out: seen.update(out=out))
    (features,) = backbone.features(frames(), generator())
    rows, columns = features.grid
    assert torch.equal(features.tokens, seen["out"][..., :rows, :columns].permute(0, 2, 3, 1))


def test_pixels_of_adm_are_in_the_scale_of_its_training(load):
    row = torch.tensor([0.0, 0.5, 1.0])
    assert torch.allclose(load("adm").encode(row.expand(1, 3, 3, 3))[0, 0, 0], torch.tensor([-1.0, 0.0, 1.0]))


def test_frames_smaller_than_a_patch_have_one_token(load):
    for name in DIFFUSION:
        backbone = load(name, layers=LAYERS[name][-1:])
        padded = pad_to_stride(torch.rand(1, 3, 5, 3), backbone.stride)  # as the tracker does
        (features,) = backbone.features(padded, generator())
        assert features.queries.isfinite().all()
        assert min(features.grid) >= 1


def test_frames_without_positions_are_refused(load):
    with pytest.raises(
        InputError, match=r"frames: over 1024 pixels along one axis, more than the model has positions for"
    ):
        load("sd35").features(torch.rand(1, 3, 16, 1040), generator())


# With the rest of drift


def test_the_package_imports_no_model_library():
    """Of diffusers and transformers only what the family of a checkpoint needs is imported, when it is loaded."""
    program = (
        "import sys, drift.backbones, drift.noising; print({'diffusers', 'transformers'} & set(sys.modules))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == "set()"


@pytest.mark.parametrize("name", ["sdxl", "pixart"])
def test_a_prompt_is_learned_where_there_is_cross_attention(load, name):
    clip = moving_square()
    backbone = load(name, layers=LAYERS[name][-1:])
    options = PromptOptions(conditioned=True, diffusion_weight=0.1, self_weight=0.1)
    module = TextualInversion(backbone, clip.frames[0], clip.given[0], options)
    before = module.embeddings.detach().clone()
    fit(module, steps=2)
    assert torch.tensor(module.losses).isfinite().all()
    assert not torch.equal(module.embeddings, before)


@pytest.mark.parametrize("name", ["flux", "sd35", "dit", "adm"])
def test_a_prompt_cannot_be_learned_where_there_is_no_cross_attention(load, name):
    clip = moving_square()
    with pytest.raises(
        OptionError, match=r"adaptation=textual inversion: .* no cross-attention to a prompt: \w+ has none"
    ):
        TextualInversion(load(name), clip.frames[0], clip.given[0])
