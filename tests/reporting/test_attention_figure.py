"""The attention figure."""

from __future__ import annotations

import numpy as np
from PIL import Image

from drift.reporting.attention_figure import AttentionView, draw_attention
from drift.reporting.query_points import QueryPoint


def test_heat_maps_follow_the_attention_weights(tmp_path):
    weights = np.zeros((2, 2, 6, 8), np.float32)
    weights[0, 1, 1, 6] = 1.0
    weights[1, 0, 4, 1] = 1.0
    grey = np.full((60, 80, 3), 90, np.uint8)
    queries = [QueryPoint("object 1", 30, 40), QueryPoint("background", 5, 5)]
    view = AttentionView(grey, 7, queries, [grey, grey], [0, 6], {"a": weights})
    draw_attention(view, tmp_path / "new" / "attention.png", title="a title")
    image = np.asarray(Image.open(tmp_path / "new" / "attention.png").convert("RGB")).astype(int)
    third, half = image.shape[1] // 3, image.shape[0] // 2
    # Maxima are yellow: right half of the last panel for the first query, left half of the middle one for the second.
    yellow = (image[..., 0] > 220) & (image[..., 1] > 200) & (image[..., 2] < 200)
    _, columns = np.nonzero(yellow[:half])
    assert len(columns) > 20
    assert columns.min() > 2 * third + third // 2
    _, columns = np.nonzero(yellow[half:])
    assert len(columns) > 20
    assert third < columns.min()
    assert columns.max() < 2 * third - third // 2


def test_each_layer_has_its_own_row(tmp_path):
    weights = np.full((1, 1, 6, 8), 1 / 48, np.float32)
    grey = np.full((60, 80, 3), 90, np.uint8)
    heights = []
    for layers in ({"a": weights}, {"a": weights, "b": weights[..., ::2, ::2] * 4}):
        view = AttentionView(grey, 7, [QueryPoint("object 1", 30, 40)], [grey], [0], layers)
        draw_attention(view, tmp_path / "attention.png", title="a title")
        heights.append(Image.open(tmp_path / "attention.png").height)
    assert heights[1] > 1.6 * heights[0]
