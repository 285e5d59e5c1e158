"""J, F and their statistics against naive reference implementations and hand-computed values."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from skimage.morphology import dilation, disk
from torch import Tensor

from drift.errors import OptionError
from drift.metrics.functional import (
    Statistics,
    boundary_counts,
    boundary_f,
    boundary_f_of_counts,
    decay,
    jaccard,
    jaccard_of_counts,
    mask_boundary,
    recall,
    region_counts,
    statistics,
)

Measure = Callable[[Tensor, Tensor], Tensor]

no_deadline = settings(deadline=None)

TOLERANCES = (0.0, 0.008, 0.1, 0.3, 0.99, 1.0, 2.5, 3.0, 40.0)


def naive_boundary(mask: np.ndarray) -> np.ndarray:
    """Compares each pixel with its right, lower and lower-right neighbours, or with one at the frame border."""
    height, width = mask.shape
    boundary = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            if y == height - 1 or x == width - 1:
                neighbours = [(y, x + 1)] if y == height - 1 else [(y + 1, x)]
            else:
                neighbours = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            boundary[y, x] = any(mask[v, u] != mask[y, x] for v, u in neighbours if v < height and u < width)
    return boundary


def naive_f(prediction: np.ndarray, truth: np.ndarray, tolerance: float) -> float:
    """F from the distances between all pairs of boundary pixels."""
    radius = tolerance if tolerance >= 1 else math.ceil(tolerance * np.hypot(*truth.shape))
    predicted, true = np.argwhere(naive_boundary(prediction)), np.argwhere(naive_boundary(truth))
    if not len(predicted) and not len(true):
        return 1.0
    if not len(predicted) or not len(true):
        return 0.0  # the precision or the recall is 0
    near = ((predicted[:, None] - true) ** 2).sum(-1) <= radius**2
    precision, recalled = near.any(1).mean(), near.any(0).mean()
    return 2 * precision * recalled / (precision + recalled) if precision + recalled else 0.0


@st.composite
def rectangles(draw: st.DrawFn, shape: tuple[int, int]) -> np.ndarray:
    """XOR of up to three rectangles: masks with long, separated boundaries."""
    mask = np.zeros(shape, dtype=bool)
    for _ in range(draw(st.integers(0, 3))):
        (top, bottom), (left, right) = (sorted(draw(st.tuples(*[st.integers(0, n)] * 2))) for n in shape)
        mask[top:bottom, left:right] ^= True
    return mask


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(st.tuples(st.integers(1, 25), st.integers(1, 25)))
    masks = st.one_of(
        rectangles(shape),
        npst.arrays(bool, shape, elements=st.booleans(), fill=st.just(False)),  # a few scattered pixels
        st.sampled_from([np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)]),
    )
    return draw(masks), draw(masks)


def tensors(pair: tuple[np.ndarray, np.ndarray]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(pair[0]), torch.from_numpy(pair[1])


def empty_and_full(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((height, width), dtype=bool), np.ones((height, width), dtype=bool)


class TestJaccard:
    @no_deadline
    @given(mask_pairs())
    def test_is_intersection_over_union(self, pair: tuple[np.ndarray, np.ndarray]) -> None:
        predicted, true = (set(map(tuple, np.argwhere(mask))) for mask in pair)
        expected = len(predicted & true) / len(predicted | true) if predicted | true else 1.0
        assert jaccard(*tensors(pair)).item() == expected

    def test_two_empty_masks_score_one(self) -> None:
        empty = torch.zeros(4, 5, dtype=torch.bool)
        assert jaccard(empty, empty).item() == 1

    def test_an_empty_and_a_full_mask_score_zero(self) -> None:
        empty, full = tensors(empty_and_full(4, 5))
        assert jaccard(empty, full).item() == jaccard(full, empty).item() == 0


class TestBoundary:
    @no_deadline
    @given(mask_pairs())
    def test_matches_the_naive_boundary(self, pair: tuple[np.ndarray, np.ndarray]) -> None:
        np.testing.assert_array_equal(
            mask_boundary(torch.from_numpy(pair[0])).numpy(), naive_boundary(pair[0])
        )

    def test_of_a_single_pixel(self) -> None:
        mask = torch.zeros(4, 4, dtype=torch.bool)
        mask[2, 2] = True
        assert mask_boundary(mask).nonzero().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]

    def test_excludes_the_last_corner(self) -> None:
        mask = torch.zeros(3, 3, dtype=torch.bool)
        mask[2, 2] = True
        assert mask_boundary(mask).nonzero().tolist() == [[1, 1], [1, 2], [2, 1]]

    def test_a_full_mask_has_none(self) -> None:
        assert not mask_boundary(torch.ones(3, 5, dtype=torch.bool)).any()


class TestBoundaryF:
    @no_deadline
    @given(mask_pairs(), st.sampled_from(TOLERANCES))
    @example(empty_and_full(1, 1), 0.008)
    @example(empty_and_full(7, 3), 1.0)
    def test_matches_by_distance(self, pair: tuple[np.ndarray, np.ndarray], tolerance: float) -> None:
        assert boundary_f(*tensors(pair), tolerance).item() == pytest.approx(
            naive_f(*pair, tolerance), abs=1e-12
        )

    @no_deadline
    @given(mask_pairs(), st.sampled_from(TOLERANCES))
    def test_is_symmetric_and_bounded(self, pair: tuple[np.ndarray, np.ndarray], tolerance: float) -> None:
        forth, back = boundary_f(*tensors(pair), tolerance), boundary_f(*tensors(pair)[::-1], tolerance)
        torch.testing.assert_close(forth, back, rtol=0, atol=1e-15)
        assert 0 <= forth <= 1

    @no_deadline
    @given(mask_pairs(), st.sampled_from(TOLERANCES))
    def test_of_a_mask_with_itself_or_its_inverse_is_one(
        self, pair: tuple[np.ndarray, np.ndarray], tolerance: float
    ) -> None:
        mask = torch.from_numpy(pair[0])
        assert boundary_f(mask, mask, tolerance).item() == boundary_f(mask, ~mask, tolerance).item() == 1

    @no_deadline
    @given(mask_pairs())
    def test_grows_with_the_tolerance(self, pair: tuple[np.ndarray, np.ndarray]) -> None:
        values = [
            boundary_f(*tensors(pair), tolerance).item() for tolerance in (0.0, 1.0, 2.0, 3.5, 9.0, 60.0)
        ]
        assert values == sorted(values)

    @pytest.mark.parametrize(
        "edge", [np.s_[:6, 0], np.s_[-6:, 0], np.s_[0, :6], np.s_[:6, -2:], np.s_[-2:, -6:]]
    )
    def test_dilation_covers_the_whole_disk_at_every_radius(self, edge: tuple) -> None:
        """A boundary at the frame border against random pixels, which detect any hole in the disk."""
        prediction, truth = np.random.default_rng(0).random((31, 44)) < 0.5, np.zeros((31, 44), dtype=bool)
        truth[edge] = True
        predicted, true = np.argwhere(naive_boundary(prediction)), np.argwhere(naive_boundary(truth))
        distances = ((predicted[:, None] - true) ** 2).sum(-1).min(1)
        for radius in np.arange(1, 56, 0.5):
            counts = boundary_counts(torch.from_numpy(prediction), torch.from_numpy(truth), float(radius))
            assert counts[0] == (distances <= radius**2).sum(), radius

    def test_at_full_size_matches_within_a_disk(self) -> None:
        rows, columns = np.mgrid[:480, :854]
        truth = (rows - 200) ** 2 + (columns - 300) ** 2 < 90**2
        prediction = (rows - 207) ** 2 / 0.8 + (columns - 304) ** 2 < 88**2
        prediction[470:, 700:] = True  # includes the last row and column
        predicted, true = naive_boundary(prediction), naive_boundary(truth)
        footprint = disk(8)  # ceil(0.008 x 979.7)
        near_predicted = dilation(predicted.astype(np.uint8), footprint).astype(bool)
        near_true = dilation(true.astype(np.uint8), footprint).astype(bool)
        expected = [(predicted & near_true).sum(), predicted.sum(), (true & near_predicted).sum(), true.sum()]
        counts = boundary_counts(torch.from_numpy(prediction), torch.from_numpy(truth))
        assert counts.tolist() == expected
        assert expected[0] < expected[1]
        assert expected[2] < expected[3]

    @pytest.mark.parametrize(
        ("size", "apart", "matched"),
        [((480, 854), 8, True), ((480, 854), 9, False), ((600, 800), 8, True), ((600, 800), 9, False)],
    )
    def test_radius_is_the_rounded_up_fraction_of_the_diagonal(
        self, size: tuple[int, int], apart: int, matched: bool
    ) -> None:
        truth, prediction = torch.zeros(2, *size, dtype=torch.bool)
        truth[:, :100], prediction[:, : 100 + apart] = True, True
        assert boundary_f(prediction, truth).item() == matched

    def test_empty_boundaries(self) -> None:
        pixel, empty = torch.zeros(2, 6, 6, dtype=torch.bool)
        pixel[2, 2] = True
        pairs = ((empty, empty), (pixel, empty), (empty, pixel))
        assert [boundary_f(*pair).item() for pair in pairs] == [1, 0, 0]

    def test_negative_tolerance_is_rejected(self) -> None:
        mask = torch.zeros(2, 2, dtype=torch.bool)
        with pytest.raises(OptionError, match="tolerance=-0.5"):
            boundary_f(mask, mask, -0.5)


class TestBoth:
    @no_deadline
    @given(st.lists(mask_pairs(), min_size=1, max_size=4), st.sampled_from([(1,), (2, 2), (0,), (3,)]))
    def test_a_batch_equals_its_items(
        self, pairs: list[tuple[np.ndarray, np.ndarray]], batch: tuple[int, ...]
    ) -> None:
        height, width = (min(pair[0].shape[axis] for pair in pairs) for axis in (0, 1))
        cropped = [[torch.from_numpy(mask[:height, :width].copy()) for mask in pair] for pair in pairs]
        items = [cropped[i % len(pairs)] for i in range(math.prod(batch))]
        prediction, truth = torch.zeros(2, *batch, height, width, dtype=torch.bool)
        for index, (predicted, true) in zip(np.ndindex(*batch), items, strict=True):
            prediction[index], truth[index] = predicted, true
        measures: tuple[Measure, ...] = (jaccard, boundary_f)
        for measure in measures:
            values = measure(prediction, truth)
            assert values.shape == batch
            assert values.flatten().tolist() == [measure(*item).item() for item in items]

    @no_deadline
    @given(mask_pairs())
    def test_counts_determine_the_measures(self, pair: tuple[np.ndarray, np.ndarray]) -> None:
        masks = tensors(pair)
        assert jaccard_of_counts(region_counts(*masks)) == jaccard(*masks)
        assert boundary_f_of_counts(boundary_counts(*masks)) == boundary_f(*masks)

    def test_arguments_are_not_modified(self) -> None:
        masks = tensors((np.eye(9, dtype=bool), np.tri(9, dtype=bool)))
        copies = [mask.clone() for mask in masks]
        jaccard(*masks), boundary_f(*masks)
        assert all(torch.equal(mask, copy) for mask, copy in zip(masks, copies, strict=True))

    # The second alternative is jaxtyping's message, if its runtime checks are enabled in tests.
    @pytest.mark.parametrize("measure", [jaccard, boundary_f])
    def test_object_ids_are_rejected(self, measure: Measure) -> None:
        mask = torch.ones(3, 3, dtype=torch.bool)
        with pytest.raises(
            TypeError, match="prediction must be a boolean mask, not torch.uint8|Type-check error"
        ):
            measure(mask.to(torch.uint8), mask)
        with pytest.raises(TypeError, match="truth must be a boolean mask, not torch.uint8|Type-check error"):
            measure(mask, mask.to(torch.uint8))

    @pytest.mark.parametrize("measure", [jaccard, boundary_f])
    @pytest.mark.parametrize(
        "shapes", [((3, 4), (4, 3)), ((2, 3, 3), (3, 3)), ((3,), (3,)), ((0, 3), (0, 3))]
    )
    def test_mismatched_shapes_are_rejected(
        self, measure: Measure, shapes: tuple[tuple[int, ...], tuple[int, ...]]
    ) -> None:
        prediction, truth = (torch.ones(shape, dtype=torch.bool) for shape in shapes)
        with pytest.raises((ValueError, TypeError), match="of the same shape, not|Type-check error"):
            measure(prediction, truth)


class TestStatistics:
    @pytest.mark.parametrize(
        ("frames", "expected"),  # mean index of the first quarter minus that of the last
        [
            (1, 0 - 0),
            (2, 0 - 1),
            (3, 0.5 - 2),
            (4, 0.5 - 2.5),
            (5, 0.5 - 3.5),
            (7, 1 - 5.5),
            (10, 1 - 8),
            (1001, 125 - 875),
        ],
    )
    def test_decay_of_a_ramp(self, frames: int, expected: float) -> None:
        assert decay(torch.arange(frames, dtype=torch.float64)).item() == expected

    @no_deadline
    @given(npst.arrays(np.float64, st.integers(1, 256), elements=st.floats(0, 1)))
    def test_match_the_official_definition(self, values: np.ndarray) -> None:
        edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
        drop = values[edges[0] : edges[1] + 1].mean() - values[edges[3] : edges[4] + 1].mean()
        found = statistics(torch.from_numpy(values))
        assert found.mean == pytest.approx(values.mean(), abs=1e-12)
        assert found.recall == pytest.approx((values > 0.5).mean(), abs=1e-12)
        assert found.decay == pytest.approx(drop, abs=1e-12)

    def test_recall_is_strictly_above_the_threshold(self) -> None:
        values = torch.tensor([0.5, 0.5000001, 0.9, 0.1], dtype=torch.float64)
        assert recall(values).item() == 0.5
        assert recall(values, threshold=0.05).item() == 1

    def test_nans_are_excluded_from_means_and_below_the_threshold(self) -> None:
        nan = float("nan")
        values = torch.tensor([nan, 0.8, 0.6, nan, 0.4], dtype=torch.float64)
        found = statistics(values)
        assert found.mean == pytest.approx(0.6)
        assert found.recall == pytest.approx(2 / 5)
        assert found.decay == pytest.approx(0.8 - 0.4)

    def test_no_frames_give_nan(self) -> None:
        found = statistics(torch.zeros(0, dtype=torch.float64))
        assert all(math.isnan(value) for value in (found.mean, found.recall, found.decay))

    def test_of_several_objects_at_once(self) -> None:
        values = torch.stack([torch.linspace(0, 1, 9), torch.linspace(1, 0, 9)]).double()
        torch.testing.assert_close(decay(values), torch.tensor([-0.75, 0.75], dtype=torch.float64))
        torch.testing.assert_close(recall(values), torch.full((2,), 4 / 9, dtype=torch.float64))

    def test_are_immutable(self) -> None:
        with pytest.raises(AttributeError):
            Statistics(1.0, 1.0, 0.0).mean = 2.0  # type: ignore[misc]


def test_module_imports_neither_file_readers_nor_opencv() -> None:
    source = Path(statistics.__code__.co_filename).read_text()
    assert "image_files" not in source
    assert "cv2" not in source
