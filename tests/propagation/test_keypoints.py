"""Points as labels: discs and positions undo each other, and points follow what they lie on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from examples import COLOUR_OPTIONS as OPTIONS
from examples import ColourBackbone, moving_square
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.clip import Keypoint
from drift.errors import InputError
from drift.propagation import Tracker
from drift.propagation.keypoints import discs, positions


@settings(max_examples=60, deadline=None)
@given(x=st.floats(40, 120), y=st.floats(40, 90), stride=st.sampled_from([4, 8]))
def test_a_disc_is_found_where_it_was_put(x, y, stride):
    heat = discs([(x, y)], (160 // stride, 200 // stride), stride)
    ((found_x, found_y, confidence),) = positions(heat, stride)
    assert (found_x, found_y) == pytest.approx((x, y), abs=0.05 * stride)
    assert 0.5 < confidence <= 1


def test_a_disc_at_the_border_is_near_its_place_and_nothing_is_nowhere():
    ((x, y, _),) = positions(discs([(0, 0)], (10, 10), 8), 8)
    assert 0 <= x < 16
    assert 0 <= y < 16
    ((_, _, confidence),) = positions(torch.zeros(1, 10, 10), 8)
    assert confidence == 0
    assert positions(torch.zeros(0, 10, 10), 8) == []


def ramp_clip():
    """A square whose every place has a colour of its own."""
    clip = moving_square(5, size=(64, 96))
    frames = []
    for t, mask in clip.truth.items():
        frame = np.full((64, 96, 3), 128, np.uint8)
        rows, columns = np.nonzero(mask)
        frame[rows, columns, 0] = 10 + 15 * (columns - columns.min())
        frame[rows, columns, 1] = 10 + 15 * (rows - rows.min())
        frames.append(frame)
        assert t >= 0
    return frames, clip


def test_points_follow_what_they_lie_on_with_masks_or_without():
    frames, clip = ramp_clip()
    points = [Keypoint("a", 13, 21), Keypoint("b", 19, 27)]
    for mask in (clip.truth[0], None):
        tracker = Tracker(ColourBackbone(), **OPTIONS)
        for t, frame in enumerate(frames):
            labels = tracker.step(frame, mask if t == 0 else None, points if t == 0 else ())
            for one, point in zip(labels.tracked_points(), points, strict=True):
                assert one.name == point.name
                assert one.x == pytest.approx(point.x + 3 * t, abs=4)
                assert one.y == pytest.approx(point.y, abs=4)
        assert labels.mask().any() == (mask is not None)


def test_points_change_no_mask():
    frames, clip = ramp_clip()
    with_points, without = (Tracker(ColourBackbone(), **OPTIONS) for _ in range(2))
    for t, frame in enumerate(frames):
        given = clip.truth[0] if t == 0 else None
        one = with_points.step(frame, given, [Keypoint("a", 13, 21)] if t == 0 else ())
        assert torch.allclose(one.probabilities, without.step(frame, given).probabilities)


def test_a_point_may_come_later_and_be_put_right():
    frames, clip = ramp_clip()
    tracker = Tracker(ColourBackbone(), **OPTIONS)
    tracker.step(frames[0], clip.truth[0])
    assert tracker.step(frames[1]).tracked_points() == []
    tracker.step(frames[2], None, [Keypoint("a", 20, 20)])
    put = tracker.step(frames[3], None, [Keypoint("a", 60, 40)]).tracked_points()
    assert (put[0].x, put[0].y) == pytest.approx((60, 40), abs=0.5)


def test_positions_are_told_in_the_size_that_is_asked_for():
    frames, _ = ramp_clip()
    labels = Tracker(ColourBackbone(), **OPTIONS).step(frames[0], None, [Keypoint("a", 31.5, 40)])
    (large,) = labels.tracked_points((128, 192))
    assert (large.x, large.y) == pytest.approx((63.5, 80.5), abs=1)


def test_a_point_outside_the_frame_is_named():
    frames, _ = ramp_clip()
    with pytest.raises(InputError, match=r"the point a at \(96, 3\) lies outside the frame of 96 x 64"):
        Tracker(ColourBackbone(), **OPTIONS).step(frames[0], None, [Keypoint("a", 96, 3)])
