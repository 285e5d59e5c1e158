"""What people look at: overlays, their video, the attention figure."""

from __future__ import annotations

import av
import numpy as np
import pytest
from PIL import Image

from drift.image_files import DAVIS_PALETTE
from drift.reporting.attention_figure import AttentionView, draw_attention
from drift.reporting.overlay import OverlayVideo, draw_overlay


def test_objects_are_tinted_in_their_colour_and_the_ground_is_left():
    frame = np.full((60, 80, 3), 100, np.uint8)
    mask = np.zeros((60, 80), np.uint8)
    mask[10:30, 10:40] = 1
    mask[35:55, 50:70] = 2
    drawn = draw_overlay(frame, mask, opacity=0.5)
    assert np.array_equal(drawn[mask == 0], frame[mask == 0])
    for object_id, (row, column) in {1: (20, 25), 2: (45, 60)}.items():
        expected = (frame[0, 0].astype(int) + DAVIS_PALETTE[object_id]) / 2
        assert np.abs(drawn[row, column] - expected).max() <= 1
    assert np.array_equal(frame, np.full((60, 80, 3), 100, np.uint8)), "the frame itself is left as it is"


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
@pytest.mark.parametrize("rate", [24.0, 29.97])
def test_the_video_holds_every_frame_at_its_rate(tmp_path, size, rate):
    path = tmp_path / "overlay.mp4"
    with OverlayVideo(path, frames_per_second=rate) as video:
        for shade in range(10, 250, 24):
            video.add(np.full((*size, 3), shade, np.uint8))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert float(stream.average_rate) == pytest.approx(rate, rel=1e-3)
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert [round(frame.mean() / 24) for frame in frames] == [
        round(shade / 24) for shade in range(10, 250, 24)
    ]
    assert frames[0].shape[:2] == (size[0] + size[0] % 2, size[1] + size[1] % 2)


def test_a_video_is_whole_when_the_run_breaks_off(tmp_path):
    def break_off():
        with OverlayVideo(tmp_path / "overlay.mp4") as video:
            video.add(np.zeros((32, 32, 3), np.uint8))
            raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        break_off()
    with av.open(str(tmp_path / "overlay.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 1


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
