"""Refinement: gates, overlaps, given masks, and feedback to the tracker's memory."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from examples import moving_square
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.yardsticks import ColourPatches
from drift.propagation import Tracker
from drift.propagation.labels import SoftLabels
from drift.refinement.gates import Gates
from drift.refinement.grabcut import GrabCutProposer
from drift.refinement.refinement import Proposals, Refinement, merge

SIZE = (32, 48)


class FixedProposer:
    """Proposes fixed masks, and records the requested objects."""

    def __init__(self, *masks: torch.Tensor) -> None:
        self.masks = torch.stack(masks).float()
        self.requests: list[list[int]] = []

    def grid(self, frame_size):
        return frame_size

    def propose(self, frame, probabilities, objects):
        self.requests.append(objects)
        masks = self.masks[[n - 1 for n in objects]][:, None]
        return Proposals(masks * 0.98 + 0.01, torch.ones(len(objects), 1))


def box(top: int, left: int, bottom: int, right: int) -> torch.Tensor:
    mask = torch.zeros(SIZE)
    mask[top:bottom, left:right] = 1
    return mask


def soft_labels(*masks: torch.Tensor, given: torch.Tensor | None = None) -> SoftLabels:
    """Labels at stride 1 from masks of probabilities."""
    objects = torch.stack(masks)
    probabilities = torch.cat([1 - objects.sum(0, keepdim=True), objects])
    return SoftLabels(probabilities, tuple(range(1, len(masks) + 1)), SIZE, 1, given=given)


FRAME = torch.zeros(*SIZE, 3, dtype=torch.uint8)


def refine(proposer: FixedProposer, labels: SoftLabels, **gates: float):
    return Refinement(proposer, gates=Gates(**gates), feedback=False).refine(FRAME, labels)


def test_an_accepted_mask_replaces_the_propagated_one():
    rough, exact = box(8, 8, 24, 24), box(9, 8, 24, 25)
    refined = refine(FixedProposer(exact), soft_labels(rough * 0.9))
    assert refined.outcomes == ("refined",)
    assert torch.equal(refined.probabilities[1] > 0.5, exact > 0)


def test_a_mask_of_the_whole_frame_is_rejected_for_the_propagated_one():
    labels = soft_labels(box(8, 8, 16, 16) * 0.8)
    refined = refine(FixedProposer(torch.ones(SIZE)), labels)
    assert refined.outcomes == ("jumps",)
    assert torch.equal(refined.probabilities, labels.upsampled())


def test_a_lost_object_is_not_proposed_and_stays_empty():
    proposer = FixedProposer(torch.ones(SIZE), box(4, 4, 12, 12))
    refined = refine(proposer, soft_labels(box(0, 0, 9, 9) * 0.3, box(4, 4, 12, 12) * 0.6))
    assert proposer.requests == [[2]]
    assert sorted(refined.outcomes) == ["lost", "refined"]
    assert not (refined.probabilities[1] > 0.5).any()


def test_objects_with_a_given_mask_are_not_refined():
    given = torch.zeros(SIZE, dtype=torch.uint8)
    given[4:12, 4:12] = 1
    proposer = FixedProposer(torch.ones(SIZE), box(18, 20, 30, 40))
    refined = refine(proposer, soft_labels(given.float(), box(18, 20, 30, 41) * 0.9, given=given))
    assert proposer.requests == [[2]]
    assert refined.outcomes == ("refined",)


def test_an_object_below_min_confidence_stays_absent_beside_a_refined_one():
    rival = box(4, 20, 20, 40)
    labels = soft_labels(box(4, 4, 20, 20) * 0.45 + rival * 0.3, rival * 0.6 + box(4, 4, 20, 20) * 0.35)
    refined = refine(FixedProposer(torch.ones(SIZE), rival), replace(labels, min_confidence=0.5))
    assert sorted(refined.outcomes) == ["lost", "refined"]
    shown = replace(labels, min_confidence=0.5, refined=refined.probabilities).mask()
    assert set(shown.unique().tolist()) == {0, 2}


def test_nothing_is_proposed_without_a_visible_object():
    proposer = FixedProposer(torch.ones(SIZE))
    labels = soft_labels(box(0, 0, 4, 4) * 0.1)
    assert refine(proposer, labels).outcomes == ("lost",)
    assert proposer.requests == []


def test_overlaps_go_to_the_object_of_higher_propagated_probability():
    left, right = box(4, 4, 20, 24), box(4, 20, 20, 40)
    overlapping = FixedProposer(box(4, 4, 20, 26), box(4, 18, 20, 40))
    labels = soft_labels(left * 0.9 - box(4, 20, 20, 24) * 0.6, right * 0.9 - box(4, 20, 20, 24) * 0.3)
    refined = refine(overlapping, labels)
    ids = refined.probabilities.argmax(0)
    assert set(ids[4:20, 20:24].unique().tolist()) == {2}
    assert set(ids[4:20, 18:20].unique().tolist()) == {1}


@given(st.integers(0, 2**16), st.integers(1, 4))
def test_probabilities_sum_to_one_and_no_two_objects_share_a_pixel(seed, objects):
    random = torch.Generator().manual_seed(seed)
    propagated = (torch.randn(1 + objects, 6, 7, generator=random) * 2).softmax(0)
    channels = [n for n in range(1, objects + 1) if n % 2]
    refined = torch.rand(len(channels), 6, 7, generator=random)
    out = merge(propagated, refined, channels)
    assert torch.allclose(out.sum(0), torch.ones(6, 7))
    assert ((out[1:] > 0).sum(0) <= 1).all()
    assert (out >= 0).all()


def test_a_single_object_has_the_refined_probabilities():
    propagated = torch.rand(1, 5, 5)
    refined = torch.rand(1, 5, 5)
    out = merge(torch.cat([1 - propagated, propagated]), refined, [1])
    assert torch.allclose(out[1:], refined)


@pytest.mark.parametrize("feedback", [True, False])
def test_the_memory_keeps_refined_masks_only_with_feedback(feedback):
    clip = moving_square(4, SIZE)
    static = torch.zeros(SIZE)
    static[10:20, 8:26] = 1
    refiner = Refinement(
        FixedProposer(static), gates=Gates(min_iou=0.0, max_area_change=50), feedback=feedback
    )
    tracker = Tracker(ColourPatches(), affinity="attention", heads="joint", temperature=0.01, refiner=refiner)
    plain = Tracker(ColourPatches(), affinity="attention", heads="joint", temperature=0.01)
    for index in range(4):
        labels = tracker.step(clip.frames[index], clip.given.get(index))
        usual = plain.step(clip.frames[index], clip.given.get(index))
        if index:
            assert torch.equal(labels.mask() > 0, static > 0)
            assert torch.equal(labels.probabilities, usual.probabilities) is not feedback
    assert tracker.refinements == {"refined": 3}


def test_the_tracker_never_refines_given_masks():
    clip = moving_square(3, SIZE)
    clip.given[1] = clip.truth[1]
    refiner = Refinement(FixedProposer(torch.ones(SIZE)), gates=Gates(), feedback=True)
    tracker = Tracker(ColourPatches(), refiner=refiner)
    for index in range(2):
        mask = tracker.step(clip.frames[index], clip.given[index]).mask()
        assert np.array_equal(mask.numpy(), clip.truth[index])


def test_grabcut_refines_a_rough_mask_of_a_bright_square():
    clip = moving_square(1, (64, 96))
    truth = torch.from_numpy(clip.truth[0]).float()
    shifted = np.roll(clip.truth[0], (-3, 3), axis=(0, 1)).astype(np.float32)
    rough = torch.from_numpy(cv2.GaussianBlur(shifted, (0, 0), 2.0))
    labels = SoftLabels(torch.stack([1 - rough, rough]), (1,), (64, 96), 1)
    refinement = Refinement(GrabCutProposer(), gates=Gates(), feedback=False)
    refined = refinement.refine(torch.from_numpy(clip.frames[0]), labels)
    mask = refined.probabilities[1] > 0.5
    assert refined.outcomes == ("refined",)
    assert (mask & (truth > 0)).sum() / (mask | (truth > 0)).sum() > 0.95


@pytest.mark.parametrize("mask", ["whole", "pixel", "tall"])
def test_grabcut_accepts_any_mask(mask):
    soft = torch.zeros(SIZE)
    soft[{"whole": (slice(None),), "pixel": (3, 4), "tall": (slice(None), slice(5, 6))}[mask]] = 1
    random = torch.randint(0, 255, (*SIZE, 3), dtype=torch.uint8)
    labels = soft_labels(soft)
    out = Refinement(GrabCutProposer(), gates=Gates(), feedback=False).refine(random, labels)
    assert out.probabilities.shape == (2, *SIZE)
