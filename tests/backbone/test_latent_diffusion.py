"""Loading checkpoints, encoding, and noise."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from examples import write_checkpoint
from safetensors.torch import load_file, save_file

from drift.backbone import LatentDiffusion, load_latent_diffusion
from drift.errors import InputError, OptionError

LAYERS = ["up_blocks.1.attentions.0"]


def load(folder, **options):
    return load_latent_diffusion(str(folder), **({"layers": LAYERS, "timestep": 51} | options))


@pytest.fixture
def copied(checkpoint, tmp_path):
    """A copy of the checkpoint that a test may break."""
    return shutil.copytree(checkpoint, tmp_path / "copy")


def test_both_prediction_types_load(checkpoint, tmp_path):
    epsilon = write_checkpoint(tmp_path / "epsilon", prediction_type="epsilon")
    assert load(checkpoint).scheduler.config["prediction_type"] == "v_prediction"
    assert load(epsilon).scheduler.config["prediction_type"] == "epsilon"
    assert load(epsilon, prediction_type="v_prediction").scheduler.config["prediction_type"] == "v_prediction"


def test_a_schedule_published_with_another_scheduler_is_kept(copied):
    file = copied / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text()) | {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
    file.write_text(json.dumps(config | {"beta_end": 0.013}))
    assert load(copied).scheduler.config["beta_end"] == 0.013


def test_a_prediction_type_that_is_not_supported_is_refused(copied):
    file = copied / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"prediction_type": "sample"}))
    with pytest.raises(InputError, match=r"scheduler: prediction_type sample is not supported"):
        load(copied)
    assert load(copied, prediction_type="epsilon").scheduler.config["prediction_type"] == "epsilon"


def test_the_model_is_frozen_and_stays_in_evaluation_mode(checkpoint):
    backbone = load(checkpoint).train()
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(m.training for m in backbone.modules())


@pytest.mark.parametrize("size", [(64, 64), (88, 120), (8, 200)])
def test_encode_and_read_follow_the_frames_size(checkpoint, size):
    backbone = load(checkpoint, layers=["down_blocks.0.attentions.0", *LAYERS])
    latents = backbone.encode(torch.rand(3, 3, *size))
    assert latents.shape == (3, 4, size[0] // 8, size[1] // 8)
    fine, coarse = backbone.read(latents, torch.Generator().manual_seed(0))
    assert fine.queries.shape == (3, 2, size[0] // 8, size[1] // 8, 8)
    assert coarse.keys.shape[0] == 3
    assert fine.inputs.shape == (3, size[0] // 8, size[1] // 8, 16)


def test_encoding_a_batch_equals_encoding_its_frames(checkpoint):
    backbone = load(checkpoint)
    frames = torch.rand(3, 3, 48, 64)
    one_by_one = torch.cat([backbone.encode(frame[None]) for frame in frames])
    assert torch.allclose(backbone.encode(frames), one_by_one, atol=1e-5)


def test_noise_is_the_seeds_and_nothing_elses(checkpoint):
    backbone = load(checkpoint, timestep=500)
    latents = backbone.encode(torch.rand(1, 3, 48, 64))

    def queries(seed):
        torch.rand(7)  # the global generator must not matter
        return backbone.read(latents, torch.Generator().manual_seed(seed))[0].queries

    assert torch.equal(queries(1), queries(1))
    assert not torch.equal(queries(1), queries(2))


def test_noise_none_reads_the_latents_as_they_are(checkpoint):
    backbone = load(checkpoint, noise="none", timestep=500)
    latents = backbone.encode(torch.rand(1, 3, 48, 64))
    first = backbone.read(latents, torch.Generator().manual_seed(1))[0].queries
    assert torch.equal(first, backbone.read(latents, torch.Generator().manual_seed(2))[0].queries)


def test_noise_follows_the_forward_process(checkpoint):
    backbone = load(checkpoint, timestep=700)
    latents = torch.zeros(1, 4, 64, 64)
    noised = backbone.noised(latents + 3.0, torch.Generator().manual_seed(0))
    kept = backbone.scheduler.alphas_cumprod[700]
    assert noised.mean().item() == pytest.approx(3.0 * kept.sqrt().item(), abs=0.03)
    assert noised.std().item() == pytest.approx((1 - kept).sqrt().item(), abs=0.03)


def test_an_ensemble_is_the_mean_over_draws(checkpoint):
    backbone = load(checkpoint, ensemble=3, timestep=300)
    latents = backbone.encode(torch.rand(1, 3, 48, 64))
    mean = backbone.read(latents, torch.Generator().manual_seed(5))[0].keys
    backbone.ensemble, generator = 1, torch.Generator().manual_seed(5)
    draws = [backbone.read(latents, generator)[0].keys for _ in range(3)]
    assert torch.allclose(mean, torch.stack(draws).mean(0), atol=1e-6)


def test_the_prompt_conditions_the_reading(checkpoint):
    # the second layer: self-attention of the first comes before any cross-attention
    layers = ["up_blocks.1.attentions.1"]
    latents = torch.randn(1, 4, 8, 8)
    readings = [
        load(checkpoint, layers=layers, prompt=text, noise="none").read(latents, torch.Generator())[0].queries
        for text in ("", "a photo of a dog")
    ]
    assert not torch.allclose(*readings)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("layers", []),
        ("layers", ["nowhere"]),
        ("layers", LAYERS * 2),
        ("timestep", 1000),
        ("timestep", -1),
        ("noise", "loud"),
        ("ensemble", 0),
        ("prediction_type", "x0"),
    ],
)
def test_options_out_of_range_are_named(checkpoint, option, value):
    with pytest.raises(OptionError, match=option):
        load(checkpoint, **{option: value})


def test_a_missing_folder_says_how_to_pass_one():
    with pytest.raises(InputError, match=r"/no/such/folder: no such folder"):
        load("/no/such/folder")


def test_a_hub_id_without_network_says_how_to_pass_a_folder(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"nobody/nothing.*backbone.checkpoint=FOLDER"):
        load("nobody/nothing")


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
def test_an_incomplete_checkpoint_names_what_it_lacks(copied, part):
    shutil.rmtree(copied / part)
    with pytest.raises(InputError, match=f"lacks.*{part}"):
        load(copied)


def test_truncated_weights_name_their_folder(copied):
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"unet: incomplete or corrupt"):
        load(copied)


def test_missing_weights_name_their_folder(copied):
    (copied / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"vae: incomplete or corrupt"):
        load(copied)


@pytest.mark.parametrize(("part", "file"), [("unet", "diffusion_pytorch_model"), ("text_encoder", "model")])
def test_a_single_missing_weight_is_an_error(copied, part, file):
    path = copied / part / f"{file}.safetensors"
    weights = load_file(path)
    lost = next(iter(weights))
    del weights[lost]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=part):
        load(copied)


def test_weights_of_another_shape_are_an_error(copied):
    path = copied / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_in.weight"] = torch.zeros(16, 5, 3, 3)
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match="unet"):
        load(copied)


def test_it_is_a_module_that_moves(checkpoint):
    backbone = load(checkpoint)
    assert isinstance(backbone, LatentDiffusion)
    moved = backbone.to(torch.float64)
    latents = moved.encode(torch.rand(1, 3, 16, 16))
    assert latents.dtype == torch.float64
    assert moved.read(latents, torch.Generator().manual_seed(0))[0].queries.dtype == torch.float32
