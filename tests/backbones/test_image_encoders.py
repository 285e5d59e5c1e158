"""Image encoders as backbones: every family, as a small random model of its class."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import ENCODERS, moving_square, write_davis, write_encoder
from safetensors.torch import load_file, save_file
from transformers import Siglip2Model, SiglipModel

import evaluate
from drift.backbones import as_prompt_backbone, load_backbone
from drift.backbones.cache import CachedBackbone
from drift.backbones.capture import capture, watch_attention
from drift.backbones.image_encoders import ImageEncoder
from drift.command_line import run
from drift.errors import InputError, OptionError
from drift.propagation import Tracker

WIDTH, HEADS, LAYERS = 32, 4, 3
FAMILIES = list(ENCODERS)
LAYER_LISTS = {
    "dinov2": "encoder.layer",
    "dinov2_with_registers": "encoder.layer",
    "dinov3_vit": "model.layer",
    "siglip": "encoder.layers",
    "siglip2": "encoder.layers",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint of every family; read-only."""
    return {name: write_encoder(tmp_path_factory.mktemp(name), name) for name in FAMILIES}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def folder(folders, family):
    return folders[family]


def load(folder, **options):
    return load_backbone(folder, **({"precision": "float32"} | options))


def random_frames(*size, seed=3):
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(seed))


def features(backbone, frames):
    return backbone.features(frames, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (3, 5)])
def test_attention_of_queries_and_keys_gives_the_layers_own_output(folder, family, rows, columns):
    backbone = load(folder, layers=[f"{LAYER_LISTS[family]}.{n}" for n in (2, 0)])
    frames = random_frames(rows * backbone.stride, columns * backbone.stride)
    pixels = (frames - backbone._mean) / backbone._std
    modules = {name: backbone.model.get_submodule(f"{name}.{backbone.attention}") for name in backbone.layers}
    with torch.no_grad(), capture(modules, backbone.layers) as attended:
        backbone._encode(pixels)
    captured, computed = attended.self_attention, features(backbone, frames)
    assert [layer.layer for layer in computed] == list(backbone.layers) == list(captured)[::-1]
    model = backbone.model
    model.set_attn_implementation("eager")
    outputs = {}
    for name in captured:
        attention = model.get_submodule(f"{name}.{backbone.attention}")
        attention.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output[0]}))
    with torch.no_grad():
        backbone._encode(pixels)
    for layer in computed:
        queries, keys, inputs = captured[layer.layer]
        attention = model.get_submodule(f"{layer.layer}.{backbone.attention}")
        values = attention.v_proj(inputs).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        mixed = (queries @ keys.mT / (WIDTH / HEADS) ** 0.5).softmax(-1) @ values
        project = attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj
        assert torch.allclose(
            project(mixed.transpose(1, 2).flatten(2)), outputs[layer.layer], atol=1e-5, rtol=1e-5
        )
        prefix = queries.shape[2] - rows * columns
        assert prefix == {"dinov2": 1, "dinov2_with_registers": 5, "dinov3_vit": 5}.get(family, 0)
        for found, tokens in ((layer.queries, queries), (layer.keys, keys)):
            assert torch.equal(found, tokens[:, :, prefix:].reshape(2, HEADS, rows, columns, -1))
        assert torch.equal(layer.tokens, inputs[:, prefix:].reshape(2, rows, columns, WIDTH))


def test_early_exit_gives_the_features_of_the_whole_forward(folder, family):
    backbone = load(folder, layers=[f"{LAYER_LISTS[family]}.1"])
    assert len(backbone.model.get_submodule(LAYER_LISTS[family])) == 2, "later layers are dropped"
    frames = random_frames(2 * backbone.stride, 3 * backbone.stride)
    (early,) = features(backbone, frames)
    seen = []
    with torch.no_grad(), watch_attention(lambda queries, keys: seen.append((queries, keys))):
        backbone._encode((frames - backbone._mean) / backbone._std)
    assert torch.equal(early.queries.flatten(2, 3), seen[1][0][:, :, -6:])
    assert torch.equal(early.keys.flatten(2, 3), seen[1][1][:, :, -6:])


def test_tokens_are_those_of_their_patches(folder):
    backbone = load(folder)
    frames = random_frames(3 * backbone.stride, 4 * backbone.stride)
    other = frames.clone()
    other[:, :, backbone.stride : 2 * backbone.stride, -backbone.stride :] = 1
    first = backbone.model.get_submodule(backbone.layer_list)[0]
    inputs = []
    hook = first.register_forward_pre_hook(lambda _, args, kwargs: inputs.append(args[0]), with_kwargs=True)
    for images in (frames, other):
        features(backbone, images)
    hook.remove()
    changed = (inputs[0] != inputs[1]).any(-1)[:, -12:].view(2, 3, 4)
    assert changed.nonzero().tolist() == [[0, 1, 3], [1, 1, 3]]


def test_rotary_embedding_and_position_reach_the_keys(folder):
    backbone = load(folder)
    (layer,) = features(backbone, torch.full((1, 3, 3 * backbone.stride, 3 * backbone.stride), 0.3))
    assert not torch.allclose(layer.keys[:, :, 0, 0], layer.keys[:, :, 2, 1], atol=1e-3)


def test_it_meets_the_interface(folder, family):
    backbone = load(folder)
    assert isinstance(backbone, ImageEncoder)
    assert backbone.stride == ENCODERS[family][1]
    assert backbone.layers == {f"{LAYER_LISTS[family]}.2": HEADS}
    assert backbone.device == torch.device("cpu")
    assert backbone.description["checkpoint"] == str(folder)
    json.dumps(backbone.description)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not any(module.training for module in backbone.train().modules())


@pytest.mark.parametrize("size", [(230, 317)])
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
        assert (found & (true > 0)).sum() / (found | (true > 0)).sum() > 0.6


def test_a_frame_smaller_than_a_patch_is_padded(folder):
    frame, mask = np.full((5, 9, 3), 200, np.uint8), np.ones((5, 9), np.uint8)
    tracker = Tracker(load(folder))
    tracker.step(frame, mask)
    assert tracker.step(frame).mask().shape == (5, 9)


def test_features_are_the_same_from_the_cache(folder, tmp_path):
    backbone = load(folder, cache=str(tmp_path / "cache"))
    assert isinstance(backbone, CachedBackbone)
    frames = random_frames(2 * backbone.stride, 3 * backbone.stride)
    computed, cached = features(backbone, frames)[0], features(backbone, frames)[0]
    assert list((tmp_path / "cache").rglob("*.safetensors"))
    assert all(torch.equal(cached.tensors()[name], value) for name, value in computed.tensors().items())


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_close_and_features_are_float32(folder, precision):
    backbone = load(folder, precision=precision)
    assert backbone.model.dtype == getattr(torch, precision)
    frames = random_frames(2 * backbone.stride, 3 * backbone.stride)
    (found,), (expected,) = features(backbone, frames), features(load(folder), frames)
    assert found.queries.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found.keys, expected.keys, dim=-1).min() > 0.98


def test_autocast_around_it_does_not_change_features(folder):
    backbone = load(folder)
    frames = random_frames(2 * backbone.stride, 3 * backbone.stride)
    with torch.autocast("cpu", torch.bfloat16):
        inside = features(backbone, frames)[0]
    assert torch.equal(inside.keys, features(backbone, frames)[0].keys)


def published(family, weights):
    """Weights by the names of the published checkpoints, which transformers renames."""
    renamed = {}
    for name, value in weights.items():
        if family.startswith("dinov2"):
            for new, old in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
                name = name.replace(f"attention.{new}.", f"attention.attention.{old}.")
            name = name.replace("attention.o_proj.", "attention.output.dense.")
        renamed[name.removeprefix("model.")] = value
    return renamed


@pytest.mark.parametrize("family", ["dinov2", "dinov2_with_registers", "dinov3_vit"])
def test_weights_by_the_names_of_the_published_checkpoints_load(folders, family, tmp_path):
    folder = folders[family]
    weights = published(family, load_file(folder / "model.safetensors"))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    frames = random_frames(224, 112)
    assert torch.equal(features(load(tmp_path), frames)[0].keys, features(load(folder), frames)[0].keys)
    norm = next(name for name in weights if name.endswith("layer.1.norm1.weight"))
    del weights[norm]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"1 missing keys in the weights, first (encoder|model)\.layer\.1\.norm1\.weight"
    ):
        load(tmp_path)


@pytest.mark.parametrize("family", ["siglip", "siglip2"])
def test_the_text_model_is_left_out(folders, family):
    backbone = load(folders[family])
    kind = {"siglip": SiglipModel, "siglip2": Siglip2Model}[family]
    whole = kind.from_pretrained(folders[family]).vision_model.state_dict()
    loaded = backbone.model.state_dict()
    assert loaded.keys() == whole.keys()
    assert all(torch.equal(loaded[name], whole[name]) for name in whole)


@pytest.mark.parametrize("layers", [[], ["{}.3"], ["{}.0"] * 2, "{}.0"])
def test_layers_that_it_does_not_have_are_refused(folder, family, layers):
    name = LAYER_LISTS[family]
    chosen = layers.format(name) if isinstance(layers, str) else [layer.format(name) for layer in layers]
    with pytest.raises(OptionError, match=rf"^layers=.*{name}\.0, .*or null for the last"):
        load(folder, layers=chosen)


def test_options_of_diffusion_models_are_refused(folder):
    with pytest.raises(
        OptionError, match=r"^timestep=20: allowed is no value: options of this .* are layers$"
    ):
        load(folder, timestep=20)


def test_it_has_no_prompt(folder):
    backbone = load(folder)
    with pytest.raises(OptionError, match=f"{type(backbone).__name__} has none"):
        as_prompt_backbone(backbone, "text", True)
    with pytest.raises(ValueError, match=f"{type(backbone).__name__} has no prompt"):
        backbone.features(random_frames(28, 28), torch.Generator(), prompt=torch.zeros(1, 77, 8))


@pytest.fixture
def evaluated(folders, tmp_path, monkeypatch, capsys):
    """Runs `evaluate.py backbone=NAME`; returns the exit status, the standard error and the output folder."""
    root = write_davis(tmp_path / "data", {"square": moving_square(3, size=(56, 84))})

    def call(name, family, *words, flags=()):
        output = tmp_path / "out"
        common = [f"data.root={root}", f"backbone.checkpoint={folders[family]}", f"output.dir={output}"]
        arguments = ["data=davis", f"backbone={name}", *common, "logger=none", "refinement=none", *words]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *flags, *arguments])
        status = run(evaluate.evaluate, config_dir=evaluate.CONFIGS, config_name="evaluate")
        return status, capsys.readouterr().err, output

    return call


def test_a_sweep_with_learned_head_weights_cache_and_report(evaluated, tmp_path):
    status, errors, output = evaluated(
        *("dinov2", "dinov2", "adaptation/head_weighting=learned", "adaptation.head_weighting.views=1"),
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
    assert len(list((tmp_path / "cache").glob("??/*.safetensors"))) == 3 + 2, "frames, and two views"


def test_textual_inversion_needs_a_prompt(evaluated):
    status, errors, _ = evaluated("siglip2", "siglip2", "adaptation=drift")
    assert status == 2
    assert errors.startswith("error: adaptation.textual_inversion=")
    assert "SigLIP2 has none" in errors
    assert errors.count("\n") == 1


def test_no_other_file_of_the_library_mentions_a_family():
    root = Path(evaluate.__file__).parent / "drift"
    for family in FAMILIES:
        mentions = [path.name for path in root.rglob("*.py") if f"backbones.{family} " in path.read_text()]
        assert not mentions, family
