"""What report and dashboards show, in numbers: queries, coarse attention, sampled frames, errors."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from examples import COLOUR_OPTIONS, ColourBackbone, moving_square
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from drift.formats.writer import SegmentedFrame
from drift.metrics.davis import DavisScore
from drift.propagation import Tracker
from drift.propagation.keypoints import TrackedPoint
from drift.reporting.attention_maps import AttentionMaps, gathered_maps, jpeg, load_maps, save_maps
from drift.reporting.query_points import chosen_points, default_points
from drift.reporting.sampled_frames import (
    ERROR_COLOURS,
    SampledFrames,
    draw_errors,
    errors_path,
    sampled_indices,
)


def test_default_queries_lie_inmost_in_each_object_and_in_the_background():
    mask = np.zeros((40, 60), np.uint8)
    mask[5:16, 10:31] = 1
    mask[20:35, 40:43] = 3
    named = {one.name: (one.row, one.column) for one in default_points(mask)}
    assert list(named) == ["object 1", "object 3", "background"]
    assert named["object 1"][0] == 10
    assert mask[named["object 3"]] == 3
    assert mask[named["background"]] == 0
    point = TrackedPoint("eye", x=70.0, y=-3.0, confidence=1.0)
    assert default_points(mask, [point])[2] == ("point eye", 0, 59)
    assert [one.name for one in default_points(np.ones((4, 4), np.uint8))] == ["object 1"]


def test_a_figure_has_no_more_queries_than_can_be_read():
    mask = np.repeat(np.arange(30, dtype=np.uint8), 4)[None].repeat(4, 0)
    assert len(default_points(mask)) == 6


@given(x=st.floats(-50, 100), y=st.floats(-50, 100))
def test_chosen_queries_lie_within_the_frame(x, y):
    (found,) = chosen_points([[x, y]], (30, 40))
    assert 0 <= found.row < 30
    assert 0 <= found.column < 40


def test_errors_are_told_by_their_colours():
    truth, mask = np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    truth[0], mask[1] = 1, 1
    truth[2], mask[2] = 1, 2
    truth[3, :2] = mask[3, :2] = 1
    drawn = draw_errors(np.full((4, 4, 3), 100, np.uint8), mask, truth).astype(int)
    for row, kind in enumerate(ERROR_COLOURS):
        expected = np.round(0.75 * np.array(ERROR_COLOURS[kind]) + 0.25 * 50)
        assert np.abs(drawn[row, 0] - expected).max() <= 1
    assert drawn[3, 0].tolist() == [160] * 3
    assert drawn[3, 3].tolist() == [50] * 3


@given(count=st.integers(0, 40), length=st.integers(2, 60), start=st.integers(0, 1))
def test_sampled_frames_are_spread_and_bounded(count, length, start):
    clip = moving_square(2)
    clip = replace(
        clip,
        frames=[clip.frames[0]] * length,
        frame_names=[str(n) for n in range(length)],
        given={start: clip.given[0]},
        truth={},
    )
    indices = sampled_indices(clip, count)
    assert len(indices) <= count
    assert indices == sorted(set(indices))
    if count:
        assert indices[0] == start
    if count > 1:
        assert indices[-1] == length - 1


def test_sampled_frames_are_written_with_their_errors_where_truth_is_known(tmp_path):
    clip = moving_square(5)
    clip = replace(clip, truth={index: clip.truth[index] for index in (0, 4)})
    writer = SampledFrames(tmp_path / "new", clip, [0, 2, 4])
    for index in range(5):
        mask = clip.truth.get(index, np.zeros_like(clip.truth[0]))
        writer.add(SegmentedFrame(index, str(index), 0.0, clip.frames[index], mask, objects=(1,)))
    found = {path.name for path in (tmp_path / "new").iterdir()}
    assert found == {"00000.jpg", "00002.jpg", "00004.jpg", "00000.errors.jpg", "00004.errors.jpg"}
    assert errors_path(tmp_path / "00004.jpg").name == "00004.errors.jpg"


def test_pictures_are_reduced_to_a_longer_side():
    picture = Image.open(io.BytesIO(jpeg(np.zeros((300, 600, 3), np.uint8), longer_side=200)))
    assert picture.size == (200, 100)
    assert Image.open(io.BytesIO(jpeg(np.zeros((30, 60, 3), np.uint8), longer_side=200))).size == (60, 30)


def test_coarse_maps_say_where_the_fine_ones_look(tmp_path):
    clip = moving_square(5)
    tracker = Tracker(ColourBackbone(layers=2), **COLOUR_OPTIONS | {"temperature": 0.001})
    tracker.step(clip.frames[0], clip.given[0])
    for frame in clip.frames[1:]:
        tracker.step(frame)
    size = clip.truth[0].shape
    layers, shares, grid = gathered_maps(lambda pixels: tracker.attention(pixels)[1], size, [0, 2])
    assert list(layers) == ["0", "1"]
    assert grid == (18, 24)
    row, column = (int(place.mean() * 18 / size[0]) for place in np.nonzero(clip.truth[4]))
    query = row * 24 + column
    for layer in layers:
        assert layers[layer].shape == (18 * 24, 2, 18, 24)
        assert shares[layer].shape == (18 * 24, 2)
        assert (shares[layer] <= 1 + 1e-4).all()
        assert layers[layer][query].max() == 255
    y, x = np.unravel_index(int(layers["0"][query, 1].argmax()), grid)
    fine = clip.truth[3]  # the third of the frames that are remembered
    assert fine[int((y + 0.5) * size[0] / 18), int((x + 0.5) * size[1] / 24)] == 1

    maps = AttentionMaps(4, [0, 3], [b"target", b"a", b"b"], layers, shares, grid)
    save_maps(tmp_path / "new" / "x.npz", maps)
    read = load_maps(tmp_path / "new" / "x.npz")
    assert (read.frame_index, read.memory_indices, read.pictures, read.grid) == (
        4,
        [0, 3],
        [b"target", b"a", b"b"],
        grid,
    )
    for layer in layers:
        assert np.array_equal(read.layers[layer], layers[layer])
        assert np.allclose(read.shares[layer], shares[layer], atol=1e-3)


def test_the_scores_of_frames_average_to_those_of_objects():
    score = DavisScore(["ant", "bee"])
    truth = torch.zeros(20, 30, dtype=torch.uint8)
    truth[5:15, 5:15], truth[2:4, 20:28] = 1, 2
    for sequence, shift in (("bee", 4), ("ant", 1)):
        for frame in range(1, 5):
            moved = truth.roll(shift * frame, 1)
            score.update(moved, truth, sequence=sequence, frame=frame, frames=6, objects=(1, 2))
    for sequence in score.compute().sequences:
        frames = score.frame_scores(sequence.sequence)
        assert [(one.object_id, one.frame) for one in frames] == [(o, f) for o in (1, 2) for f in range(1, 5)]
        for told in sequence.objects:
            own = [one for one in frames if one.object_id == told.object_id]
            assert np.mean([one.jaccard for one in own]) == pytest.approx(told.jaccard.mean)
            assert np.mean([one.boundary for one in own]) == pytest.approx(told.boundary.mean)
