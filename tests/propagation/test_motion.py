"""Neighbourhoods that follow objects: displacements, objects that jump, leave and return."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from examples import COLOUR_OPTIONS as OPTIONS
from examples import ColourBackbone
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from drift.errors import InputError
from drift.propagation import Tracker
from drift.propagation.motion import (
    displacement,
    expected_labels,
    frame_similarity,
    is_scene_cut,
    lookalikes,
    object_offsets,
    positions_of,
    with_motion_prior,
)

SIZE = 96, 160


def picture(*places, colours=((250, 200, 30), (30, 200, 250))):
    """Textured squares of 16 pixels on a dark textured ground, and their mask; None for a hidden square."""
    random = np.random.default_rng(0)
    frame = random.integers(0, 80, (*SIZE, 3), dtype=np.uint8)
    mask = np.zeros(SIZE, np.uint8)
    for object_id, (place, colour) in enumerate(zip(places, colours, strict=False), start=1):
        if place is not None:
            inside = tuple(slice(start, start + 16) for start in place)
            frame[inside], mask[inside] = colour, object_id
    return frame, mask


def tracked(places, **options):
    """Masks of a clip in which the objects are at `places`, and the true ones."""
    tracker, pairs = Tracker(ColourBackbone(), **OPTIONS | options), [picture(*place) for place in places]
    masks = [
        tracker.step(frame, mask if t == 0 else None).mask().numpy() for t, (frame, mask) in enumerate(pairs)
    ]
    return masks, [mask for _, mask in pairs]


def iou(mask, truth, object_id=1):
    mask, truth = mask == object_id, truth == object_id
    return (mask & truth).sum() / max((mask | truth).sum(), 1)


@settings(max_examples=40, deadline=None)
@given(down=st.integers(-6, 6), right=st.integers(-9, 9), seed=st.integers(0, 99))
def test_the_displacement_of_a_texture_is_found(down, right, seed):
    generator = torch.Generator().manual_seed(seed)
    source, target = (F.normalize(torch.randn(24, 40, 16, generator=generator), dim=-1) for _ in range(2))
    target[8 + down : 14 + down, 12 + right : 20 + right] = source[8:14, 12:20]
    probability = torch.zeros(48, 80)
    probability[16:28, 24:40] = 1
    assert displacement(target, source, probability).tolist() == [2 * down, 2 * right]


def test_positions_are_centres_of_mass_where_an_object_is_shown():
    labels = torch.zeros(2, 10, 12, 3)
    labels[:, 2:5, 6:9, 1] = 0.4  # an object that is never probable has a position nonetheless
    labels[1, :, :, 1] *= 0.2
    labels[1, 7, 1, 2] = 1
    labels[..., 0] = 1 - labels.sum(-1)
    positions = positions_of(list(labels))
    assert positions[0, 0].tolist() == [3, 7]
    assert positions[1, 1].tolist() == [7, 1]
    assert positions[[0, 1], [1, 0]].isnan().all()


def test_nothing_moves_while_objects_stay():
    tokens = torch.randn(2, 20, 30, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(20, 30, 2)
    labels[5:9, 5:12, 1] = 1
    assert object_offsets(tokens, [tokens, tokens], [labels, labels], slack=2) is None


def test_only_tiles_near_a_moved_object_look_where_it_was():
    still, moved = (
        F.avg_pool2d(torch.tensor(f).permute(2, 0, 1)[None] / 255, 2) - 0.5
        for f in (picture((40, 20))[0], picture((40, 76))[0])
    )
    labels = torch.zeros(48, 80, 2)
    labels[20:28, 10:18, 1] = 1
    offsets = object_offsets(moved.permute(0, 2, 3, 1), [still.permute(0, 2, 3, 1)], [labels], slack=2)
    assert offsets is not None
    assert offsets[0].shape == (6, 10, 2)
    assert offsets[0][3, 5].tolist() == [0, -28]
    assert offsets[0][3, 1].tolist() == [0, 0]
    assert offsets[0][0, 9].tolist() == [0, 0]


def test_tiles_near_several_objects_keep_their_place():
    tokens = [
        F.avg_pool2d(torch.tensor(picture(*places)[0]).permute(2, 0, 1)[None] / 255, 2).permute(0, 2, 3, 1)
        - 0.5
        for places in (((40, 20), (40, 140)), ((40, 60), (40, 100)))
    ]
    labels = torch.zeros(48, 80, 3)
    labels[20:28, 10:18, 1] = labels[20:28, 70:78, 2] = 1
    offsets = object_offsets(tokens[1], [tokens[0]], [labels], slack=2)
    assert offsets is not None
    assert offsets[0][3, 3].tolist() == [0, -20]
    assert offsets[0][3, 5].tolist() == [0, 0], "both are near"
    assert offsets[0][3, 7].tolist() == [0, 20]


@pytest.mark.parametrize("affinity", ["cosine", "attention"])
@pytest.mark.parametrize("layers", [1, 2])
def test_an_object_faster_than_the_radius_is_followed(affinity, layers):
    places = [[(10 + 12 * t, 10 + 28 * t)] for t in range(5)]  # 3 and 7 tokens per frame
    pairs = [picture(*place) for place in places]
    found = {}
    for follow in (False, True):
        tracker = Tracker(ColourBackbone(layers), **OPTIONS | {"affinity": affinity, "follow": follow})
        masks = [tracker.step(f, m if t == 0 else None).mask().numpy() for t, (f, m) in enumerate(pairs)]
        found[follow] = [iou(mask, truth) for mask, (_, truth) in zip(masks, pairs, strict=True)]
    assert found[False][-1] < 0.1, "the clip would not need it"
    assert layers == 2 or min(found[True]) > 0.7
    assert np.mean(found[True]) > np.mean(found[False]) + 0.15


def test_each_of_two_objects_is_followed_by_itself():
    places = [[(10, 10 + 28 * t), (70, 130 - 28 * t)] for t in range(5)]
    masks, truth = tracked(places, follow=True)
    for object_id in (1, 2):
        assert min(iou(m, t, object_id) for m, t in zip(masks, truth, strict=True)) > 0.7


@pytest.mark.parametrize("hidden", [2, 10])
def test_an_object_that_returns_elsewhere_is_found(hidden):
    places = [[(10, 10)], [(10, 14)], *[[None]] * hidden, *[[(70, 130)]] * 4]
    masks, truth = tracked(places, follow=True)
    assert not any(mask.any() for mask in masks[2:-4]), "nothing is invented while it is hidden"
    assert min(iou(m, t) for m, t in zip(masks[-3:], truth[-3:], strict=True)) > 0.7
    lost, _ = tracked(places)
    assert iou(lost[-1], truth[-1]) < 0.1, "the clip would not need it"


def test_of_two_equal_places_the_nearer_one_is_taken():
    token = F.normalize(torch.ones(8), dim=0)
    source, target = torch.zeros(2, 24, 40, 8)
    source[8:14, 12:20] = target[8:14, 17:25] = target[8:14, 2:10] = token
    probability = torch.zeros(48, 80)
    probability[16:28, 24:40] = 1
    assert displacement(target, source, probability).tolist() == [0, 10]


@pytest.mark.parametrize("place", [(0, 0), (80, 144)])
def test_an_object_at_the_edge_and_one_that_fills_the_frame(place):
    masks, truth = tracked([[place]] * 3, follow=True)
    assert iou(masks[-1], truth[-1]) > 0.7
    tracker = Tracker(ColourBackbone(), **OPTIONS | {"follow": True})
    frame = picture()[0]
    tracker.step(frame, np.ones(SIZE, np.uint8))
    assert tracker.step(frame).mask().all()


def test_an_object_smaller_than_a_token_is_followed():
    dot = np.zeros(SIZE, np.uint8)
    dot[41, 41] = 1
    tracker = Tracker(ColourBackbone(), **OPTIONS | {"follow": True})
    frame = picture()[0]
    tracker.step(frame, dot)
    assert tracker.step(frame).probabilities[1].max() > 0


def test_a_removed_object_is_gone_and_the_others_stay():
    places = [[(10, 10 + 4 * t), (70, 130 - 4 * t)] for t in range(4)]
    pairs = [picture(*place) for place in places]
    tracker, only = (Tracker(ColourBackbone(), **OPTIONS) for _ in range(2))
    for t, (frame, mask) in enumerate(pairs):
        if t == 2:
            tracker.remove(1)
        labels = tracker.step(frame, mask if t == 0 else None)
        alone = only.step(frame, np.where(mask == 2, mask, 0).astype(np.uint8) if t == 0 else None)
    assert tracker.object_ids == (2,)
    assert set(np.unique(labels.mask())) == {0, 2}
    assert torch.allclose(labels.probabilities, alone.probabilities, atol=1e-5)
    tracker.step(*pairs[0])
    assert tracker.object_ids == (2, 1), "it can be added again"


def test_an_object_can_be_removed_that_frames_in_memory_do_not_know():
    frames = [picture((10, 10), (70, 130))] * 4
    tracker = Tracker(ColourBackbone(), **OPTIONS)
    tracker.step(frames[0][0], (frames[0][1] == 1).astype(np.uint8))
    tracker.step(*frames[1])
    tracker.remove(2)
    assert iou(tracker.step(frames[2][0]).mask().numpy(), frames[2][1]) > 0.7
    with pytest.raises(InputError, match=r"object 2 is not tracked; the tracked objects are: 1"):
        tracker.remove(2)


def test_nothing_is_invented_after_a_cut_to_another_scene():
    tracker = Tracker(ColourBackbone(), **OPTIONS | {"follow": True, "background_weight": 0.98})
    tracker.step(*picture((40, 60)))
    sea = np.random.default_rng(1).integers(0, 80, (*SIZE, 3), dtype=np.uint8)
    sea[..., 2] += 100
    assert not any(tracker.step(sea).mask().any() for _ in range(6))


def test_still_frames_keep_the_mask():
    masks, truth = tracked([[(40, 60)]] * 8, follow=True)
    assert np.array_equal(masks[-1], masks[1])
    assert iou(masks[-1], truth[0]) > 0.97


def test_objects_are_lost_at_a_cut_and_found_when_the_scene_returns():
    places = [[(40, 30 + 2 * t)] for t in range(7)]
    tracker = Tracker(ColourBackbone(), **OPTIONS | {"detect_cuts": True, "follow": True})
    for t, place in enumerate(places):
        frame, mask = picture(*place)
        other = t in (3, 4)
        shown = 255 - picture((40, 90))[0] if other else frame
        found = tracker.step(shown, mask if t == 0 else None).mask().numpy()
        if other:
            assert not found.any()
        else:
            assert iou(found, mask) > 0.7, t


def test_without_a_cut_nothing_changes():
    places = [[(40, 10 + 12 * t), (10, 100 - 9 * t)] for t in range(7)]
    masks = [tracked(places, follow=True, detect_cuts=detect)[0] for detect in (False, True)]
    for one, other in zip(*masks, strict=True):
        assert np.array_equal(one, other)


@given(seed=st.integers(0, 99), noise=st.floats(0, 0.5))
def test_frames_of_one_scene_are_no_cut_and_those_of_two_are(seed, noise):
    generator = torch.Generator().manual_seed(seed)
    scenes = (
        torch.randn(2, 2, 24, 32, 16, generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3)
    )
    before, newest, after = (
        scenes[0] + noise * torch.randn(scenes[0].shape, generator=generator) for _ in range(3)
    )
    assert not is_scene_cut(after, newest, before)
    assert is_scene_cut(scenes[1], newest, before)


def test_the_similarity_is_the_mean_of_the_best_cosines():
    generator = torch.Generator().manual_seed(0)
    keys, earlier = torch.randn(2, 3, 8, 12, 5, generator=generator)
    pooled = [
        frame.reshape(3, 2, 4, 3, 4, 5).mean((2, 4)).permute(1, 2, 0, 3).reshape(6, 15).numpy()
        for frame in (keys, earlier)
    ]
    cosines = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in pooled[1]] for a in pooled[0]]
    assert float(frame_similarity(keys, earlier)) == pytest.approx(np.max(cosines, 1).mean(), abs=1e-5)


TWINS = (250, 200, 30), (250, 200, 30)


def crossing_twins(**options):
    """Two squares of one colour that pass each other and overlap: for each frame, the mask and the true one."""
    places = [[(34, 10 + 6 * t), (42, 120 - 6 * t)] for t in range(19)]
    pairs = [picture(*place, colours=TWINS) for place in places]
    tracker = Tracker(ColourBackbone(), **OPTIONS | {"follow": True, "memory_frames": 4} | options)
    masks = [
        tracker.step(frame, mask if t == 0 else None).mask().numpy() for t, (frame, mask) in enumerate(pairs)
    ]
    return list(zip(masks, (mask for _, mask in pairs), strict=True))


def test_twins_that_cross_are_told_apart_by_their_motion():
    without, last = (crossing_twins(motion_prior=prior)[-1] for prior in (False, True))
    assert min(iou(*without, object_id) for object_id in (1, 2)) < 0.5, "the clip would not need it"
    assert min(iou(*last, object_id) for object_id in (1, 2)) > 0.7


def test_the_motion_prior_changes_nothing_for_objects_that_differ():
    places = [[(34, 10 + 6 * t), (42, 120 - 6 * t)] for t in range(19)]
    masks = [tracked(places, follow=True, motion_prior=prior)[0] for prior in (False, True)]
    assert all(np.array_equal(one, other) for one, other in zip(*masks, strict=True))


def test_objects_look_alike_if_their_mean_tokens_are_similar():
    generator = torch.Generator().manual_seed(0)
    keys, labels = torch.randn(2, 6, 9, 4, generator=generator), torch.zeros(6, 9, 5)
    keys[:, 3:, :3] = keys[:, :3, :3]
    keys[:, 3:, 3:6] = -keys[:, :3, 3:6]
    for channel, (rows, columns) in enumerate(
        [(slice(3), slice(3)), (slice(3, 6), slice(3)), (slice(3), slice(3, 6))], start=1
    ):
        labels[rows, columns, channel] = 1
    assert lookalikes(keys, labels).tolist() == [True, True, False, False], "the last one is not shown"


@settings(max_examples=40, deadline=None)
@given(down=st.integers(-2, 2), right=st.integers(-2, 2), frames=st.integers(2, 8), hidden=st.booleans())
def test_labels_are_expected_where_a_steady_motion_takes_them(down, right, frames, hidden):
    labels = torch.zeros(frames + 1, 40, 60, 2)
    for t in range(frames + 1):
        top, left = 17 + down * t, 25 + right * t
        labels[t, top : top + 4, left : left + 6, 1] = 1
    if hidden and frames > 2:
        labels[frames - 2] = 0
    expected = expected_labels(list(labels[:frames]), range(10, 10 + frames))
    assert torch.equal(expected[0], labels[frames, ..., 1])


def test_an_object_seen_once_is_expected_to_stay():
    labels = torch.zeros(1, 12, 14, 3)
    labels[0, 3:5, 2:6, 1] = 1
    expected = expected_labels(list(labels), [7])
    assert torch.equal(expected[0], labels[0, ..., 1])
    assert not expected[1].any(), "the object is not shown"


@given(seed=st.integers(0, 99))
def test_only_the_shares_of_lookalikes_change(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randn(5, 8, 12, generator=generator).softmax(0)
    expected = torch.rand(4, 8, 12, generator=generator)
    alike = torch.tensor([True, False, True, False])
    changed = with_motion_prior(labels, expected, alike)
    assert torch.equal(changed[[0, 2, 4]], labels[[0, 2, 4]])
    assert torch.allclose(changed[[1, 3]].sum(0), labels[[1, 3]].sum(0), atol=1e-6)
    certain = torch.zeros(4, 8, 12)
    certain[0] = 1
    assert (with_motion_prior(labels, certain, alike)[1] > 0.75 * labels[[1, 3]].sum(0)).all()
