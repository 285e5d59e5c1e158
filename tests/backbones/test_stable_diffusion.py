"""Features of Stable Diffusion: shapes, noise, prompts, precision."""

from __future__ import annotations

import pytest
import torch

from drift import Gaussian, LatentInversion, NoNoise, load_backbone
from drift.backbones import as_prompt_backbone
from drift.errors import OptionError

LAYERS = ["up_blocks.1.attentions.0"]


@pytest.fixture(scope="module")
def load(checkpoint):
    """Loads the small model, once for equal options: tests change no backbone."""
    backbones = {}

    def loaded(**options):
        options = {"layers": LAYERS, "timestep": 51, "precision": "float32"} | options
        key = repr(sorted(options.items()))
        if key not in backbones:
            backbones[key] = load_backbone(str(checkpoint), **options)
        return backbones[key]

    return loaded


def features(backbone, frames, seed=0, **options):
    return backbone.features(frames, torch.Generator().manual_seed(seed), **options)


def test_the_model_is_frozen_and_stays_in_evaluation_mode(load):
    backbone = load().train()
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(m.training for m in backbone.modules())


def test_only_what_features_need_stays_in_memory(load):
    names = {name.split(".")[0] + "." + name.split(".")[1] for name, _ in load().named_parameters()}
    assert not {name for name in names if name.startswith("text_encoder")}
    assert "vae.decoder" not in names
    assert "vae.encoder" in names


@pytest.mark.parametrize("size", [(64, 64), (88, 120), (8, 200)])
def test_features_follow_the_size_of_the_frames(load, size):
    backbone = load(layers=["down_blocks.0.attentions.0", *LAYERS, "up_blocks.1"])
    assert backbone.layers == {"down_blocks.0.attentions.0": 2, LAYERS[0]: 4, "up_blocks.1": 1}
    fine, coarse, block = features(backbone, torch.rand(3, 3, *size))
    rows, columns = size[0] // 8, size[1] // 8
    assert fine.queries.shape == (3, 2, rows, columns, 8)
    assert fine.tokens.shape == (3, rows, columns, 16)
    assert coarse.grid == tuple((side + 3) // 4 for side in (rows, columns))
    assert block.queries.shape[1] == 1
    assert [f.layer for f in (fine, coarse, block)] == list(backbone.layers)


def test_features_of_a_batch_are_those_of_its_frames(load):
    backbone = load(noise=NoNoise())
    frames = torch.rand(3, 3, 48, 64)
    (batch,) = features(backbone, frames)
    alone = torch.cat([features(backbone, frame[None])[0].queries for frame in frames])
    assert torch.allclose(batch.queries, alone, atol=1e-4)


def test_noise_depends_on_the_seed_only(load):
    backbone, frames = load(timestep=500), torch.rand(1, 3, 48, 64)

    def queries(seed):
        torch.rand(7)  # draws from the global generator, which must not matter
        return features(backbone, frames, seed)[0].queries

    assert torch.equal(queries(1), queries(1))
    assert not torch.equal(queries(1), queries(2))


def test_an_ensemble_is_the_mean_over_draws(load):
    frames, generator = torch.rand(2, 3, 48, 64), torch.Generator().manual_seed(5)
    (mean,) = features(load(noise=Gaussian(3), timestep=300), frames, 5)
    single = load(timestep=300)
    draws = [single.features(frames, generator)[0].keys for _ in range(3)]
    assert torch.allclose(mean.keys, torch.stack(draws).mean(0), atol=1e-5)


@pytest.mark.parametrize("noise", [NoNoise(), Gaussian(), Gaussian(2), LatentInversion(3)])
def test_frames_with_generators_of_their_own_are_those_read_alone(load, noise):
    backbone, frames = load(noise=noise, timestep=300), torch.rand(3, 3, 48, 64)
    together = backbone.features(frames, [torch.Generator().manual_seed(seed) for seed in range(3)])
    for one in together:
        assert len(one.split()) == 3
    for seed in range(3):
        alone = backbone.features(frames[seed : seed + 1], torch.Generator().manual_seed(seed))
        for one, other in zip(together, alone, strict=True):
            for name, value in one.split()[seed].tensors().items():
                assert torch.allclose(value, other.tensors()[name], atol=1e-5), name


@pytest.mark.parametrize("noise", [NoNoise(), Gaussian(2), LatentInversion(3)])
def test_several_prompts_give_the_mean_of_their_features(load, noise):
    backbone, frames = load(noise=noise, layers=["up_blocks.1.attentions.1"]), torch.rand(2, 3, 48, 64)
    prompts = torch.randn(2, *backbone.prompt.shape[1:], generator=torch.Generator().manual_seed(0))
    options = {"cross": ["up_blocks.1.attentions.1"]}
    (both,) = features(backbone, frames, prompt=prompts, **options)
    alone = [features(backbone, frames, prompt=prompt[None], **options)[0] for prompt in prompts]
    for name, value in both.tensors().items():
        mean = torch.stack([one.tensors()[name] for one in alone]).mean(0)
        assert torch.allclose(value, mean, atol=1e-4), name
    assert not torch.allclose(alone[0].queries, alone[1].queries)


def test_the_prompt_conditions_the_features(load):
    layers, frames = ["up_blocks.1.attentions.1"], torch.rand(1, 3, 48, 64)
    empty, dog = (
        features(load(layers=layers, prompt=text, noise=NoNoise()), frames)[0].queries
        for text in ("", "a photo of a dog")
    )
    assert not torch.allclose(empty, dog)


def test_prompt_queries_are_returned_for_requested_layers_only(load):
    layers = ["up_blocks.1.attentions.0", "up_blocks.1.attentions.1"]
    first, second = features(load(layers=layers), torch.rand(1, 3, 48, 64), cross=layers[1:])
    assert first.prompt_queries is None
    assert second.prompt_queries.shape == second.queries.shape


def test_prompt_queries_of_other_layers_follow_the_features(load):
    frames = torch.rand(1, 3, 48, 64)
    plain = features(load(layers=["up_blocks.1.attentions.1"]), frames)
    own, other = features(
        load(layers=["up_blocks.1.attentions.1"]), frames, cross=["up_blocks.1.attentions.0"]
    )
    assert (own.layer, other.layer) == ("up_blocks.1.attentions.1", "up_blocks.1.attentions.0")
    assert torch.equal(own.queries, plain[0].queries)
    assert own.prompt_queries is None
    assert other.prompt_queries.shape == other.queries.shape


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_changes_features_little(load, precision):
    frames = torch.rand(1, 3, 64, 88)
    (exact,), (rough,) = (features(load(precision=p), frames) for p in ("float32", precision))
    assert next(load(precision=precision).parameters()).dtype == getattr(torch, precision)
    for name, value in rough.tensors().items():
        assert value.dtype == torch.float32
        assert not torch.equal(value, exact.tensors()[name])
        cosine = torch.nn.functional.cosine_similarity(value, exact.tensors()[name], dim=-1)
        assert cosine.min() > 0.98


def test_an_outer_autocast_changes_nothing(load):
    backbone, frames = load(), torch.rand(1, 3, 48, 64)
    (expected,) = features(backbone, frames)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (inside,) = features(backbone, frames)
        latents = backbone.encode(frames)
    assert torch.equal(expected.queries, inside.queries)
    assert torch.equal(latents, backbone.encode(frames))


def test_the_training_target_is_what_the_model_is_trained_for(load):
    clean, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    for prediction in ("epsilon", "v_prediction"):
        backbone = load(prediction_type=prediction, timestep=400)
        timesteps = torch.tensor([400])
        noisy = backbone.scheduler.add_noise(clean, noise, timesteps)
        expected = backbone.scheduler.get_velocity(clean, noise, timesteps)
        target = backbone.training_target(clean, noisy)
        assert torch.allclose(target, noise if prediction == "epsilon" else expected, atol=1e-4)
    with pytest.raises(OptionError, match="noise=none"):
        load(noise=NoNoise()).training_target(clean, clean)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("layers", []),
        ("layers", ["nowhere"]),
        ("timestep", 1000),
        ("timestep", -1),
        ("prediction_type", "x0"),
    ],
)
def test_options_out_of_range_are_named(load, option, value):
    with pytest.raises(OptionError, match=option):
        load(**{option: value})


def test_a_backbone_without_a_prompt_is_named():
    with pytest.raises(OptionError, match=r"adaptation=textual inversion: .*object has none"):
        as_prompt_backbone(object(), "adaptation", "textual inversion")
