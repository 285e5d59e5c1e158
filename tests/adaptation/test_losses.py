"""Losses of test-time optimisation and maps of slots, against plain loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from drift.adaptation.appearances import with_slots
from drift.adaptation.losses import area_weighted_cross_entropy, mean_attention, propagated_map_error
from drift.backbones import load_backbone
from drift.propagation.slots import SlotKeys, slot_maps, slot_probabilities, weighted_by_slots


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_area_weighted_cross_entropy_is_the_mean_of_means():
    maps = random(2, 3, 4, 5).softmax(1)
    best = torch.randint(0, 2, (2, 4, 5), generator=torch.Generator().manual_seed(0))
    labels = F.one_hot(best, 3).permute(0, 3, 1, 2)
    expected = []
    for slot in range(2):  # the third is empty and does not count
        values = [-float(maps[b, slot, y, x].log()) for b, y, x in labels[:, slot].nonzero().tolist()]
        expected.append(sum(values) / len(values))
    loss = area_weighted_cross_entropy(maps, labels.float())
    assert loss.item() == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_a_small_object_counts_as_a_large_one():
    labels = torch.zeros(1, 2, 8, 8)
    labels[:, 1, 0, 0] = 1
    labels[:, 0] = 1 - labels[:, 1]
    wrong_object, wrong_background = torch.full((2, 1, 2, 8, 8), 0.5)
    wrong_object[0, :, 0, 0] = torch.tensor([0.9, 0.1])
    wrong_background[0, :, labels[0, 0] > 0] = torch.tensor([[0.1], [0.9]])
    of_object = area_weighted_cross_entropy(wrong_object, labels)
    of_background = area_weighted_cross_entropy(wrong_background, labels)
    assert of_object.item() == pytest.approx(of_background.item(), rel=1e-5)


def test_a_probability_of_zero_has_a_finite_loss_and_gradient():
    maps = torch.tensor([[[[0.0]], [[1.0]]]], requires_grad=True)
    loss = area_weighted_cross_entropy(maps, torch.tensor([[[[1.0]], [[0.0]]]]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(maps.grad).all()


def test_maps_are_propagated_by_the_mean_over_heads():
    queries, keys = random(1, 2, 3, 4, 5), random(1, 2, 3, 4, 5, seed=1)
    maps = random(1, 2, 3, 4, seed=2).softmax(1)
    by_head = F.scaled_dot_product_attention(
        queries.flatten(2, 3), keys.flatten(2, 3), maps.flatten(2).mT[:, None].expand(-1, 2, -1, -1)
    )
    propagated = by_head.mean(1).mT.unflatten(2, (3, 4))
    attention = mean_attention(queries, keys)
    assert torch.allclose(attention.sum(-1), torch.ones(()))
    assert propagated_map_error(maps, attention, propagated).item() == pytest.approx(0, abs=1e-10)
    shifted = propagated + 0.5
    assert propagated_map_error(maps, attention, shifted).item() == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_activations_stay_finite_under_half_precision_autocast(dtype):
    """q = k = 40 with 64 channels: the product overflows in float16 unless it is scaled first."""
    queries = torch.full((1, 1, 2, 2, 64), 40.0)
    keys = queries.clone()
    keys[..., :1, :] = 39.0
    with torch.autocast("cpu", dtype=dtype):
        attention = mean_attention(queries.to(dtype), keys.to(dtype))
        maps = slot_maps({"a": queries.to(dtype)}, {"a": keys[0].flatten(1, 2).to(dtype)}, 2, (2, 2))
    exact = (queries.flatten(2, 3).double() / 8 @ keys.flatten(2, 3).double().mT).softmax(-1)[:, 0]
    assert attention.dtype == maps.dtype == torch.float32
    assert torch.allclose(attention.double(), exact, atol=1e-4)
    assert torch.isfinite(maps).all()


def test_slot_maps_are_the_mean_over_heads_and_layers():
    queries = {"fine": random(1, 2, 4, 6, 5), "coarse": random(1, 3, 2, 3, 5, seed=1)}
    keys = {"fine": random(2, 6, 5, seed=2), "coarse": random(3, 6, 5, seed=3)}
    maps = slot_maps(queries, keys, 3, (4, 6))
    assert maps.shape == (1, 3, 4, 6)
    assert torch.allclose(maps.sum(1), torch.ones(()), atol=1e-5)
    expected = []
    for layer in queries:
        logits = torch.einsum("hyxd,htd->hyxt", queries[layer][0], keys[layer]) / 5**0.5
        slots = torch.stack([part.sum(-1) for part in logits.softmax(-1).chunk(3, -1)]).mean(1)
        expected.append(F.interpolate(slots[None], (4, 6), mode="bilinear"))
    assert torch.allclose(maps, (expected[0] + expected[1]) / 2, atol=1e-5)


def test_slot_probabilities_are_the_maps_of_the_learned_prompt(checkpoint):
    """The keys of the slots alone are those that the layer projects from the whole prompt."""
    layer = "up_blocks.2.attentions.0"
    backbone = load_backbone(checkpoint, layers=[layer], timestep=51, precision="float32")
    embeddings = random(2, 3, 24)
    keys = backbone.prompt_keys(layer, embeddings.flatten(0, 1))
    whole = backbone.prompt_keys(layer, with_slots(backbone.prompt, embeddings)[0])
    assert torch.allclose(keys, whole[:, 1:7], atol=1e-6)
    queries = random(1, keys.shape[0], 5, 6, keys.shape[-1])
    likely = slot_probabilities({layer: queries}, SlotKeys({layer: keys}, (0, 5)), [5], (5, 6))
    assert torch.allclose(
        likely, slot_maps({layer: queries}, {layer: whole[:, 1:7]}, 2, (5, 6))[0], atol=1e-5
    )


def test_objects_share_the_slots_of_several_prompts():
    queries, keys = {"a": random(1, 2, 3, 4, 8)}, {"a": random(2, 5, 8, seed=1)}
    maps = slot_maps(queries, keys, 5, (3, 4))[0]
    likely = slot_probabilities(queries, SlotKeys(keys, (0, 3, 0, 9, 4)), [9, 3], (3, 4))
    assert torch.allclose(likely, torch.stack([maps[0] + maps[2], maps[3], maps[1]]))


def test_an_object_without_a_slot_gets_the_mean_probability():
    queries, slots = {"a": random(1, 2, 5, 6, 8)}, SlotKeys({"a": random(2, 4, 8)}, (0, 3))
    likely = slot_probabilities(queries, slots, [3, 8], (5, 6))
    assert torch.allclose(likely[2], torch.full((5, 6), 0.5))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 5), st.floats(0, 2), st.integers(0, 99))
def test_labels_weighted_by_slots_sum_to_one(channels, weight, seed):
    labels, likely = random(2, channels, 4, 5, seed=seed).softmax(1)
    weighted = weighted_by_slots(labels, likely, weight)
    assert torch.allclose(weighted.sum(0), torch.ones(4, 5), atol=1e-5)
    assert torch.allclose(weighted_by_slots(labels, likely, 0.0), labels, atol=1e-5)
    floored = likely.clamp(min=0.02)
    ratio = (weighted[0] / weighted[1]) / (labels[0] / labels[1])
    assert torch.allclose(ratio, (floored[0] / floored[1]) ** weight, rtol=1e-3)
