"""Peak memory of a short and of a long clip: `python -m benchmarks.long_clip --json FILE`.

The sample clip, run forth and back until it is long enough, is encoded as a video and goes through the whole run
(decoding, tracking and writing) in a process of its own for each length; the peaks should be equal.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from hydra import compose, initialize_config_dir

from benchmarks.measuring import arguments, peak_process_bytes, report
from datamodules.sample import Sample
from datamodules.video import Video
from drift.adaptation.setup import folder_to_use
from drift.command_line import build, keep_freed_memory
from drift.formats import FORMATS
from drift.formats.video_encoding import VideoEncoder
from drift.image_files import write_mask
from drift.metrics.davis import DavisScore
from drift.module import TrackingModule
from drift.reporting.output_folder import OutputFolder
from drift.resuming import ProgressFolder

CONFIGS = Path(__file__).parents[1] / "configs"


def write_long(path: Path, frames: int, side: int) -> Path:
    """An mp4 of the sample clip, forth and back until it is long enough, its longer side of `side` pixels."""
    (sample,) = Sample().predict_dataloader()
    pictures = [_reduced(frame, side, cv2.INTER_AREA) for frame in sample.frames]
    there_and_back = [*pictures, *pictures[-2:0:-1]]
    options = {"crf": "20", "preset": "ultrafast"}
    video = VideoEncoder(path, codec="libx264", pixels="yuv420p", options=options)
    for index in range(frames):
        video.add(there_and_back[index % len(there_and_back)], index / 24)
    video.close()
    write_mask(path.with_suffix(".png"), _reduced(sample.given[0], side, cv2.INTER_NEAREST))
    return path


def _reduced(picture: np.ndarray, side: int, interpolation: int) -> np.ndarray:
    scale = side / max(picture.shape[:2])
    height, width = (2 * round(length * scale / 2) for length in picture.shape[:2])
    return cv2.resize(picture, (width, height), interpolation=interpolation)


def run(video: Path, formats: tuple[str, ...]) -> None:
    """Tracks the objects of a video whose first mask lies beside it, and writes all there is to write."""
    (clip,) = Video(video, mask=video.with_suffix(".png")).predict_dataloader()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("evaluate")
    folder = video.parent / f"{video.stem}-output"
    backbone, make_tracker = build(config, "backbone"), build(config, "propagation")
    settings = build(config, "adaptation")
    module = TrackingModule(
        backbone,
        make_tracker=make_tracker,
        adapters=folder_to_use(settings, backbone, make_tracker(backbone), folder / "adapters"),
        score=DavisScore([clip.name]),
        output=OutputFolder(folder, formats, ProgressFolder(folder)),
    )
    module.predict_step(clip)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs=2, default=(100, 500), help="the two lengths")
    parser.add_argument("--side", type=int, default=427, help="pixels of the longer side")
    parser.add_argument(
        "--formats", nargs="+", default=["masks", "overlay", "coco", "boxes"], choices=FORMATS
    )
    parser.add_argument("--only", type=Path, help="track this video alone")
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
            figures[f"seconds_a_frame_{frames}_frames"] = (time.perf_counter() - start) / frames
    figures["memory_ratio"] = peaks[1] / peaks[0]
    report("Peak memory by length of the clip", figures, options.json)


if __name__ == "__main__":
    main()
