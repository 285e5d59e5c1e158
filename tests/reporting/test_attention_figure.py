"""The attention figure that people look at."""

from __future__ import annotations

import numpy as np
from PIL import Image

from drift.reporting.attention_figure import AttentionView, draw_attention


def test_the_attention_figure_shows_where_the_weight_is(tmp_path):
    weights = np.zeros((2, 6, 8), np.float32)
    weights[1, 4, 6] = 1.0
    grey = np.full((60, 80, 3), 90, np.uint8)
    view = AttentionView(grey, 7, (30, 40), [grey, grey], [0, 6], weights)
    draw_attention(view, tmp_path / "new" / "attention.png", title="a title")
    picture = np.asarray(Image.open(tmp_path / "new" / "attention.png").convert("RGB")).astype(int)
    third = picture.shape[1] // 3
    # yellow of the strongest attention only in the last panel, right of and below its middle
    bright = (picture[..., 0] > 220) & (picture[..., 1] > 200) & (picture[..., 2] < 200)
    rows, columns = np.nonzero(bright)
    assert len(rows) > 20
    assert columns.min() > 2 * third + third // 2
    assert rows.mean() > picture.shape[0] / 2
