"""Boxes, points and logits from soft masks of any shape."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift.errors import OptionError
from drift.refinement.sam_prompts import (
    PromptSettings,
    bounding_box,
    main_components,
    mask_logits,
    negative_points,
    positive_points,
    prompts_of,
)

NO_OTHERS = np.zeros((60, 100), np.float32)


def shape(name: str) -> np.ndarray:
    """A soft mask of 60 x 100 pixels."""
    mask = np.zeros((60, 100), np.float32)
    if name == "disk":
        cv2.circle(mask, (40, 30), 15, 1.0, -1)
    elif name == "thin":
        cv2.line(mask, (5, 5), (95, 50), 1.0, 1)
    elif name == "split":
        mask[10:20, 10:20] = mask[30:50, 60:90] = 1
    elif name == "pixel":
        mask[59, 0] = 1
    elif name == "whole":
        mask[:] = 1
    return cv2.GaussianBlur(mask, (0, 0), 0.5) if name in ("disk", "split") else mask


@pytest.mark.parametrize("name", ["disk", "thin", "split", "pixel", "whole"])
def test_points_match_their_labels(name):
    soft = shape(name)
    prompts = prompts_of(soft, NO_OTHERS, PromptSettings(positive_points=5, negative_points=4))
    inside, outside = prompts.points[prompts.labels == 1], prompts.points[prompts.labels == 0]
    assert len(prompts.points) == 9
    assert len(inside) == min(5, (soft > 0.5).sum())
    assert len(outside) == (0 if name == "whole" else 4)
    assert all(soft[int(y), int(x)] > 0.5 for x, y in inside)
    assert all(soft[int(y), int(x)] < 0.2 for x, y in outside)
    assert len(np.unique(inside, axis=0)) == len(inside)


def test_each_component_of_a_split_object_has_a_point():
    points = positive_points(shape("split"), 2, np.random.default_rng(0))
    assert sorted(int(x) > 40 for x, _ in points) == [False, True]


def test_the_first_point_is_the_deepest():
    (point,) = positive_points(shape("disk"), 1, np.random.default_rng(0))
    assert np.abs(point - (40, 30)).max() <= 1


def test_half_of_the_negative_points_lie_on_other_objects_the_rest_near_the_object():
    others = np.zeros_like(NO_OTHERS)
    others[5:15, 80:95] = 1
    points = negative_points(shape("disk"), others, 4, np.random.default_rng(0))
    on_others = [others[int(y), int(x)] == 1 for x, y in points]
    assert on_others == [True, True, False, False]
    assert all(np.hypot(x - 40, y - 30) < 15 + 15 for x, y in points[2:])


def test_small_islands_change_neither_box_nor_points():
    clean, noisy = shape("split"), shape("split")
    noisy[55:57, 2:4] = noisy[0, 99] = 1
    expected, found = (
        prompts_of(soft, NO_OTHERS, PromptSettings(negative_points=0)) for soft in (clean, noisy)
    )
    assert np.array_equal(found.box, expected.box)
    assert np.array_equal(found.points, expected.points)
    assert found.logits[55, 2] > 0
    assert main_components(shape("thin") > 0.5).sum() == (shape("thin") > 0.5).sum()


@pytest.mark.parametrize("name", ["disk", "thin", "split", "pixel", "whole"])
def test_the_box_contains_the_object_and_stays_in_the_grid(name):
    core = shape(name) > 0.5
    rows, columns = np.nonzero(core)
    left, top, right, bottom = bounding_box(core, 0.1)
    assert -0.5 <= left <= columns.min() - 0.5
    assert columns.max() + 0.5 <= right <= 99.5
    assert -0.5 <= top <= rows.min() - 0.5
    assert rows.max() + 0.5 <= bottom <= 59.5


def test_the_margin_is_relative_to_the_boxs_sides():
    core = np.zeros((60, 100), bool)
    core[20:30, 40:60] = True
    assert bounding_box(core, 0.1).tolist() == pytest.approx([37.5, 18.5, 61.5, 30.5])


@given(
    probability=st.floats(0, 1, width=32),
    limit=st.floats(1, 20),
)
def test_logits_are_clamped_to_the_limit(probability, limit):
    logit = mask_logits(np.full((1, 1), probability, np.float32), limit)[0, 0]
    assert abs(logit) <= limit + 1e-3
    if abs(logit) < limit - 0.01:
        assert 1 / (1 + np.exp(-logit)) == pytest.approx(probability, abs=1e-4)


@given(st.integers(0, 2**16))
def test_prompts_of_any_mask_are_deterministic(seed):
    random = np.random.default_rng(seed)
    noise = random.random((24, 40)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), random.uniform(0.3, 4))
    soft += 0.51 - np.quantile(soft, random.random())
    soft = np.clip(soft, 0, 1)
    if not (soft > 0.5).any():
        soft[0, 0] = 1
    settings = PromptSettings(seed=seed)
    first, again = (prompts_of(soft, 1 - soft, settings) for _ in range(2))
    assert np.array_equal(first.points, again.points)
    assert np.array_equal(first.labels, again.labels)


def test_points_can_be_disabled():
    prompts = prompts_of(shape("disk"), NO_OTHERS, PromptSettings(positive_points=0, negative_points=0))
    assert prompts.points.shape == (0, 2)


@pytest.mark.parametrize(
    "option", [{"box": 3}, {"margin": -1}, {"positive_points": 1.5}, {"mask_limit": "high"}, {"mask": None}]
)
def test_options_out_of_range_are_named(option):
    with pytest.raises(OptionError, match=next(iter(option))):
        PromptSettings(**option)


@pytest.mark.parametrize("negative_points", [0, 4])
def test_without_a_prompt_that_locates_the_object_the_options_are_named(negative_points):
    disabled = {"box": False, "mask": False, "positive_points": 0, "negative_points": negative_points}
    with pytest.raises(
        OptionError, match="box=false: allowed is true where mask=false and positive_points=0"
    ):
        PromptSettings(**disabled)
    for kind in ({"box": True}, {"mask": True}, {"positive_points": 1}):
        PromptSettings(**disabled | kind)
