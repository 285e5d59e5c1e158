"""DINOv2 as a backbone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import moving_square, write_davis
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model

import evaluate
from drift.backbones import as_prompt_backbone, load_backbone
from drift.backbones.cache import CachedBackbone
from drift.backbones.dinov2 import DINOv2
from drift.command_line import run
from drift.errors import InputError, OptionError
from drift.propagation import Tracker

PATCH = 14


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random DINOv2; not to be changed."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=4 * PATCH,
        patch_size=PATCH,
        initializer_range=0.2,  # of the size of trained weights, so that attention is not uniform
    )
    path = tmp_path_factory.mktemp("dinov2-small")
    Dinov2Model(config).save_pretrained(path)
    return path


def load(folder, **options):
    return load_backbone(folder, **({"precision": "float32"} | options))


def random_frames(*size):
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(3))


def features(backbone, frames):
    return backbone.features(frames, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(4 * PATCH, 4 * PATCH), (3 * PATCH, 5 * PATCH)])
def test_features_equal_the_models_own_projections(folder, size):
    frames = random_frames(*size)
    backbone = load(folder, layers=["encoder.layer.2", "encoder.layer.0"])
    model = Dinov2Model.from_pretrained(folder).eval()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        states = model((frames - mean) / std, output_hidden_states=True).hidden_states
    rows, columns = size[0] // PATCH, size[1] // PATCH
    computed = features(backbone, frames)
    assert [layer.layer for layer in computed] == ["encoder.layer.2", "encoder.layer.0"]
    for layer, number in zip(computed, (2, 0), strict=True):
        block = model.encoder.layer[number]
        tokens = block.norm1(states[number])[:, 1:]
        assert torch.allclose(layer.tokens, tokens.view(2, rows, columns, 32), atol=1e-5)
        for found, projection in (
            (layer.queries, block.attention.q_proj),
            (layer.keys, block.attention.k_proj),
        ):
            heads = (tokens @ projection.weight.T + projection.bias).view(2, rows, columns, 4, 8)
            assert torch.allclose(found, heads.permute(0, 3, 1, 2, 4), atol=1e-4)


def test_it_meets_the_interface(folder):
    backbone = load(folder)
    assert isinstance(backbone, DINOv2)
    assert backbone.stride == PATCH
    assert backbone.layers == {"encoder.layer.2": 4}
    assert backbone.device == torch.device("cpu")
    assert backbone.description["checkpoint"] == str(folder)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.train().modules())


def test_the_pass_ends_at_the_last_layer(folder):
    backbone = load(folder, layers=["encoder.layer.1"])
    assert len(backbone.model.encoder.layer) == 2, "later layers are dropped"
    calls = []
    backbone.model.encoder.layer[1].mlp.register_forward_hook(lambda *_: calls.append("mlp"))
    backbone.model.layernorm.register_forward_hook(lambda *_: calls.append("layernorm"))
    features(backbone, random_frames(28, 28))
    assert not calls


@pytest.mark.parametrize("size", [(16 * PATCH, 24 * PATCH), (230, 317)])
def test_the_tracker_follows_a_square(folder, size):
    clip = moving_square()
    frames, truth = [
        [np.kron(image, np.ones((6, 6, 1)[: image.ndim], np.uint8))[: size[0], : size[1]] for image in images]
        for images in (clip.frames, clip.truth.values())
    ]
    tracker = Tracker(load(folder), affinity="cosine", temperature=0.05, top_k=3, radius=2)
    masks = [tracker.step(frame, truth[0] if t == 0 else None).mask() for t, frame in enumerate(frames)]
    for mask, true in zip(masks, truth, strict=True):
        assert mask.shape == size
        found = np.asarray(mask) > 0
        assert (found & (true > 0)).sum() / (found | (true > 0)).sum() > 0.7


def test_features_are_the_same_from_the_cache(folder, tmp_path):
    backbone = load(folder, cache=str(tmp_path / "cache"))
    assert isinstance(backbone, CachedBackbone)
    frames = random_frames(28, 42)
    computed, cached = features(backbone, frames)[0], features(backbone, frames)[0]
    assert list((tmp_path / "cache").rglob("*.safetensors"))
    assert all(torch.equal(cached.tensors()[name], value) for name, value in computed.tensors().items())


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_close_and_features_are_float32(folder, precision):
    frames = random_frames(28, 42)
    backbone = load(folder, precision=precision)
    assert backbone.model.dtype == getattr(torch, precision)
    (found,), (expected,) = features(backbone, frames), features(load(folder), frames)
    assert found.queries.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found.keys, expected.keys, dim=-1).min() > 0.98


def test_autocast_around_it_does_not_change_features(folder):
    frames, backbone = random_frames(28, 42), load(folder)
    with torch.autocast("cpu", torch.bfloat16):
        inside = features(backbone, frames)[0]
    assert torch.equal(inside.keys, features(backbone, frames)[0].keys)


def test_weights_by_the_names_of_the_published_checkpoints_load(folder, tmp_path):
    renamed = {}
    for name, value in load_file(folder / "model.safetensors").items():
        for new, old in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
            name = name.replace(f"attention.{new}.", f"attention.attention.{old}.")
        renamed[name.replace("attention.o_proj.", "attention.output.dense.")] = value
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    frames = random_frames(28, 42)
    assert torch.equal(features(load(tmp_path), frames)[0].keys, features(load(folder), frames)[0].keys)
    del renamed["encoder.layer.1.norm1.weight"]
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="1 missing keys in the weights, first encoder.layer.1.norm1.weight"):
        load(tmp_path)


@pytest.mark.parametrize("layers", [[], ["encoder.layer.3"], ["encoder.layer.0"] * 2, "encoder.layer.0"])
def test_layers_that_it_does_not_have_are_refused(folder, layers):
    with pytest.raises(OptionError, match=r"^layers=.*encoder.layer.0, .*or null for the last"):
        load(folder, layers=layers)


def test_options_of_diffusion_models_are_refused(folder):
    with pytest.raises(
        OptionError, match=r"^timestep=20: allowed is no value: options of this .* are layers$"
    ):
        load(folder, timestep=20)


def test_it_has_no_prompt(folder):
    backbone = load(folder)
    with pytest.raises(OptionError, match="DINOv2 has none"):
        as_prompt_backbone(backbone, "text", True)
    with pytest.raises(ValueError, match="DINOv2 has no prompt"):
        backbone.features(random_frames(28, 28), torch.Generator(), prompt=torch.zeros(1, 77, 8))


@pytest.fixture
def evaluated(folder, tmp_path, monkeypatch, capsys):
    """Runs `evaluate.py backbone=dinov2`; returns the exit status, the standard error and the output folder."""
    root = write_davis(tmp_path / "data", {"square": moving_square(3, size=(56, 84))})

    def call(*words, flags=()):
        output = tmp_path / "out"
        common = [f"data.root={root}", f"backbone.checkpoint={folder}", f"output.dir={output}"]
        arguments = ["data=davis", "backbone=dinov2", *common, "logger=none", "refinement=none", *words]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *flags, *arguments])
        status = run(evaluate.evaluate, config_dir=evaluate.CONFIGS, config_name="evaluate")
        return status, capsys.readouterr().err, output

    return call


def test_a_sweep_with_learned_head_weights_cache_and_report(evaluated, tmp_path):
    status, errors, output = evaluated(
        *("adaptation/head_weighting=learned", "adaptation.head_weighting.views=1"),
        *("adaptation.head_weighting.steps=2", "propagation.affinity=attention"),
        *("backbone.layers=[encoder.layer.1,encoder.layer.2]", f"backbone.cache={tmp_path / 'cache'}"),
        "propagation.top_k=3,5",
        flags=["-m"],
    )
    assert (status, errors) == (0, "")
    for number in ("0", "1"):
        results = json.loads((output / number / "results.json").read_text())
        assert 0 <= results["J&F"] <= 1
        assert results["sequences"]["square"]["adaptation"]["head_weights_steps"] == 2
        assert "encoder.layer.2" in (output / number / "report.html").read_text()
    assert (output / "summary.csv").exists()
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 3 + 1, "frames, and an augmented view"


def test_textual_inversion_needs_a_prompt(evaluated):
    status, errors, _ = evaluated("adaptation=drift")
    assert status == 2
    assert errors.startswith("error: adaptation.textual_inversion=")
    assert "DINOv2 has none" in errors
    assert errors.count("\n") == 1


def test_its_name_appears_in_no_other_file_of_the_library():
    root = Path(evaluate.__file__).parent / "drift"
    assert [p.name for p in root.rglob("*.py") if "dinov2" in p.read_text().lower()] == ["dinov2.py"]
