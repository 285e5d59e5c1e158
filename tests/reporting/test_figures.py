"""Inputs of report and dashboards: query points, attention maps, sampled frames, error maps, scores per frame."""

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
from drift.reporting.attention_maps import AttentionMaps, compute_maps, jpeg, load_maps, save_maps
from drift.reporting.query_points import chosen_points, default_points
from drift.reporting.sampled_frames import (
    ERROR_COLOURS,
    SampledFrames,
    draw_errors,
    errors_path,
    sampled_indices,
)


def test_default_queries_are_innermost_pixels():
    mask = np.zeros((40, 60), np.uint8)
    mask[5:16, 10:31] = 1
    mask[20:35, 40:43] = 3
    named = {query.name: (query.row, query.column) for query in default_points(mask)}
    assert list(named) == ["object 1", "object 3", "background"]
    assert named["object 1"][0] == 10
    assert mask[named["object 3"]] == 3
    assert mask[named["background"]] == 0
    point = TrackedPoint("eye", x=70.0, y=-3.0, confidence=1.0)
    assert default_points(mask, [point])[2] == ("point eye", 0, 59)
    assert [query.name for query in default_points(np.ones((4, 4), np.uint8))] == ["object 1"]


def test_default_queries_are_limited():
    mask = np.repeat(np.arange(30, dtype=np.uint8), 4)[None].repeat(4, 0)
    assert len(default_points(mask)) == 6


@given(x=st.floats(-50, 100), y=st.floats(-50, 100))
def test_chosen_queries_are_clamped_to_the_frame(x, y):
    (query,) = chosen_points([[x, y]], (30, 40))
    assert 0 <= query.row < 30
    assert 0 <= query.column < 40


def test_error_colours():
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
def test_sampled_indices_are_evenly_spaced_and_limited(count, length, start):
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


def test_error_maps_are_written_for_frames_with_ground_truth(tmp_path):
    clip = moving_square(5)
    clip = replace(clip, truth={index: clip.truth[index] for index in (0, 4)})
    writer = SampledFrames(tmp_path / "new", clip, [0, 2, 4])
    for index in range(5):
        mask = clip.truth.get(index, np.zeros_like(clip.truth[0]))
        writer.add(SegmentedFrame(index, str(index), 0.0, clip.frames[index], mask, objects=(1,)))
    files = {path.name for path in (tmp_path / "new").iterdir()}
    assert files == {"00000.jpg", "00002.jpg", "00004.jpg", "00000.errors.jpg", "00004.errors.jpg"}
    assert errors_path(tmp_path / "00004.jpg").name == "00004.errors.jpg"


def test_jpegs_are_downscaled_to_max_side():
    image = Image.open(io.BytesIO(jpeg(np.zeros((300, 600, 3), np.uint8), max_side=200)))
    assert image.size == (200, 100)
    assert Image.open(io.BytesIO(jpeg(np.zeros((30, 60, 3), np.uint8), max_side=200))).size == (60, 30)


def test_coarse_maps_follow_the_tracker_attention(tmp_path):
    clip = moving_square(5)
    tracker = Tracker(ColourBackbone(layers=2), **COLOUR_OPTIONS | {"temperature": 0.001})
    tracker.step(clip.frames[0], clip.given[0])
    for frame in clip.frames[1:]:
        tracker.step(frame)
    size = clip.truth[0].shape
    layers, frame_weights, grid = compute_maps(lambda pixels: tracker.attention(pixels)[1], size, [0, 2])
    assert list(layers) == ["0", "1"]
    assert grid == (18, 24)
    row, column = (int(indices.mean() * 18 / size[0]) for indices in np.nonzero(clip.truth[4]))
    query = row * 24 + column
    for layer in layers:
        assert layers[layer].shape == (18 * 24, 2, 18, 24)
        assert frame_weights[layer].shape == (18 * 24, 2)
        assert (frame_weights[layer] <= 1 + 1e-4).all()
        assert layers[layer][query].max() == 255
    y, x = np.unravel_index(int(layers["0"][query, 1].argmax()), grid)
    previous = clip.truth[3]  # the most recent memory frame
    assert previous[int((y + 0.5) * size[0] / 18), int((x + 0.5) * size[1] / 24)] == 1

    maps = AttentionMaps(4, [0, 3], [b"target", b"a", b"b"], layers, frame_weights, grid)
    save_maps(tmp_path / "new" / "x.npz", maps)
    read = load_maps(tmp_path / "new" / "x.npz")
    assert (read.frame_index, read.memory_indices, read.images, read.grid) == (
        4,
        [0, 3],
        [b"target", b"a", b"b"],
        grid,
    )
    for layer in layers:
        assert np.array_equal(read.layers[layer], layers[layer])
        assert np.allclose(read.frame_weights[layer], frame_weights[layer], atol=1e-3)


def test_frame_scores_average_to_object_scores():
    score = DavisScore(["ant", "bee"])
    truth = torch.zeros(20, 30, dtype=torch.uint8)
    truth[5:15, 5:15], truth[2:4, 20:28] = 1, 2
    for sequence, shift in (("bee", 4), ("ant", 1)):
        for frame in range(1, 5):
            moved = truth.roll(shift * frame, 1)
            score.update(moved, truth, sequence=sequence, frame=frame, frames=6, objects=(1, 2))
    for sequence in score.compute().sequences:
        frames = score.frame_scores(sequence.sequence)
        assert [(score.object_id, score.frame) for score in frames] == [
            (object_id, frame) for object_id in (1, 2) for frame in range(1, 5)
        ]
        for expected in sequence.objects:
            scores = [score for score in frames if score.object_id == expected.object_id]
            assert np.mean([score.jaccard for score in scores]) == pytest.approx(expected.jaccard.mean)
            assert np.mean([score.boundary for score in scores]) == pytest.approx(expected.boundary.mean)
