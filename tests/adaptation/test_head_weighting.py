"""Head weights on made-up readings: the head that holds the correspondence is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from examples import moving_square
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from drift.adaptation import AdaptationSettings
from drift.adaptation.head_weighting import (
    HeadLearning,
    Propagation,
    _chosen,
    _reachable,
    first_logits,
    fixed_weights,
    single_head,
)
from drift.adaptation.module import AdaptationModule, Objective, fit
from drift.adaptation.views import augmented_views
from drift.backbone import LayerReading, load_latent_diffusion
from drift.errors import OptionError
from drift.propagation import Tracker, propagate
from drift.propagation.adapter import Adapter
from drift.propagation.affinity import comparisons
from drift.propagation.labels import labels_of_mask

STRIDE, RADIUS = 4, 4


def readings_of(views, *, good_head, heads=(3, 2), dim=8):
    """Two layers of noise, but for one head, counted over both, whose tokens tell how much object they hold."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for view in views:
        share = labels_of_mask(view.mask, [1], STRIDE)[0]
        share = (share.flip(-1) if view.flipped else share) * torch.pi
        telling = torch.stack([share.cos(), share.sin()], dim=-1)
        layers, number = [], 0
        for layer, count in enumerate(heads):
            grid = telling.shape[:2]
            tokens = F.normalize(torch.randn(1, count, *grid, dim, generator=generator), dim=-1) * 8
            for head in range(count):
                if number == good_head:
                    tokens[0, head] = F.pad(telling, (0, dim - 2)) * 8 + tokens[0, head] / 80
                number += 1
            layers.append(
                LayerReading(f"layer{layer}", tokens, tokens, tokens[0].permute(1, 2, 0, 3).flatten(2)[None])
            )
        found.append(layers)
    return found


def learning(mode, good_head, *, top_k=None, caution=0.0):
    clip = moving_square(1, (64, 96))
    views = augmented_views(
        clip.frames[0], clip.given[0], count=4, reach=RADIUS * STRIDE, stride=STRIDE, seed=0
    )
    readings = readings_of(views, good_head=good_head)
    heads = {one.name: one.queries.shape[1] for one in readings[0]}
    return HeadLearning(
        readings,
        views,
        [1],
        propagation=Propagation("attention", mode, 1.0, top_k, RADIUS),
        first=first_logits(heads, {}, "attention"),
        caution=caution,
        queries=300,
        generator=torch.Generator().manual_seed(0),
    )


def learned(task):
    usual = AdaptationSettings()
    objective = Objective(
        "head_logits",
        task.first,
        lambda value: task.loss,
        learning_rate=usual.head_learning_rate,
        steps=usual.head_steps,
        patience=usual.patience,
        tolerance=usual.tolerance,
    )
    module = AdaptationModule([objective])
    fit(module, torch.device("cpu"))
    return torch.cat(list(task.weights(module.value("head_logits")).values()))


@pytest.mark.parametrize("good_head", [1, 4])
def test_the_one_head_that_holds_the_correspondence_gets_the_weight(good_head):
    """Where logits are summed a weight sharpens too, and noise does no harm once it is drowned: not so here."""
    weights = learned(learning("separate", good_head))
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)
    assert weights[good_head] >= 0.9, weights


def test_with_top_k_too():
    assert learned(learning("separate", 2, top_k=5))[2] >= 0.9


def test_caution_keeps_weights_where_they_start():
    task = learning("separate", 1, caution=100.0)
    assert torch.allclose(learned(task), task.first.softmax(0), atol=0.02)


def test_the_loss_is_lowest_on_the_good_head():
    task = learning("separate", 3)
    alone = [
        task.loss(torch.full((5,), -30.0).index_fill(0, torch.tensor(head), 0.0)).item() for head in range(5)
    ]
    assert min(range(5), key=alone.__getitem__) == 3
    assert alone[3] < 0.5 * min(alone[:3] + alone[4:])


def test_a_place_never_meets_itself():
    """On the frame itself a token is its own best match, so labels would be carried without error."""
    clip = moving_square(1, (64, 96))
    views = augmented_views(
        clip.frames[0], clip.given[0], count=0, reach=RADIUS * STRIDE, stride=STRIDE, seed=0
    )
    rows, columns = views[0].image.shape[1] // STRIDE, views[0].image.shape[2] // STRIDE
    unlike = (
        F.normalize(torch.randn(1, 1, rows, columns, 200), dim=-1) * 50
    )  # each token is like itself alone
    reading = LayerReading("layer", unlike, unlike, unlike[:, 0])
    task = HeadLearning(
        [[reading]],
        views,
        [1],
        propagation=Propagation("attention", "joint", 1.0, None, RADIUS),
        first=torch.zeros(1),
        caution=0.0,
        queries=300,
        generator=torch.Generator().manual_seed(0),
    )
    assert task.loss(torch.zeros(1)) > 0.1


@pytest.mark.parametrize("mode", ["separate", "joint", "fused"])
def test_learning_carries_labels_as_the_tracker_does(mode):
    """The frame as the target, itself as memory: the sampled places get what the kernel gives them there."""
    task = learning(mode, 1, top_k=3)
    weights = torch.rand(5).softmax(0)
    carried = task.carried(weights)
    assert torch.allclose(carried.sum(-1), torch.ones(()), atol=1e-5)
    by_layer = {"layer0": weights[:3], "layer1": weights[3:]}
    clip = moving_square(1, (64, 96))
    views = augmented_views(
        clip.frames[0], clip.given[0], count=4, reach=RADIUS * STRIDE, stride=STRIDE, seed=0
    )
    readings = readings_of(views, good_head=1)
    generator = torch.Generator().manual_seed(0)
    labels = [view.labels([1], STRIDE) for view in views]
    places = [
        _chosen(label, _reachable(view, STRIDE), 300, generator)
        for label, view in zip(labels, views, strict=True)
    ]
    number = 3  # a view that is not mirrored
    assert not views[number].flipped
    target = comparisons(readings[number], affinity="attention", heads=mode, weights=by_layer)
    memory = comparisons(readings[0], affinity="attention", heads=mode, weights=by_layer)
    total = 0
    for queries, keys in zip(target, memory, strict=True):
        per_head = propagate(
            queries.queries,
            [keys.keys],
            [labels[0].permute(1, 2, 0)],
            temperature=1.0,
            top_k=3,
            radius=RADIUS,
        )
        total = total + torch.einsum("h,hyxc->yxc", queries.shares, per_head)
    before = sum(len(one) for one in places[:number])
    where = places[number]
    expected = total[where[:, 0], where[:, 1]]
    assert torch.allclose(carried[before : before + len(where)], expected, atol=1e-4)


def test_a_single_head_has_all_the_weight():
    layers = {"a": 2, "b": 3}
    assert single_head(layers, "b", 1)["b"].tolist() == [0, 1, 0]
    assert single_head(layers, "a", None)["a"].tolist() == [0.5, 0.5]
    for layer, head, message in (
        (None, 0, "layer=None"),
        ("c", 0, "a, b"),
        ("b", 3, "0 to 2"),
        ("a", True, "0 to 1"),
    ):
        with pytest.raises(OptionError, match=message):
            single_head(layers, layer, head)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 5), min_size=2, max_size=4), st.floats(0.01, 5))
def test_fixed_weights_sum_to_one_in_their_proportions(of_heads, of_layer):
    layers = {"a": len(of_heads), "b": 2, "c": 1}
    weights = fixed_weights(layers, {"a": of_heads, "b": of_layer})
    assert sum(float(one.sum()) for one in weights.values()) == pytest.approx(1, abs=1e-5)
    assert weights["b"][0] == weights["b"][1]
    assert weights["c"].tolist() == [0]
    total = sum(of_heads) + of_layer
    assert np.allclose(weights["a"], np.array(of_heads) / total, atol=1e-5)


@pytest.mark.parametrize("weights", [{"z": 1}, {"a": [1, 2, 3]}, {"a": "x"}, {"a": -1, "b": 2}, {"a": 0}, {}])
def test_fixed_weights_that_fit_no_layer_are_refused(weights):
    with pytest.raises(OptionError, match=r"a \(2 heads\), b \(1 heads\)"):
        fixed_weights({"a": 2, "b": 1}, weights)


def test_a_tracker_refuses_weights_of_other_layers(checkpoint):
    backbone = load_latent_diffusion(str(checkpoint), layers=["up_blocks.2.attentions.0"], timestep=51)
    clip = moving_square(2)
    tracker = Tracker(backbone, adapter=Adapter(head_weights={"up_blocks.1.attentions.0": torch.ones(4) / 4}))
    with pytest.raises(OptionError, match="other layers"):
        tracker.step(clip.frames[0], clip.given[0])


@pytest.mark.parametrize(("radius", "reach"), [(None, 12), (0, 1), (5, 5), (40, 12)])
def test_weights_are_learned_within_the_radius(radius, reach):
    """A radius of 0 still needs a neighbour, since a token never matches itself."""
    assert Propagation("attention", "joint", 1.0, None, radius).reach == reach
