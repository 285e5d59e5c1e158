"""Downscaling and merging of masks."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from drift.masks import reduced_mask, with_given


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), max_side=st.integers(16, 90))
def test_every_object_keeps_a_pixel(seed, max_side):
    random = np.random.default_rng(seed)
    mask = np.zeros((60, 80), np.uint8)
    mask[5:40, 5:40] = 1
    for object_id in (2, 3):
        mask[random.integers(0, 60), random.integers(0, 80)] = object_id
    small = reduced_mask(mask, max_side)
    assert max(small.shape) == min(max_side, 80)
    assert set(np.unique(small)) == set(np.unique(mask))


def test_a_small_mask_is_returned_unchanged():
    mask = np.ones((6, 8), np.uint8)
    assert reduced_mask(mask, 8) is mask
    assert reduced_mask(mask, None) is mask


def test_given_objects_keep_only_their_given_pixels():
    mask = np.array([[1, 1, 2, 0]], np.uint8)
    given_mask = np.array([[0, 0, 1, 0]], np.uint8)
    assert with_given(mask, given_mask).tolist() == [[0, 0, 1, 0]]
    assert with_given(mask, np.zeros_like(mask)) is mask
    assert with_given(mask, None) is mask
