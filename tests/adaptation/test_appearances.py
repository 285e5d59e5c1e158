"""Which objects have slots in which prompt, and prompts made of slots."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.adaptation.appearances import (
    appearances,
    initial_embeddings,
    prompts_by_frame,
    slots_by_frame,
    tokens_per_slot,
    with_slots,
)


def with_ids(ids_by_frame):
    """Frames whose masks contain these object ids, and the background."""
    return {
        frame: (np.zeros((1, 1 + len(ids), 3), np.uint8), np.uint8([[0, *ids]]))
        for frame, ids in ids_by_frame.items()
    }


masks = st.dictionaries(
    st.integers(0, 30), st.lists(st.integers(1, 255), max_size=12), min_size=1, max_size=4
)


@settings(max_examples=60, deadline=None)
@given(masks, st.integers(3, 12))
def test_every_object_has_one_slot_learned_at_the_frame_where_it_appears(ids_by_frame, length):
    appeared = appearances(with_ids(ids_by_frame), length)
    found = [number for appearance in appeared for number in appearance.object_ids]
    assert sorted(found) == sorted({number for ids in ids_by_frame.values() for number in ids})
    for appearance in appeared:
        for number in appearance.object_ids:
            assert appearance.frame == min(frame for frame, ids in ids_by_frame.items() if number in ids)
        assert appearance.slots == len(appearance.object_ids) + appearance.first


@settings(max_examples=60, deadline=None)
@given(masks, st.integers(3, 12), st.integers(1, 40))
def test_the_slots_of_a_prompt_fit_in_it(ids_by_frame, length, wanted):
    appeared = appearances(with_ids(ids_by_frame), length)
    objects = sum(len(appearance.object_ids) for appearance in appeared)
    tokens = tokens_per_slot(objects, wanted, length)
    assert 1 <= tokens <= wanted
    for prompt in {appearance.prompt for appearance in appeared}:
        members = [appearance for appearance in appeared if appearance.prompt == prompt]
        assert [appearance.first for appearance in members] == [True] + [False] * (len(members) - 1)
        assert [one.frame for one in members] == sorted(one.frame for one in members)
        assert 1 + tokens * sum(appearance.slots for appearance in members) <= length


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 100), st.integers(3, 100))
def test_slots_are_as_long_as_a_prompt_allows(objects, wanted, length):
    slots = min(objects, length - 2) + 1
    tokens = tokens_per_slot(objects, wanted, length)
    assert 1 + slots * tokens <= length
    assert tokens == wanted or 1 + slots * (tokens + 1) > length


@settings(max_examples=30, deadline=None)
@given(masks, st.integers(3, 12))
def test_prompts_hold_the_slots_of_all_objects_known_by_then(ids_by_frame, length):
    """Each slot is marked with its object's id, the background with 0."""
    appeared = appearances(with_ids(ids_by_frame), length)
    base = torch.full((1, length, 1), -1.0)
    marks = [torch.tensor([*((0,) if a.first else ()), *a.object_ids])[:, None, None] for a in appeared]
    prompts = prompts_by_frame(base, appeared, [mark.float() for mark in marks])
    assert list(prompts) == sorted({appearance.frame for appearance in appeared})
    for frame, prompt in prompts.items():
        known = [appearance for appearance in appeared if appearance.frame <= frame]
        assert prompt.shape == (len({appearance.prompt for appearance in known}), length, 1)
        for number, tokens in enumerate(prompt[..., 0].tolist()):
            ids = [i for a in known if a.prompt == number for i in a.object_ids]
            assert tokens == [-1, 0, *ids] + [-1] * (length - 2 - len(ids))


def test_an_objects_mask_given_again_adds_nothing():
    assert [a.object_ids for a in appearances(with_ids({0: [4], 3: [4, 9], 5: [9]}), 10)] == [(4,), (9,)]


def test_a_mask_without_objects_adds_nothing():
    assert appearances(with_ids({0: [], 2: []}), 77) == []


def test_prompts_of_two_frames():
    base = torch.zeros(1, 10, 2)
    appeared = appearances(with_ids({0: [4], 3: [4, 9]}), 10)
    prompts = prompts_by_frame(base, appeared, [torch.ones(2, 3, 2), torch.full((1, 3, 2), 2.0)])
    assert prompts[0][0, :, 0].tolist() == [0] + [1] * 6 + [0] * 3
    assert prompts[3][0, :, 0].tolist() == [0] + [1] * 6 + [2] * 3


def test_slots_follow_the_first_token_of_the_prompt():
    base = torch.arange(8.0).view(1, 8, 1)
    prompt = with_slots(base, torch.tensor([[[10.0], [11.0]], [[20.0], [21.0]]]))
    assert prompt.flatten().tolist() == [0, 10, 11, 20, 21, 5, 6, 7]
    assert base.flatten().tolist() == list(range(8)), "the prompt itself is not changed"


def test_gradients_of_a_prompt_reach_its_slots():
    embeddings = torch.zeros(2, 2, 1, requires_grad=True)
    with_slots(torch.zeros(1, 8, 1), embeddings).square().add(embeddings.sum()).sum().backward()
    assert embeddings.grad is not None


def test_initial_embeddings_spread_as_the_prompt():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(1, 77, 64, generator=generator) * 3 + 1
    embeddings = initial_embeddings(base, 40, 5, generator)
    assert embeddings.shape == (40, 5, 64)
    spread = (embeddings - base[0, 1]).std()
    assert spread.item() == pytest.approx(base[0, 1:].std().item(), rel=0.05)
    assert len({tuple(tokens[0].tolist()) for tokens in embeddings}) == 40, "no two slots start alike"


def test_slots_by_frame_project_the_embeddings_of_all_objects_known_by_then():
    class Keys:
        def prompt_keys(self, layer, embeddings):
            return (embeddings * {"x": 1, "y": 10}[layer])[None]

    appeared = appearances(with_ids({0: [4], 3: [9, 2]}), 10)
    slots = slots_by_frame(Keys(), ["x", "y"], appeared, [torch.ones(2, 1, 1), torch.full((2, 1, 1), 2.0)])
    assert {frame: keys.object_ids for frame, keys in slots.items()} == {0: (0, 4), 3: (0, 4, 2, 9)}
    assert slots[3].keys["x"].flatten().tolist() == [1, 1, 2, 2]
    assert slots[3].keys["y"].flatten().tolist() == [10, 10, 20, 20]


def test_every_prompt_has_a_slot_for_the_background():
    class Keys:
        def prompt_keys(self, layer, embeddings):
            return embeddings[None]

    appeared = appearances(with_ids({0: [1, 2, 3, 4, 5]}), 5)  # three objects fit
    embeddings = [torch.zeros(appearance.slots, 1, 1) for appearance in appeared]
    slots = slots_by_frame(Keys(), ["x"], appeared, embeddings)
    assert slots[0].object_ids == (0, 1, 2, 3, 0, 4, 5)
