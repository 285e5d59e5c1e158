"""The attention figure that people look at."""

from __future__ import annotations

import numpy as np
from PIL import Image

from drift.reporting.attention_figure import AttentionView, draw_attention
from drift.reporting.query_points import QueryPoint


def test_the_attention_figure_shows_where_the_weight_is(tmp_path):
    weights = np.zeros((2, 2, 6, 8), np.float32)
    weights[0, 1, 1, 6] = 1.0
    weights[1, 0, 4, 1] = 1.0
    grey = np.full((60, 80, 3), 90, np.uint8)
    queries = [QueryPoint("object 1", 30, 40), QueryPoint("background", 5, 5)]
    view = AttentionView(grey, 7, queries, [grey, grey], [0, 6], {"a": weights})
    draw_attention(view, tmp_path / "new" / "attention.png", title="a title")
    picture = np.asarray(Image.open(tmp_path / "new" / "attention.png").convert("RGB")).astype(int)
    third, half = picture.shape[1] // 3, picture.shape[0] // 2
    # the strongest is yellow: the first query is in the last panel on the right, the second in the middle on the left
    bright = (picture[..., 0] > 220) & (picture[..., 1] > 200) & (picture[..., 2] < 200)
    _, columns = np.nonzero(bright[:half])
    assert len(columns) > 20
    assert columns.min() > 2 * third + third // 2
    _, columns = np.nonzero(bright[half:])
    assert len(columns) > 20
    assert third < columns.min()
    assert columns.max() < 2 * third - third // 2


def test_several_layers_have_a_row_each(tmp_path):
    weights = np.full((1, 1, 6, 8), 1 / 48, np.float32)
    grey = np.full((60, 80, 3), 90, np.uint8)
    heights = []
    for layers in ({"a": weights}, {"a": weights, "b": weights[..., ::2, ::2] * 4}):
        view = AttentionView(grey, 7, [QueryPoint("object 1", 30, 40)], [grey], [0], layers)
        draw_attention(view, tmp_path / "attention.png", title="a title")
        heights.append(Image.open(tmp_path / "attention.png").height)
    assert heights[1] > 1.6 * heights[0]
