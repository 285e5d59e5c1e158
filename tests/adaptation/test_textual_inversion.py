"""Textual inversion: what is spared changes nothing, slots fall on their objects, and odd masks do no harm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from examples import moving_square
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.adaptation import AdaptationSettings, adapt
from drift.adaptation.head_weighting import Propagation
from drift.adaptation.losses import area_weighted_cross_entropy, mean_attention, propagated_map_error
from drift.adaptation.prompts import (
    appearances,
    conditions,
    first_embeddings,
    slot_keys,
    tokens_per_slot,
    with_slots,
)
from drift.adaptation.textual_inversion import PromptInversion
from drift.adaptation.views import augmented_views
from drift.backbone import load_latent_diffusion
from drift.backbone.attention import self_attention_layers
from drift.propagation import Tracker
from drift.propagation.slot_maps import SlotKeys, slot_maps, slot_probabilities, with_evidence

CROSS = ["up_blocks.2.attentions.0", "up_blocks.2.attentions.1"]
USUAL = Propagation("attention", "fused", 0.5, 3, 4)


@pytest.fixture(scope="module")
def backbone(checkpoint):
    return load_latent_diffusion(str(checkpoint), layers=CROSS, timestep=51)


def task_on(backbone, *, self_layer="up_blocks.1.attentions.2", count=2, **options):
    clip = moving_square(1, (64, 96))
    views = augmented_views(clip.frames[0], clip.given[0], count=count, reach=32, stride=8, seed=0)
    usual = {"known": None, "tokens": 3, "cross_layers": CROSS, "self_weight": 1.0, "diffusion_weight": 0.0}
    usual |= {"conditioned": True, "refresh": 0, "generator": torch.Generator().manual_seed(0)} | options
    task = PromptInversion(backbone, views, [1], self_layer=self_layer, **usual)
    base = backbone.condition().float()
    return task, first_embeddings(base, 2, usual["tokens"], torch.Generator().manual_seed(1)).requires_grad_()


def value_and_gradient(loss_of, embeddings):
    loss = loss_of(embeddings)
    return loss.item(), torch.autograd.grad(loss, embeddings)[0]


@pytest.mark.parametrize("diffusion_weight", [0.0, 0.5])
@pytest.mark.parametrize("self_layer", ["up_blocks.1.attentions.2", "down_blocks.0.attentions.0"])
def test_what_is_computed_once_changes_neither_loss_nor_gradient(backbone, self_layer, diffusion_weight):
    task, embeddings = task_on(backbone, self_layer=self_layer, diffusion_weight=diffusion_weight)
    for _ in range(2):  # the prefix is used again
        spared = value_and_gradient(task.loss, embeddings)
        plain = value_and_gradient(task.plain_loss, embeddings)
        assert spared[0] == pytest.approx(plain[0], rel=1e-5)
        assert plain[1].abs().max() > 0
        assert torch.allclose(spared[1], plain[1], rtol=1e-3, atol=1e-5 * float(plain[1].abs().max()))
        embeddings = (embeddings.detach() + 0.5).requires_grad_()
    assert not any("forward" in vars(module) for module in backbone.unet.modules()), "nothing stays replaced"


def test_the_diffusion_loss_is_that_of_the_whole_unet(backbone):
    task, embeddings = task_on(backbone, diffusion_weight=1.0)
    without, _ = task_on(backbone)
    with torch.no_grad():
        condition = with_slots(backbone.condition().float(), embeddings)
        said = backbone.predict(task.latents, 51, condition=condition)
        kept = backbone.scheduler.alphas_cumprod[51]
        noise = (task.latents - kept.sqrt() * clean_latents(backbone)) / (1 - kept).sqrt()
        velocity = kept.sqrt() * noise - (1 - kept).sqrt() * clean_latents(backbone)
        expected = (said - velocity).square().mean()
        assert (task.loss(embeddings) - without.loss(embeddings)).item() == pytest.approx(
            expected.item(), rel=1e-3
        )


def clean_latents(backbone):
    clip = moving_square(1, (64, 96))
    views = augmented_views(clip.frames[0], clip.given[0], count=2, reach=32, stride=8, seed=0)
    return torch.cat([backbone.encode(view.image[None]) for view in views])


def test_kept_queries_give_the_loss_itself_and_gradients_through_the_keys(backbone):
    exact, embeddings = task_on(backbone)
    kept, _ = task_on(backbone, refresh=1)
    assert kept.loss(embeddings).item() == pytest.approx(exact.loss(embeddings).item(), rel=1e-5)
    assert value_and_gradient(kept.loss, embeddings)[1].abs().max() > 0


def test_under_the_backbones_own_prompt_the_unet_runs_once(backbone, monkeypatch):
    task, embeddings = task_on(backbone, conditioned=False)
    first = task.loss(embeddings)
    monkeypatch.setattr(backbone.unet, "forward", lambda *a, **k: pytest.fail("a pass"))
    assert task.loss(embeddings).item() == first.item()
    assert task.loss(embeddings * 2).item() != first.item()


@pytest.mark.parametrize("conditioned", [True, False])
def test_slots_come_to_lie_on_their_object(backbone, conditioned):
    clip = moving_square(1, (64, 96))
    chosen = AdaptationSettings(
        textual_inversion=True,
        conditioned=conditioned,
        tokens_per_slot=8,
        steps=12 if conditioned else 60,
        prompt_views=0,
    )
    adapter = adapt(clip, backbone, chosen, USUAL)
    fall = adapter.figures["prompt0_frame0_loss"] / adapter.figures["prompt0_frame0_first_loss"]
    assert fall < (0.95 if conditioned else 0.6)
    assert conditioned or adapter.figures["prompt0_frame0_slot_iou"] > 0.7
    assert bool(adapter.conditions) == conditioned


def test_the_area_weighted_cross_entropy_is_the_mean_of_means():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(2, 3, 4, 5, generator=generator).softmax(1)
    labels = torch.nn.functional.one_hot(torch.randint(0, 2, (2, 4, 5), generator=generator), 3).permute(
        0, 3, 1, 2
    )
    expected = []
    for slot in range(2):  # the third is nowhere: it does not count
        picked = [-float(maps[b, slot, y, x].log()) for b, y, x in labels[:, slot].nonzero().tolist()]
        expected.append(sum(picked) / len(picked))
    assert area_weighted_cross_entropy(maps, labels.float()).item() == pytest.approx(
        sum(expected) / 2, rel=1e-5
    )


def test_maps_are_spread_by_the_mean_over_heads():
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(1, 2, 3, 4, 5, generator=generator) for _ in range(2))
    maps = torch.rand(1, 2, 3, 4, generator=generator).softmax(1)
    by_head = torch.nn.functional.scaled_dot_product_attention(
        queries.flatten(2, 3), keys.flatten(2, 3), maps.flatten(2).mT[:, None].expand(-1, 2, -1, -1)
    )
    spread = by_head.mean(1).mT.unflatten(2, (3, 4))
    assert propagated_map_error(maps, mean_attention(queries, keys), spread).item() == pytest.approx(
        0, abs=1e-10
    )


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.integers(0, 30), st.lists(st.integers(1, 255), max_size=12), min_size=1, max_size=4),
    st.integers(3, 12),
)
def test_every_object_has_one_slot_on_the_frame_where_it_appears(given_ids, length):
    when = appearances(given_ids, length)
    found = [one for appearance in when for one in appearance.object_ids]
    assert sorted(found) == sorted({one for ids in given_ids.values() for one in ids})
    for appearance in when:
        for one in appearance.object_ids:
            assert appearance.frame == min(frame for frame, ids in given_ids.items() if one in ids)
    for prompt in {one.prompt for one in when}:
        members = [one for one in when if one.prompt == prompt]
        assert [one.first for one in members] == [True] + [False] * (len(members) - 1)
        count = sum(len(one.object_ids) for one in members) + 1
        tokens = tokens_per_slot(len(found), 36, length)
        assert 1 + count * tokens <= length


def test_prompts_hold_the_objects_known_by_then():
    base = torch.zeros(1, 10, 2)
    when = appearances({0: [4], 3: [4, 9]}, 10)
    learned = [torch.ones(2, 3, 2), torch.full((1, 3, 2), 2.0)]
    prompts = conditions(base, when, learned)
    assert prompts[0][0, :, 0].tolist() == [0] + [1] * 6 + [0] * 3
    assert prompts[3][0, :, 0].tolist() == [0] + [1] * 6 + [2] * 3


def test_an_object_that_appears_later_gets_its_slot_there_and_leaves_the_others_alone(backbone):
    clip = moving_square(4, (64, 96))
    late = np.zeros((64, 96), np.uint8)
    late[44:60, 64:88] = 7
    both = moving_square(4, (64, 96), given={0: clip.given[0], 2: late})
    chosen = AdaptationSettings(textual_inversion=True, tokens_per_slot=4, steps=6, slot_weight=0.1)
    alone, later = adapt(clip, backbone, chosen, USUAL), adapt(both, backbone, chosen, USUAL)
    assert sorted(later.conditions) == [0, 2]
    assert torch.equal(alone.embeddings[0], later.embeddings[0])
    assert later.embeddings[1].shape[0] == 1
    assert later.slots[0].object_ids == (0, 1)
    assert later.slots[2].object_ids == (0, 1, 7)
    tracker = Tracker(backbone, heads="fused", radius=4, top_k=3, adapter=later)
    labels = [tracker.step(frame, both.given.get(t)) for t, frame in enumerate(both.frames)]
    assert labels[3].object_ids == (1, 7)
    assert torch.allclose(labels[3].probabilities.sum(0), torch.ones(()), atol=1e-5)


def test_more_objects_than_a_prompt_holds_are_learned_in_groups(backbone):
    ids = np.arange(1, 91, dtype=np.uint8).reshape(9, 10).repeat(8, 0).repeat(8, 1)
    clip = moving_square(2, ids.shape, given={0: ids})
    adapter = adapt(
        clip, backbone, AdaptationSettings(textual_inversion=True, steps=2, slot_weight=0.1), USUAL
    )
    assert adapter.warning is None
    assert adapter.conditions[0].shape[:2] == (2, 77)
    assert sorted(adapter.slots[0].object_ids) == [0, 0, *range(1, 91)]
    tracker = Tracker(backbone, heads="fused", radius=4, top_k=3, adapter=adapter)
    tracker.step(clip.frames[0], ids)
    assert len(tracker.step(clip.frames[1]).probabilities) == 91


def odd_masks():
    single, full, border, twins = (np.zeros((48, 64), np.uint8) for _ in range(4))
    single[20, 30] = 1
    full[:] = 1
    border[:, :5] = 1
    twins[8:24, 8:24], twins[8:24, 40:56] = 1, 2
    return {"a single pixel": single, "the whole frame": full, "on the border": border, "two alike": twins}


@pytest.mark.parametrize("name", list(odd_masks()))
def test_odd_masks_do_no_harm(backbone, name):
    mask = odd_masks()[name]
    clip = moving_square(3, given={0: mask})
    clip.frames[0][8:24, 40:56] = clip.frames[0][8:24, 8:24]
    chosen = AdaptationSettings(
        textual_inversion=True, head_weighting="learned", steps=5, head_steps=5, slot_weight=0.1
    )
    adapter = adapt(clip, backbone, chosen, USUAL)
    assert adapter.warning is None
    weights = torch.cat(list(adapter.head_weights.values()))
    assert torch.isfinite(weights).all()
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)
    tracker = Tracker(backbone, heads="fused", radius=4, top_k=3, adapter=adapter)
    for frame in clip.frames:
        labels = tracker.step(frame, mask if frame is clip.frames[0] else None)
        assert torch.isfinite(labels.probabilities).all()
    assert labels.mask().shape == mask.shape


def test_a_clips_adapter_does_not_depend_on_what_ran_before(backbone):
    chosen = AdaptationSettings(
        textual_inversion=True, head_weighting="learned", steps=4, head_steps=4, views=2
    )
    clip, other = moving_square(1, (64, 96)), moving_square(1, (48, 64))
    first = adapt(clip, backbone, chosen, USUAL)
    adapt(other, backbone, chosen, USUAL)
    torch.rand(7)
    again = adapt(clip, backbone, chosen, USUAL)
    assert torch.equal(first.embeddings[0], again.embeddings[0])
    assert all(torch.equal(first.head_weights[name], again.head_weights[name]) for name in first.head_weights)


def test_slot_maps_sum_to_one_on_the_finest_grid():
    logits = [torch.randn(1, 2, 6, 8, 6), torch.randn(1, 3, 3, 4, 6)]
    maps = slot_maps(logits, 3, (6, 8))
    assert maps.shape == (1, 3, 6, 8)
    assert torch.allclose(maps.sum(1), torch.ones(()), atol=1e-5)


def test_slots_at_tracking_time_say_what_they_said_when_learned(backbone):
    """The same queries and embeddings, by the keys that an adapter holds and by those of the whole prompt."""
    embeddings = torch.randn(2, 3, 24)
    queries = torch.randn(1, 4, 5, 6, 8)
    layers = self_attention_layers(backbone.unet)
    attention = layers[CROSS[0]][1].attn2
    held = slot_keys({CROSS[0]: attention}, appearances({0: [5]}, 77), [embeddings])[0]
    dim = held.keys[CROSS[0]].shape[-1]
    queries = torch.randn(attention.heads, 5, 6, dim)
    likely = slot_probabilities({CROSS[0]: queries}, held, [5], (5, 6))
    keys = attention.to_k(with_slots(backbone.condition().float(), embeddings)).unflatten(
        2, (attention.heads, -1)
    )
    logits = torch.einsum("hyxd,thd->hyxt", queries, keys[0, 1:7]) / dim**0.5
    assert torch.allclose(likely, slot_maps([logits[None]], 2, (5, 6))[0], atol=1e-5)


def test_an_object_without_a_slot_is_neither_likely_nor_unlikely():
    held = SlotKeys({"a": torch.randn(2, 4, 8)}, (0, 3))
    likely = slot_probabilities({"a": torch.randn(2, 5, 6, 8)}, held, [3, 8], (5, 6))
    assert torch.allclose(likely[2], torch.full((5, 6), 0.5))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 5), st.floats(0, 2), st.integers(0, 99))
def test_evidence_keeps_labels_that_sum_to_one(channels, weight, seed):
    generator = torch.Generator().manual_seed(seed)
    labels, likely = (torch.rand(channels, 4, 5, generator=generator).softmax(0) for _ in range(2))
    weighed = with_evidence(labels, likely, weight)
    assert torch.allclose(weighed.sum(0), torch.ones(4, 5), atol=1e-5)
    assert torch.allclose(with_evidence(labels, likely, 0.0), labels, atol=1e-5)
    if weight > 0.1:
        more = likely.clamp(min=0.02)
        ratio = (weighed[0] / weighed[1]) / (labels[0] / labels[1])
        assert torch.allclose(ratio, (more[0] / more[1]) ** weight, rtol=1e-3)
