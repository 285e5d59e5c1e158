"""Schemes of head weighting."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from examples import ColourBackbone, moving_square
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import evaluate
from drift import PropagationOptions, Tracker
from drift.adaptation import Fixed, HeadScheme, Learned, Single, Uniform
from drift.adaptation.adapter_files import origin
from drift.command_line import build
from drift.errors import OptionError

LAYERS = {"a": 2, "b": 3}


def test_uniform_leaves_weights_to_the_tracker():
    assert Uniform().weights(LAYERS) == {}
    assert Learned().weights(LAYERS) == {}


def test_only_learned_weights_depend_on_the_clip():
    assert [scheme.learned for scheme in (Uniform(), Single("a"), Fixed({"a": 1}), Learned())] == [
        False,
        False,
        False,
        True,
    ]


def test_a_single_head_gets_all_the_weight():
    weights = Single("b", 1).weights(LAYERS)
    assert {layer: of_heads.tolist() for layer, of_heads in weights.items()} == {"a": [0, 0], "b": [0, 1, 0]}


def test_a_single_layer_shares_the_weight_among_its_heads():
    weights = Single("a").weights(LAYERS)
    assert {layer: of_heads.tolist() for layer, of_heads in weights.items()} == {
        "a": [0.5, 0.5],
        "b": [0, 0, 0],
    }


@pytest.mark.parametrize(
    ("layer", "head", "message"),
    [
        (None, 0, "head_weighting.layer=null: allowed is one of backbone.layers: a, b"),
        ("c", 0, "head_weighting.layer=c.*a, b"),
        ("b", 3, "head_weighting.head=3: allowed is 0 to 2 for b"),
        ("b", -1, "head_weighting.head=-1"),
        ("b", 0.5, "head_weighting.head=0.5"),
        ("a", True, "head_weighting.head=true: allowed is 0 to 1"),
    ],
)
def test_a_layer_or_head_that_there_is_not_is_named_with_those_there_are(layer, head, message):
    with pytest.raises(OptionError, match=message):
        Single(layer, head).weights(LAYERS)


def test_fixed_weights_are_required():
    with pytest.raises(OptionError, match=r"head_weighting.layer_weights=null: allowed is \{LAYER: WEIGHT"):
        Fixed().weights(LAYERS)


amounts = st.floats(0, 1e6).filter(lambda value: value == 0 or value > 1e-3)


@settings(max_examples=60, deadline=None)
@given(
    scheme=st.sampled_from([Fixed, Learned]),
    of_heads=st.lists(amounts, min_size=2, max_size=4),
    of_layer=amounts,
    other=st.one_of(st.none(), amounts),
)
def test_scaled_weights_keep_their_proportions_and_sum_to_one(scheme, of_heads, of_layer, other):
    layers = {"a": len(of_heads), "b": 2, "c": 1}
    given_weights = {"a": of_heads, "b": of_layer} | ({} if other is None else {"c": [other]})
    total = sum(of_heads) + of_layer + (other or 0)
    if not total:
        with pytest.raises(OptionError):
            scheme(layer_weights=given_weights).weights(layers)
        return
    weights = scheme(layer_weights=given_weights).weights(layers)
    assert list(weights) == list(layers)
    assert [len(of_heads) for of_heads in weights.values()] == list(layers.values())
    expected = torch.tensor([*of_heads, of_layer / 2, of_layer / 2, other or 0.0]) / total
    assert torch.allclose(torch.cat(list(weights.values())), expected, rtol=1e-3, atol=1e-6)
    again = scheme(layer_weights={name: value.tolist() for name, value in weights.items()}).weights(layers)
    assert all(torch.allclose(again[name], weights[name], atol=1e-6) for name in layers), "idempotent"


@pytest.mark.parametrize("scheme", [Fixed, Learned])
@pytest.mark.parametrize(
    "weights",
    [
        {"z": 1},
        {"a": [1, 2, 3]},
        {"a": []},
        {"a": "x"},
        {"a": None},
        {"a": -1, "b": 2},
        {"a": [1, -1]},
        {"a": 0},
        {"a": math.nan},
        {"a": math.inf},
        {"a": [[1, 2]]},
        {"a": {"head": 1}},
        {},
    ],
)
def test_weights_that_fit_no_layer_are_refused_in_one_line(scheme, weights):
    with pytest.raises(
        OptionError, match=r"head_weighting.layer_weights=.*a \(2 heads\), b \(3 heads\)"
    ) as e:
        scheme(layer_weights=weights).weights(LAYERS)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("views", -1),
        ("views", 1.5),
        ("steps", 0),
        ("patience", 0),
        ("learning_rate", 0),
        ("caution", -0.1),
        ("tolerance", math.nan),
    ],
)
def test_options_of_learning_out_of_range_are_named(option, value):
    with pytest.raises(OptionError, match=f"head_weighting.{option}={value}"):
        Learned(**{option: value})


@dataclass(frozen=True)
class BySimilarity(HeadScheme):
    """A scheme of a user: weights by the mean similarity of queries and keys on the given frame."""

    sharpness: float = 1.0

    learned = True

    def weights(self, layers):
        return {}

    def learn(self, backbone, frame, mask, propagation, *, prompt=None, seed=0):
        images = torch.from_numpy(frame).permute(2, 0, 1)[None] / 255
        features = backbone.features(images, torch.Generator().manual_seed(seed), prompt=prompt)
        similarity = [(f.queries * f.keys).mean((0, 2, 3, 4)) for f in features]
        weights = (self.sharpness * torch.cat(similarity)).softmax(0).split([len(s) for s in similarity])
        return {f.layer: w for f, w in zip(features, weights, strict=True)}, [0.0]


def test_a_new_scheme_is_one_class_and_one_yaml():
    yaml = OmegaConf.create({"_target_": f"{__name__}.BySimilarity", "sharpness": 2.0})
    with initialize_config_dir(str(evaluate.CONFIGS), version_base="1.3"):
        config = compose("evaluate", overrides=["adaptation=none"])
    config.adaptation.head_weighting = yaml
    adaptation = build(config, "adaptation")
    clip, backbone = moving_square(2), ColourBackbone(2)
    propagation = PropagationOptions(radius=4, top_k=5)
    adapter = adaptation.adapt(clip.given_frames(), backbone, propagation)
    assert adaptation.learns
    assert adapter.figures["head_weights_steps"] == 1
    assert sum(float(weights.sum()) for weights in adapter.head_weights.values()) == pytest.approx(1)
    tracker = Tracker(backbone, radius=4, top_k=5, adapter=adapter)
    tracker.step(clip.frames[0], clip.given[0])
    assert tracker.step(clip.frames[1]).mask().any()
    came_from = origin(clip.given_frames(), backbone, adaptation, propagation)
    assert came_from["adaptation.head_weighting"] == '"BySimilarity"'
    assert came_from["adaptation.head_weighting.sharpness"] == "2.0"
