"""The tracker, on a backbone whose tokens are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from examples import COLOUR_OPTIONS as OPTIONS
from examples import ColourBackbone, moving_square
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from datamodules.sample import Sample
from drift.backbones import load_backbone
from drift.errors import InputError, OptionError
from drift.propagation import SoftLabels, Tracker
from drift.propagation.labels import labels_of_mask, merge_given, pooled
from drift.propagation.memory import Memory, RememberedFrame


def track(clip, tracker, masks=None):
    masks = clip.given if masks is None else masks
    return [tracker.step(frame, masks.get(t)) for t, frame in enumerate(clip.frames)]


def iou(mask, truth):
    mask, truth = np.asarray(mask) > 0, truth > 0
    return (mask & truth).sum() / (mask | truth).sum()


@pytest.mark.parametrize("options", [OPTIONS, {"affinity": "attention", "radius": 4, "top_k": None}])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("size", [(48, 64), (47, 63), (64, 45)])
def test_follows_a_moving_square(options, layers, size):
    clip = moving_square(size=size)
    labels = track(clip, Tracker(ColourBackbone(layers), **options))
    for t, label in enumerate(labels):
        assert label.mask().shape == size
        assert iou(label.mask(), clip.truth[t]) > 0.6
        assert torch.allclose(label.probabilities.sum(0), torch.ones(()), atol=1e-5)


def test_given_masks_come_back_to_the_pixel():
    clip = moving_square(size=(47, 63))
    label = Tracker(ColourBackbone(), **OPTIONS).step(clip.frames[0], clip.given[0])
    assert np.array_equal(label.mask(), clip.given[0])


def test_never_needs_a_later_frame_and_keeps_no_state_between_clips(checkpoint):
    backbone = load_backbone(str(checkpoint), layers=["up_blocks.2.attentions.0"], timestep=51)
    first, second = moving_square(4), moving_square(3, size=(40, 56))
    alone = [label.probabilities for label in track(first, Tracker(backbone))]
    track(second, Tracker(backbone))
    after = [label.probabilities for label in track(first, Tracker(backbone))]
    assert all(torch.equal(a, b) for a, b in zip(alone, after, strict=True))
    tracker = Tracker(backbone)
    prefix = [tracker.step(first.frames[t], first.given.get(t)).probabilities for t in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(alone, prefix, strict=False))


def test_objects_may_appear_later():
    clip = moving_square(5)
    late = np.zeros((48, 64), np.uint8)
    late[36:46, 40:60] = 7
    labels = track(clip, Tracker(ColourBackbone(), **OPTIONS), {0: clip.given[0], 2: late})
    assert [label.object_ids for label in labels] == [(1,), (1,), (1, 7), (1, 7), (1, 7)]
    assert [len(label.probabilities) for label in labels] == [2, 2, 3, 3, 3]
    assert iou(labels[2].mask() == 7, late) == 1
    assert iou(labels[2].mask() == 1, clip.truth[2]) > 0.6, "the first object is propagated meanwhile"
    assert set(np.unique(labels[4].mask())) <= {0, 1, 7}


@pytest.mark.parametrize("options", [{}, {"memory_frames": 1}, {"top_k": 1}])
def test_objects_of_a_later_mask_are_followed_as_if_tracking_began_there(options):
    (clip,) = Sample(max_side=216).predict_dataloader()
    frames = [clip.reduced_frame(clip.frames[t]) for t in range(9)]
    masks = {t: clip.reduced_mask(clip.truth[t]) for t in (0, 5)}
    first = np.where(masks[0] == 1, 1, 0).astype(np.uint8)
    both, later = (Tracker(ColourBackbone(), **OPTIONS | options) for _ in range(2))
    for t, frame in enumerate(frames):
        found = both.step(frame, {0: first, 5: masks[5]}.get(t))
        alone = later.step(frame, masks[5]) if t == 5 else later.step(frame) if t > 5 else None
    sizes = [int((found.mask() == number).sum()) for number in (1, 2, 3)]
    expected = [int((alone.mask() == number).sum()) for number in (1, 2, 3)]
    assert min(expected) > 100
    assert all(0.8 < size / wanted < 1.25 for size, wanted in zip(sizes, expected, strict=True))
    assert torch.allclose(found.probabilities.sum(0), torch.ones(()), atol=1e-5)


def test_a_mask_on_a_later_frame_corrects_an_object():
    clip = moving_square(4)
    moved = np.roll(clip.truth[2], 6, axis=0)
    labels = track(clip, Tracker(ColourBackbone(), **OPTIONS), {0: clip.given[0], 2: moved})
    assert np.array_equal(labels[2].mask(), moved)


def test_an_empty_mask_on_a_later_frame_changes_nothing():
    clip = moving_square(3)
    plain = track(clip, Tracker(ColourBackbone(), **OPTIONS))
    empty = np.zeros((48, 64), np.uint8)
    with_empty = track(clip, Tracker(ColourBackbone(), **OPTIONS), {0: clip.given[0], 1: empty})
    assert all(torch.equal(a.probabilities, b.probabilities) for a, b in zip(plain, with_empty, strict=True))


@pytest.mark.parametrize("size", [(36, 52), (132, 44), (20, 20)])
def test_layers_three_times_halved_line_up(size):
    tracker = Tracker(ColourBackbone(4), **OPTIONS)
    clip = moving_square(2, size=(max(size[0], 40), max(size[1], 40)))
    frames = [frame[: size[0], : size[1]] for frame in clip.frames]
    tracker.step(frames[0], np.ones(size, np.uint8))
    assert tracker.step(frames[1]).mask().shape == size


def test_an_object_that_left_is_absent():
    clip = moving_square(3)
    ground = np.full((48, 64, 3), 40, np.uint8)
    tracker = Tracker(ColourBackbone(), **OPTIONS | {"min_confidence": 0.5, "top_k": None, "radius": None})
    tracker.step(clip.frames[0], clip.given[0])
    assert not tracker.step(ground).mask().any()


def test_memory_does_not_grow_with_the_clip():
    clip = moving_square(9)
    tracker = Tracker(ColourBackbone(), **OPTIONS)
    lengths, indices = [], []
    for t, frame in enumerate(clip.frames):
        tracker.step(frame, clip.given.get(t))
        lengths.append(len(tracker.memory))
        indices = [remembered.index for remembered in tracker.memory.frames()]
    assert lengths == [1, 2, 3, 3, 3, 3, 3, 3, 3]
    assert indices == [0, 7, 8], "the given frame for ever, then the last two"


def test_without_recent_frames_only_the_given_one_is_attended():
    clip = moving_square(3)
    tracker = Tracker(ColourBackbone(), **OPTIONS | {"memory_frames": 0})
    labels = track(clip, tracker)
    assert len(tracker.memory) == 1
    assert iou(labels[2].mask(), clip.truth[2]) > 0.6


def test_attention_is_over_the_frames_that_were_attended():
    clip = moving_square(5)
    tracker = Tracker(ColourBackbone(), **OPTIONS | {"temperature": 0.001})
    tracker.step(clip.frames[0], clip.given[0])
    assert tracker.attention([(0, 0)]) == ([], {})
    for frame in clip.frames[1:]:
        tracker.step(frame)
    row, column = (int(x.mean()) for x in np.nonzero(clip.truth[4]))
    indices, layers = tracker.attention([(0, 0), (row, column)])
    assert list(layers) == ["0"]
    weights = layers["0"][1]
    assert indices == [0, 2, 3]
    assert weights.shape == (3, 12, 16)
    assert weights.sum().item() == pytest.approx(1, abs=1e-4)
    for index, weight in zip(indices, weights, strict=True):
        on_object = F.interpolate(weight[None, None], scale_factor=4)[0, 0][clip.truth[index] > 0].sum() / 16
        assert on_object > 0.9 * weight.sum()


def test_heads_joint_are_the_mean_of_logits():
    clip = moving_square(3)
    separate = track(
        clip, Tracker(ColourBackbone(), affinity="attention", temperature=1.0, radius=4, top_k=None)
    )
    joint = track(
        clip,
        Tracker(ColourBackbone(), affinity="attention", heads="joint", temperature=1.0, radius=4, top_k=None),
    )
    # two equal heads: the mean of their logits is that of either
    assert torch.allclose(separate[2].probabilities, joint[2].probabilities, atol=1e-5)


@pytest.mark.parametrize(
    ("frame", "mask", "message"),
    [
        (np.zeros((48, 64, 3), np.uint8), None, "no mask was given"),
        (np.zeros((48, 64, 3), np.uint8), np.zeros((48, 64), np.uint8), "no object"),
        (np.zeros((48, 64, 3), np.uint8), np.ones((40, 64), np.uint8), "must be equal"),
        (np.zeros((48, 64), np.uint8), np.ones((48, 64), np.uint8), "height, width, 3"),
    ],
)
def test_a_bad_first_frame_is_refused(frame, mask, message):
    with pytest.raises(InputError, match=message):
        Tracker(ColourBackbone(), **OPTIONS).step(frame, mask)


def test_frames_of_another_size_are_refused():
    tracker = Tracker(ColourBackbone(), **OPTIONS)
    tracker.step(np.zeros((48, 64, 3), np.uint8), np.ones((48, 64), np.uint8))
    with pytest.raises(InputError, match="one size"):
        tracker.step(np.zeros((64, 48, 3), np.uint8))


@pytest.mark.parametrize(
    "option",
    [
        {"affinity": "x"},
        {"heads": "x"},
        {"temperature": -1},
        {"top_k": 0},
        {"radius": -1},
        {"memory_frames": -1},
        {"long_term_frames": -1},
        {"long_term_interval": 0},
        {"background_weight": 0},
        {"min_confidence": "x"},
    ],
)
def test_options_out_of_range_are_named(option):
    with pytest.raises(OptionError, match=next(iter(option))):
        Tracker(ColourBackbone(), **option)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.integers(0, 99))
def test_labels_of_a_mask_are_shares_of_pixels(height, width, stride, seed):
    mask = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, (height, width), dtype=np.uint8))
    shares = labels_of_mask(mask, [1, 2, 3], stride)
    assert shares.shape == (3, -(-height // stride), -(-width // stride))
    inside = mask[:stride, :stride] if height >= stride and width >= stride else None
    if inside is not None:
        assert shares[1, 0, 0].item() == pytest.approx((inside == 2).float().mean().item(), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 5), st.integers(0, 99))
def test_merged_labels_sum_to_one_and_hold_what_was_given(channels, seed):
    generator = torch.Generator().manual_seed(seed)
    propagated = torch.rand(channels, 6, 7, generator=generator).softmax(0)
    given_share = torch.rand(1, 6, 7, generator=generator).round()
    merged = merge_given(propagated, given_share, [1])
    assert torch.equal(merged[1:2], given_share)
    assert torch.allclose(merged.sum(0), torch.ones(6, 7), atol=1e-5)
    others = [0, *range(2, channels)]
    ratio = merged[others] * propagated[[0]] - merged[[0]] * propagated[others]
    assert torch.allclose(ratio, torch.zeros(()), atol=1e-5), "the rest keeps its proportions"


def test_pooling_to_a_coarser_grid_means_over_what_is_there():
    labels = torch.rand(2, 5, 7)
    coarse = pooled(labels, (3, 4))
    assert coarse.shape == (2, 3, 4)
    assert torch.allclose(coarse[:, 2, 3], labels[:, 4, 6])
    assert torch.allclose(coarse[:, 0, 0], labels[:, :2, :2].mean((1, 2)))
    assert pooled(labels, (5, 7)) is labels


def test_absent_objects_leave_the_mask_and_the_rest_stays():
    probabilities = torch.tensor([[[0.5, 0.2]], [[0.1, 0.41]], [[0.4, 0.39]]])
    sure = SoftLabels(probabilities, (3, 9), (1, 2), 1)
    assert sure.mask().tolist() == [[0, 3]]
    strict = SoftLabels(probabilities, (3, 9), (1, 2), 1, min_confidence=0.42)
    assert strict.mask().tolist() == [[0, 0]]


def test_the_memory_keeps_soft_labels_or_hard_ones():
    clip = moving_square(size=(47, 63))
    options = {**OPTIONS, "temperature": 0.5, "top_k": 9}  # soft enough that the two differ
    soft, hard = (Tracker(ColourBackbone(2), **options, memory_labels=kind) for kind in ("soft", "hard"))
    predicted = [track(clip, tracker) for tracker in (soft, hard)]
    assert torch.equal(predicted[0][0].probabilities, predicted[1][0].probabilities)
    for kept in hard.memory.frames():
        finest = max(kept.labels, key=len)
        assert set(finest.unique().tolist()) == {0.0, 1.0}
        assert (finest.sum(-1) == 1).all()
    first = predicted[1][0].probabilities
    assert torch.equal(hard.memory.frames()[0].labels[0].argmax(-1), first.argmax(0))
    for kept in soft.memory.frames():
        assert torch.equal(kept.labels[0], predicted[0][kept.index].probabilities.permute(1, 2, 0))
    last = [labels[-1].probabilities for labels in predicted]
    assert not torch.allclose(*last, atol=1e-3)
    with pytest.raises(OptionError, match="memory_labels=sharp: allowed is soft, hard"):
        Tracker(ColourBackbone(), memory_labels="sharp")


def test_memory_rejects_lengths_that_make_no_sense():
    with pytest.raises(OptionError, match="memory_frames"):
        Memory(-1, 1)
    with pytest.raises(OptionError, match="given_frames"):
        Memory(1, 0)
    with pytest.raises(OptionError, match="long_term_frames"):
        Memory(1, 1, -1)
    with pytest.raises(OptionError, match="long_term_interval"):
        Memory(1, 1, 1, 0)


@given(
    frames=st.integers(0, 40),
    recent=st.integers(0, 4),
    long_term=st.integers(0, 3),
    interval=st.integers(1, 5),
)
def test_memory_keeps_the_newest_frames_and_older_ones_at_an_interval(frames, recent, long_term, interval):
    def added(memory, indices):
        for index in indices:
            memory.add(
                RememberedFrame(index, index == 0, (), (torch.zeros(2, 2, 2),), (torch.zeros(2, 2, 0),))
            )
        return [frame.index for frame in memory.frames()]

    predicted = list(range(1, frames + 1))
    newest = predicted[len(predicted) - min(recent, len(predicted)) :]
    older = [index for index in predicted[: len(predicted) - len(newest)] if index % interval == 0]
    expected = [0, *older[len(older) - min(long_term, len(older)) :], *newest]
    memory = Memory(recent, 1, long_term, interval)
    assert added(memory, [0, *predicted]) == expected
    assert len(memory) == len(expected)
    assert added(Memory(recent, 1, long_term, interval), expected) == expected, "as a resumed run adds them"


@given(
    steps=st.lists(
        st.one_of(st.just("predict"), st.sampled_from([0, 0, 1, 2]), st.just("remove")), max_size=40
    ),
    limit=st.integers(1, 4),
)
def test_memory_keeps_the_first_given_frame_of_each_object_and_the_newest_others(steps, limit):
    memory, first = Memory(2, limit), []  # of each object the frame that gave it
    for index, step in enumerate(steps):
        if step == "remove" and first:
            first.pop(0)
            memory.forget(1)
        elif step not in ("remove", "predict"):
            first += [index] * step
        is_given = step not in ("remove", "predict")
        labels = torch.zeros(2, 2, 1 + len(first))
        memory.add(RememberedFrame(index, is_given, (), (labels,), (torch.zeros(2, 2, 0),)))
        kept = [frame.index for frame in memory.frames() if frame.given]
        assert set(first) <= set(kept)
        assert not is_given or index in kept
        assert len(kept) <= max(limit, len(set(first)) + 1)


def test_memory_frames_abstain_for_objects_that_they_do_not_know():
    early = RememberedFrame(0, True, (), (torch.ones(2, 2, 2),), (torch.ones(2, 2, 1),))
    late = RememberedFrame(5, True, (), (torch.ones(2, 2, 4),), (torch.ones(2, 2, 1),))
    memory = Memory(2, 8)
    memory.add(early)
    memory.add(late)
    assert memory.epochs() == [((2, 1), [early, late]), ((4, 1), [late])]
    assert late.labels_of(0, (2, 1))[0, 0].tolist() == [3, 1, 1], "later objects count as background"
    assert late.labels_of(0, (4, 1))[0, 0].tolist() == [1, 1, 1, 1, 1]


def test_a_light_background_makes_up_for_what_objects_lose():
    clip = moving_square(size=(47, 63))
    options = {**OPTIONS, "temperature": 0.5, "top_k": 9}
    even, light = (track(clip, Tracker(ColourBackbone(2), **options, background_weight=w)) for w in (1, 0.8))
    for one, other in zip(even[1:], light[1:], strict=True):
        assert torch.allclose(other.probabilities.sum(0), torch.ones(()))
        assert (other.probabilities[1:] >= one.probabilities[1:] - 1e-6).all()
        assert other.probabilities[1:].sum() > one.probabilities[1:].sum()
    expected = even[1].probabilities * torch.tensor([0.8, 1.0])[:, None, None]
    assert torch.allclose(light[1].probabilities, expected / expected.sum(0), atol=1e-6)
