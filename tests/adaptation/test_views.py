"""Augmented views: their masks, their reach and their brightness."""

from __future__ import annotations

import numpy as np
import torch
from examples import moving_square
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.adaptation.views import augmented_views

CLIP = moving_square(1, (61, 90))


def views_of(count, reach, seed=0):
    return augmented_views(CLIP.frames[0], CLIP.given[0], count=count, reach=reach, stride=8, seed=seed)


def test_the_first_view_is_the_frame_itself():
    (view,) = views_of(0, 40)
    assert view.image.shape == (3, 64, 96)
    assert torch.equal(
        (view.image[:, :61, :90] * 255).round().to(torch.uint8).permute(1, 2, 0),
        torch.from_numpy(CLIP.frames[0]),
    )
    assert np.array_equal(view.mask, CLIP.given[0])
    assert view.reachable.all()
    assert not view.flipped


def test_masks_are_warped_with_their_images():
    """The square is the only bright thing of the frame, in every view."""
    for view in views_of(6, 24)[1:]:
        image = view.image.flip(-1) if view.flipped else view.image
        bright = image[0, :61, :90] > 0.5
        mask = view.mask > 0
        assert (bright & mask).sum() / (bright | mask).sum() > 0.85
    assert [view.flipped for view in views_of(4, 24)] == [False, False, True, False, True]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([8, 24, 40]))
def test_reachable_pixels_come_from_within_reach(seed, reach):
    """A frame whose colours are coordinates shows where each pixel came from."""
    rows, columns = np.mgrid[:61, :90]
    coordinates = np.stack([rows, columns, np.zeros_like(rows)], -1).astype(np.uint8)
    view = augmented_views(coordinates, CLIP.given[0], count=1, reach=reach, stride=8, seed=seed)[1]
    source = view.image[:2, :61, :90] * 255
    gain = source[:, view.reachable] / torch.tensor(coordinates)[view.reachable][:, :2].T.clamp(min=1)
    tint = gain.median(dim=1).values  # brightness and tint multiply each channel
    moved = (source / tint[:, None, None] - torch.tensor(coordinates).permute(2, 0, 1)[:2]).abs()
    assert (moved[:, view.reachable] <= reach + 8).float().mean() > 0.9


def test_views_depend_on_the_seed_only():
    first, again, other = (views_of(2, 24, seed)[2].image for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
