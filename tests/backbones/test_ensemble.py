"""Several backbones at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from examples import moving_square, write_encoder
from torch.nn import functional as F

from drift.adaptation import Fixed, Learned
from drift.backbones import Ensemble, as_prompt_backbone, load_backbone, load_ensemble
from drift.backbones.cache import CachedBackbone
from drift.errors import OptionError
from drift.noising import Gaussian
from drift.propagation import PropagationOptions, Tracker
from drift.propagation.adapter import Adapter
from drift.propagation.heads import compare

TINY = {"checkpoint": "embedded:tiny", "layers": ["up_blocks.1.attentions.0"], "timestep": 20}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Checkpoints of strides 14 and 16."""
    return {
        name: {"checkpoint": str(write_encoder(tmp_path_factory.mktemp(name), name))}
        for name in ("dinov2", "dinov3_vit")
    }


@pytest.fixture(scope="module")
def members(encoders):
    """Options of three members, of strides 8, 14 and 16."""
    tiny = TINY | {"noise": Gaussian()}
    layers = {"layers": ["encoder.layer.0", "encoder.layer.2"]}
    return {"tiny": tiny, "v2": encoders["dinov2"] | layers, "v3": encoders["dinov3_vit"]}


@pytest.fixture(scope="module")
def ensemble(members):
    return load_ensemble(members, precision="float32")


def frames_of(*size):
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(3))


def test_it_meets_the_interface(ensemble, members):
    assert isinstance(ensemble, Ensemble)
    assert ensemble.layers == {
        "tiny/up_blocks.1.attentions.0": 4,
        "v2/encoder.layer.0": 4,
        "v2/encoder.layer.2": 4,
        "v3/model.layer.2": 4,
    }
    assert ensemble.stride == 8
    assert ensemble.device == torch.device("cpu")
    described = ensemble.description["members"]
    assert [described[name]["checkpoint"] for name in members] == [m["checkpoint"] for m in members.values()]
    assert not any(module.training for module in ensemble.modules())
    assert sum(p.numel() for p in ensemble.parameters()) > 10_000_000, "the members are its modules"
    with pytest.raises(OptionError, match="Ensemble has none"):
        as_prompt_backbone(ensemble, "text", True)


def test_features_are_those_of_each_member_alone(ensemble, members):
    frames = frames_of(72, 104)
    generator = torch.Generator().manual_seed(0)
    found = ensemble.features(frames, generator)
    assert [layer.layer for layer in found] == list(ensemble.layers)
    assert [layer.grid for layer in found] == [(9, 13), (5, 7), (5, 7), (5, 7)]
    alone = torch.Generator().manual_seed(0)
    padded = F.pad(frames, (0, 8, 0, 8), mode="replicate")  # to 80 x 112, multiples of 16 pixels
    resized = F.interpolate(padded, (70, 98), mode="bilinear", antialias=True)
    for (name, options), images in zip(members.items(), (frames, resized, padded), strict=True):
        expected = load_backbone(**options, precision="float32").features(images, alone)
        for layer in expected:
            (same,) = [other for other in found if other.layer == f"{name}/{layer.layer}"]
            assert all(torch.equal(same.tensors()[part], value) for part, value in layer.tensors().items())
    assert torch.equal(generator.get_state(), alone.get_state())


def test_fused_logits_are_the_weighted_mean_over_members(ensemble):
    features = ensemble.features(frames_of(64, 96), torch.Generator().manual_seed(0))
    weights = Fixed({"tiny/up_blocks.1.attentions.0": 3, "v3/model.layer.2": 1}).weights(ensemble.layers)
    (one,) = compare(features, PropagationOptions("cosine", "fused"), weights)
    tokens = {}
    for layer in features:
        maps = F.normalize(layer.tokens[0], dim=-1).permute(2, 0, 1)[None]
        factor = 8 // layer.grid[0]
        tokens[layer.layer] = F.interpolate(maps, scale_factor=factor, mode="bilinear").flatten(2)[0].T
    expected = sum(
        weight * tokens[name] @ tokens[name].T
        for name, weight in (("tiny/up_blocks.1.attentions.0", 0.75), ("v3/model.layer.2", 0.25))
    )
    assert torch.allclose(one.queries.flatten(0, 2) @ one.keys.flatten(0, 2).T, expected, atol=1e-5)


@pytest.mark.parametrize("heads", ["fused", "separate"])
@pytest.mark.parametrize("size", [(96, 128), (83, 117)])
def test_the_tracker_follows_a_square(ensemble, heads, size):
    clip = moving_square()
    enlarged = [
        [np.kron(image, np.ones((3, 3, 1)[: image.ndim], np.uint8))[: size[0], : size[1]] for image in images]
        for images in (clip.frames, clip.truth.values())
    ]
    weights = Fixed({"tiny/up_blocks.1.attentions.0": 3, "v3/model.layer.2": 1}).weights(ensemble.layers)
    tracker = Tracker(
        ensemble,
        affinity="cosine",
        heads=heads,
        temperature=0.02,
        top_k=3,
        radius=4,
        adapter=Adapter(head_weights=weights),
    )
    for number, (frame, truth) in enumerate(zip(*enlarged, strict=True)):
        mask = np.asarray(tracker.step(frame, truth if number == 0 else None).mask()) > 0
        assert mask.shape == size
        assert (mask & (truth > 0)).sum() / (mask | (truth > 0)).sum() > 0.6


def test_weights_of_members_are_learned(ensemble):
    clip = moving_square(1, size=(56, 64))
    scheme = Learned(steps=3, views=1)
    options = PropagationOptions("cosine", "fused", temperature=0.1, top_k=5, radius=4)
    weights, losses = scheme.learn(ensemble, clip.frames[0], clip.given[0], options)
    assert list(weights) == list(ensemble.layers)
    assert sum(float(weight.sum()) for weight in weights.values()) == pytest.approx(1, abs=1e-4)
    assert len({round(float(weight.sum()), 6) for weight in weights.values()}) > 1
    assert len(losses) >= 3


def test_features_of_all_members_come_from_the_cache(members, tmp_path):
    cached = load_ensemble(members, precision="float32", cache=str(tmp_path / "cache"))
    assert isinstance(cached, CachedBackbone)
    first, second = (cached.features(frames_of(32, 48), torch.Generator().manual_seed(0)) for _ in range(2))
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1
    for one, other in zip(first, second, strict=True):
        assert one.layer == other.layer
        assert all(torch.equal(one.tensors()[name], value) for name, value in other.tensors().items())


def test_members_have_the_common_precision_or_their_own(encoders):
    half = encoders["dinov3_vit"] | {"precision": "float16"}
    ensemble = load_ensemble([encoders["dinov2"], half], precision="bfloat16")
    assert list(ensemble.layers) == ["0/encoder.layer.2", "1/model.layer.2"], "a list is named by numbers"
    precisions = [member["precision"] for member in ensemble.description["members"].values()]
    assert precisions == ["bfloat16", "float16"]
    assert ensemble.stride == 14
    assert [f.grid for f in ensemble.features(frames_of(28, 42), torch.Generator())] == [(2, 3), (2, 3)]


@pytest.mark.parametrize("members", [{}, [], {"a/b": TINY}, {"a.b": TINY}])
def test_members_without_names_are_refused(members):
    with pytest.raises(OptionError, match="^members=.*: allowed is one or more backbones, by names"):
        load_ensemble(members)


def test_an_option_of_a_member_is_named_with_it(encoders):
    with pytest.raises(OptionError, match=r"^members\.dino\.layers=\[no\]: allowed is one or more"):
        load_ensemble({"tiny": TINY, "dino": encoders["dinov2"] | {"layers": ["no"]}})
    with pytest.raises(OptionError, match=r"^members\.dino\.timestep=20: "):
        load_ensemble({"dino": encoders["dinov2"] | {"timestep": 20}})
