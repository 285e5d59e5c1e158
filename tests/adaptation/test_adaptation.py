"""`Adaptation`: from the given frames of a clip to its adapter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from examples import ColourBackbone, moving_square

from drift.adaptation import (
    Adaptation,
    Diverged,
    Fixed,
    HeadWeighting,
    Learned,
    PromptOptions,
    Single,
    TextualInversion,
    Uniform,
    fit,
)
from drift.backbones import load_backbone
from drift.errors import OptionError
from drift.noising import NoNoise
from drift.propagation import PropagationOptions, Tracker

LAYERS = ["up_blocks.2.attentions.0", "up_blocks.2.attentions.1"]
FUSED = PropagationOptions("attention", "fused", 0.5, 3, 4)
SIZE = (64, 96)
CLIP = moving_square(4, SIZE)
GIVEN = CLIP.given_frames()
FRAME, MASK = GIVEN[0]
LATE = np.zeros(SIZE, np.uint8)
LATE[44:60, 64:88] = 7
FEW_STEPS = Learned(views=1, steps=3)


@pytest.fixture(scope="module")
def backbone(checkpoint):
    return load_backbone(checkpoint, layers=LAYERS, timestep=51, precision="float32")


def prompt_options(**options):
    return PromptOptions(**({"tokens": 4, "steps": 4} | options))


def tracker_of(backbone, adapter):
    return Tracker(backbone, heads="fused", radius=4, top_k=3, adapter=adapter)


def same(one, other):
    return (
        len(one.embeddings) == len(other.embeddings)
        and all(torch.equal(a, b) for a, b in zip(one.embeddings, other.embeddings, strict=True))
        and one.head_weights.keys() == other.head_weights.keys()
        and all(torch.equal(one.head_weights[name], other.head_weights[name]) for name in one.head_weights)
    )


def test_both_parts_are_learned_one_after_the_other(backbone):
    adaptation = Adaptation(FEW_STEPS, prompt_options(slot_weight=0.1), seed=3)
    adapter = adaptation.adapt(GIVEN, backbone, FUSED)
    prompts = TextualInversion(backbone, FRAME, MASK, adaptation.textual_inversion, seed=3)
    fit(prompts)
    assert torch.equal(adapter.embeddings[0], prompts.embeddings)
    assert torch.equal(adapter.prompts[0], prompts.prompt)
    weights = HeadWeighting(backbone, FRAME, MASK, FUSED, FEW_STEPS, prompt=prompts.prompt, seed=3)
    fit(weights)
    assert all(torch.equal(adapter.head_weights[layer], weights.weights()[layer]) for layer in LAYERS)
    under_own_prompt = HeadWeighting(backbone, FRAME, MASK, FUSED, FEW_STEPS, seed=3)
    fit(under_own_prompt)
    assert under_own_prompt.losses != weights.losses
    assert adapter.slot_weight == 0.1
    assert adapter.slots[0].object_ids == (0, 1)
    assert list(adapter.slots[0].keys) == LAYERS[:1]


def test_figures_say_how_each_part_went(backbone):
    adapter = Adaptation(FEW_STEPS, prompt_options()).adapt(GIVEN, backbone, FUSED)
    assert set(adapter.figures) == {
        "seconds",
        "prompt0_frame0_steps",
        "prompt0_frame0_first_loss",
        "prompt0_frame0_loss",
        "prompt0_frame0_slot_iou",
        "head_weights_steps",
        "head_weights_first_loss",
        "head_weights_loss",
    }
    assert set(adapter.losses) == {"prompt0_frame0", "head_weights"}
    for name, losses in adapter.losses.items():
        assert adapter.figures[f"{name}_steps"] == len(losses)
        assert adapter.figures[f"{name}_first_loss"] == losses[0]
        assert adapter.figures[f"{name}_loss"] == min(losses)
    assert adapter.figures["seconds"] > 0
    assert adapter.warning is None


@pytest.mark.parametrize("conditioned", [True, False])
def test_prompts_are_the_condition_only_if_asked(backbone, conditioned):
    options = prompt_options(conditioned=conditioned, slot_weight=0.1)
    adapter = Adaptation(textual_inversion=options).adapt(GIVEN, backbone, FUSED)
    assert bool(adapter.prompts) == conditioned
    assert len(adapter.embeddings) == 1
    assert adapter.head_weights == {}


def test_slots_weigh_labels_only_if_asked(backbone):
    adapter = Adaptation(textual_inversion=prompt_options(slot_weight=0.0)).adapt(GIVEN, backbone, FUSED)
    assert adapter.slots == {}
    assert adapter.slots_at(0) is None


def test_slots_weigh_labels_in_every_interval_th_frame(backbone):
    options = prompt_options(slot_weight=5.0, slot_interval=2, conditioned=False)
    adapter = Adaptation(textual_inversion=options).adapt(GIVEN, backbone, FUSED)
    assert [adapter.slots_at(frame) is not None for frame in range(4)] == [True, False, True, False]
    plain, weighted = tracker_of(backbone, None), tracker_of(backbone, adapter)
    for index, frame in enumerate(CLIP.frames[:3]):
        one, other = (
            tracker.step(frame, MASK if index == 0 else None).probabilities for tracker in (plain, weighted)
        )
        assert torch.equal(one, other) == (index < 2)


def test_slots_may_be_those_of_a_layer_whose_features_are_not_propagated(checkpoint):
    only = load_backbone(checkpoint, layers=LAYERS[1:], timestep=51, precision="float32")
    options = prompt_options(slot_weight=5.0, cross_layers=LAYERS[:1], conditioned=False)
    adapter = Adaptation(textual_inversion=options).adapt(GIVEN, only, FUSED)
    plain, weighted = tracker_of(only, None), tracker_of(only, adapter)
    for index, frame in enumerate(CLIP.frames[:2]):
        labels = [tracker.step(frame, MASK if index == 0 else None) for tracker in (plain, weighted)]
    assert [comparison.layer for comparison in weighted._compared] == LAYERS[1:]
    assert not torch.equal(labels[0].probabilities, labels[1].probabilities)


def test_masks_follow_from_the_prompt(backbone):
    """The adapter changes what the tracker computes, on the first frame and later."""
    adapter = Adaptation(FEW_STEPS, prompt_options(steps=8)).adapt(GIVEN, backbone, FUSED)
    probabilities = []
    for one in (adapter, None):
        tracker = tracker_of(backbone, one)
        tracker.step(FRAME, MASK)
        probabilities.append(tracker.step(CLIP.frames[1]).probabilities)
    assert not torch.allclose(*probabilities, atol=1e-4)


@pytest.mark.parametrize("scheme", [Uniform(), Single(LAYERS[0], 1), Fixed({LAYERS[1]: 1})])
def test_without_anything_to_learn_nothing_is_computed(backbone, monkeypatch, scheme):
    monkeypatch.setattr(type(backbone), "encode", lambda *args: pytest.fail("a pass"))
    adaptation = Adaptation(scheme)
    assert not adaptation.learns
    adapter = adaptation.adapt(GIVEN, backbone, FUSED)
    expected = scheme.weights(backbone.layers)
    assert adapter.head_weights.keys() == expected.keys()
    assert all(torch.equal(adapter.head_weights[layer], expected[layer]) for layer in expected)
    assert (adapter.figures, adapter.losses, adapter.prompts, adapter.warning) == ({}, {}, {}, None)


def test_a_clip_without_a_mask_is_left_unadapted(backbone):
    adapter = Adaptation(Learned(), PromptOptions()).adapt({}, backbone, FUSED)
    assert (adapter.head_weights, adapter.prompts, adapter.figures) == ({}, {}, {})


def test_given_weights_stay_beside_a_learned_prompt(backbone):
    adapter = Adaptation(Single(LAYERS[0], 1), prompt_options()).adapt(GIVEN, backbone, FUSED)
    assert adapter.head_weights[LAYERS[0]].tolist() == [0, 1, 0, 0]
    assert adapter.prompts


def test_an_object_that_appears_later_gets_its_slot_there_and_changes_no_other(backbone):
    both = moving_square(4, SIZE, given={0: MASK, 2: LATE})
    adaptation = Adaptation(textual_inversion=prompt_options(slot_weight=0.1))
    alone, later = (adaptation.adapt(clip.given_frames(), backbone, FUSED) for clip in (CLIP, both))
    assert sorted(later.prompts) == [0, 2]
    assert torch.equal(alone.embeddings[0], later.embeddings[0])
    assert later.embeddings[1].shape == (1, 4, 24)
    assert (later.slots[0].object_ids, later.slots[2].object_ids) == ((0, 1), (0, 1, 7))
    assert torch.equal(later.prompts[0], alone.prompts[0])
    tracker = tracker_of(backbone, later)
    labels = [tracker.step(frame, both.given.get(t)) for t, frame in enumerate(both.frames)]
    assert labels[3].object_ids == (1, 7)
    assert torch.allclose(labels[3].probabilities.sum(0), torch.ones(()), atol=1e-5)


def test_all_slots_of_a_clip_are_as_short_as_its_longest_prompt_needs(backbone):
    later = {0: (FRAME, MASK), 2: (FRAME, LATE)}
    adapter = Adaptation(textual_inversion=prompt_options(tokens=36, steps=1)).adapt(later, backbone, FUSED)
    assert [embeddings.shape for embeddings in adapter.embeddings] == [(2, 25, 24), (1, 25, 24)]
    assert adapter.prompts[2].shape == (1, 77, 24)


def test_more_objects_than_a_prompt_holds_are_learned_in_several_prompts(backbone):
    ids = np.arange(1, 91, dtype=np.uint8).reshape(9, 10).repeat(8, 0).repeat(8, 1)
    clip = moving_square(2, ids.shape, given={0: ids})
    adaptation = Adaptation(textual_inversion=PromptOptions(steps=2, slot_weight=0.1))
    adapter = adaptation.adapt(clip.given_frames(), backbone, FUSED)
    assert adapter.warning is None
    assert adapter.prompts[0].shape == (2, 77, 24)
    assert sorted(adapter.slots[0].object_ids) == [0, 0, *range(1, 91)]
    tracker = tracker_of(backbone, adapter)
    tracker.step(clip.frames[0], ids)
    assert len(tracker.step(clip.frames[1]).probabilities) == 91


def odd_masks():
    single, full, border, alike = (np.zeros((48, 64), np.uint8) for _ in range(4))
    single[20, 30] = 1
    full[:] = 1
    border[:, :5] = 1
    alike[8:24, 8:24], alike[8:24, 40:56] = 1, 2
    return {"a single pixel": single, "the whole frame": full, "on the border": border, "two alike": alike}


@pytest.mark.parametrize("name", list(odd_masks()))
def test_odd_masks_are_learned_from(backbone, name):
    mask = odd_masks()[name]
    clip = moving_square(3, given={0: mask})
    clip.frames[0][8:24, 40:56] = clip.frames[0][8:24, 8:24]
    adaptation = Adaptation(Learned(steps=5), prompt_options(steps=5, slot_weight=0.1))
    adapter = adaptation.adapt(clip.given_frames(), backbone, FUSED)
    assert adapter.warning is None
    weights = torch.cat(list(adapter.head_weights.values()))
    assert torch.isfinite(weights).all()
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)
    tracker = tracker_of(backbone, adapter)
    for number, frame in enumerate(clip.frames):
        labels = tracker.step(frame, None if number else mask)
        assert torch.isfinite(labels.probabilities).all()
    assert labels.mask().shape == mask.shape


def test_an_adapter_does_not_depend_on_what_ran_before(backbone):
    adaptation = Adaptation(Learned(steps=4, views=2), prompt_options())
    other = moving_square(1, (48, 64)).given_frames()
    first = adaptation.adapt(GIVEN, backbone, FUSED)
    adaptation.adapt(other, backbone, FUSED)
    torch.rand(7)
    np.random.default_rng().random(3)
    assert same(adaptation.adapt(GIVEN, backbone, FUSED), first)
    assert same(Adaptation(Learned(steps=4, views=2), prompt_options()).adapt(GIVEN, backbone, FUSED), first)


def test_the_seed_changes_views_and_noise(backbone):
    first, other = (
        Adaptation(FEW_STEPS, prompt_options(), seed=seed).adapt(GIVEN, backbone, FUSED) for seed in (0, 1)
    )
    assert not same(first, other)


@pytest.mark.parametrize("kind", [TextualInversion, HeadWeighting])
def test_where_a_loss_diverges_the_adapter_is_unadapted_with_a_warning(backbone, monkeypatch, kind):
    exact = kind.logged
    monkeypatch.setattr(
        kind,
        "logged",
        lambda self, loss: exact(self, loss * (math.nan if len(self.losses) == 1 else 1)),
    )
    adapter = Adaptation(FEW_STEPS, prompt_options(slot_weight=0.1)).adapt(GIVEN, backbone, FUSED)
    assert adapter.warning == f"not adapted: the loss of {kind.__name__} diverged at step 2"
    assert (adapter.prompts, adapter.head_weights, adapter.slots) == ({}, {}, {})
    assert not adapter.embeddings
    assert adapter.slots_at(0) is None
    assert adapter.figures["seconds"] > 0
    name = "prompt0_frame0" if kind is TextualInversion else "head_weights"
    assert adapter.figures[f"{name}_steps"] == 2
    assert math.isnan(adapter.losses[name][-1])
    tracker = tracker_of(backbone, adapter)
    tracker.step(FRAME, MASK)
    assert torch.isfinite(tracker.step(CLIP.frames[1]).probabilities).all()
    with pytest.raises(Diverged):
        fit(kind(backbone, FRAME, MASK), steps=3)


def test_given_weights_stay_where_a_prompt_diverges(backbone, monkeypatch):
    monkeypatch.setattr(
        TextualInversion, "logged", lambda self, loss: super(type(self), self).logged(loss * math.inf)
    )
    adapter = Adaptation(Single(LAYERS[0]), prompt_options()).adapt(GIVEN, backbone, FUSED)
    assert "not adapted" in adapter.warning
    assert adapter.head_weights[LAYERS[1]].tolist() == [0] * 4


def test_head_weights_are_learned_on_a_backbone_without_prompt():
    adaptation = Adaptation(Learned(views=2, steps=5))
    backbone = ColourBackbone(2)
    adaptation.check(backbone)
    options = PropagationOptions("attention", "separate", 1.0, 5, 4)
    adapter = adaptation.adapt(GIVEN, backbone, options)
    assert adapter.warning is None
    assert sum(weights.sum().item() for weights in adapter.head_weights.values()) == pytest.approx(1)
    assert adapter.prompts == {}


def test_a_prompt_on_a_backbone_without_one_is_refused_in_one_line():
    adaptation = Adaptation(textual_inversion=PromptOptions())
    for call in (
        lambda: adaptation.check(ColourBackbone()),
        lambda: adaptation.adapt(GIVEN, ColourBackbone(), FUSED),
    ):
        with pytest.raises(OptionError, match="textual_inversion.*ColourBackbone has none") as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("adaptation", "message"),
    [
        (Adaptation(Single("nowhere")), "head_weighting.layer=nowhere"),
        (Adaptation(Learned(layer_weights={"nowhere": 1})), "head_weighting.layer_weights="),
        (Adaptation(Fixed()), "head_weighting.layer_weights=null"),
        (
            Adaptation(textual_inversion=PromptOptions(cross_layers=["nowhere"])),
            "textual_inversion.cross_layers",
        ),
        (Adaptation(textual_inversion=PromptOptions(self_layer="nowhere")), "textual_inversion.self_layer"),
    ],
)
def test_options_that_do_not_fit_the_backbone_are_refused_before_any_clip(backbone, adaptation, message):
    with pytest.raises(OptionError, match=message):
        adaptation.check(backbone)


def test_the_diffusion_loss_without_noise_is_refused_before_any_clip(checkpoint):
    backbone = load_backbone(checkpoint, layers=LAYERS, timestep=51, noise=NoNoise())
    Adaptation(textual_inversion=PromptOptions()).check(backbone)
    with pytest.raises(
        OptionError, match="textual_inversion.diffusion_weight=0.1: allowed is 0 with noise=none"
    ):
        Adaptation(textual_inversion=PromptOptions(diffusion_weight=0.1)).check(backbone)


@pytest.mark.parametrize("seed", [-1, 0.5, True])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(OptionError, match="seed"):
        Adaptation(seed=seed)


def test_only_given_frames_are_decoded(backbone):
    decoded = set()

    class Frames(list):
        def __getitem__(self, index):
            decoded.add(index)
            return super().__getitem__(index)

    clip = moving_square(4, SIZE, given={0: MASK, 2: LATE})
    object.__setattr__(clip, "frames", Frames(clip.frames))
    Adaptation(textual_inversion=prompt_options(steps=1)).adapt(clip.given_frames(), backbone, FUSED)
    assert decoded == {0, 2}
