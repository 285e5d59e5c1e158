"""Peak memory of a short and of a long clip: `python -m benchmarks.long_clip --json FILE`.

The sample clip, played forwards and backwards until it is long enough, is encoded as a video. For each length, a
separate process decodes it, tracks its objects and writes the output; the peaks should be equal.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.measuring import arguments, peak_process_bytes, report
from benchmarks.quality import composed
from datamodules.sample import Sample
from datamodules.video import Video
from drift.adaptation.adapter_files import AdapterFolder
from drift.command_line import keep_freed_memory, load_models
from drift.formats import FORMATS
from drift.formats.video_encoding import VideoEncoder
from drift.image_files import write_mask
from drift.metrics.davis import DavisScore
from drift.module import TrackingModule
from drift.reporting.output_folder import OutputFolder
from drift.resuming import ProgressFolder

__all__ = ["looped", "main", "reduced", "run", "write_long"]


def write_long(path: Path, frames: int, side: int) -> Path:
    """Writes the sample clip as an mp4, played forwards and backwards, with a longer side of `side` pixels."""
    (sample,) = Sample().predict_dataloader()
    pictures = [reduced(frame, side) for frame in sample.frames]
    options = {"crf": "20", "preset": "ultrafast"}
    video = VideoEncoder(path, codec="libx264", pixels="yuv420p", options=options)
    for t, index in enumerate(looped(len(pictures), frames)):
        video.add(pictures[index], t / 24)
    video.close()
    write_mask(path.with_suffix(".png"), reduced(sample.given[0], side, mask=True))
    return path


def looped(count: int, frames: int) -> list[int]:
    """Frame indices of a clip of `count` frames that is played forwards and backwards, `frames` in total.

    Example:
        >>> looped(3, 7)
        [0, 1, 2, 1, 0, 1, 2]
    """
    period = [*range(count), *range(count - 2, 0, -1)]
    return [period[t % len(period)] for t in range(frames)]


def reduced(picture: np.ndarray, side: int, *, mask: bool = False) -> np.ndarray:
    """Resizes a frame `(height, width, 3)` or a mask `(height, width)` so that the longer side is about `side` pixels.

    Both sides are even, as H.264 requires.
    """
    scale = side / max(picture.shape[:2])
    height, width = (2 * round(length * scale / 2) for length in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST if mask else cv2.INTER_AREA)


def run(video: Path, formats: tuple[str, ...]) -> None:
    """Tracks the objects of a video whose first mask is the PNG beside it, and writes all output."""
    (clip,) = Video(video, mask=video.with_suffix(".png")).predict_dataloader()
    folder = video.parent / f"{video.stem}-output"
    models = load_models(composed("refinement=none"), torch.device("cpu"))
    module = TrackingModule(
        models.backbone,
        make_tracker=models.make_tracker,
        adapters=AdapterFolder.to_read(models.adaptation, models.propagation, folder / "adapters"),
        score=DavisScore([clip.name]),
        output=OutputFolder(folder, formats, ProgressFolder(folder)),
    )
    module.predict_step(clip)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs=2, default=(100, 500), help="the two lengths")
    parser.add_argument("--side", type=int, default=427, help="longer side in pixels")
    parser.add_argument(
        "--formats", nargs="+", default=["masks", "overlay", "coco", "boxes"], choices=FORMATS
    )
    parser.add_argument("--only", type=Path, help="only track this video")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only:
        keep_freed_memory()
        run(options.only, tuple(options.formats))
        return
    figures: dict[str, float | int | str] = {}
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for frames in options.frames:
            video = write_long(Path(folder) / f"{frames}.mp4", frames, options.side)
            words = ["--only", str(video), "--threads", str(options.threads), "--formats", *options.formats]
            start = time.perf_counter()
            peaks.append(peak_process_bytes("benchmarks.long_clip", *words))
            figures[f"peak_megabytes_{frames}_frames"] = peaks[-1] / 1e6
            figures[f"seconds_per_frame_{frames}_frames"] = (time.perf_counter() - start) / frames
    figures["memory_ratio"] = peaks[1] / peaks[0]
    report("Peak memory by length of the clip", figures, options.json)


if __name__ == "__main__":
    main()
