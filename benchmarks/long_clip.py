"""Peak memory of a short and of a long clip: `python -m benchmarks.long_clip --json FILE`.

The sample clip, run forth and back until it is long enough, goes through the whole run (tracking and
writing) in a process of its own for each length; the peaks should be equal.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from hydra import compose, initialize_config_dir

from benchmarks.measuring import arguments, peak_process_bytes, report
from datamodules.sample import Sample
from drift.adaptation.setup import folder_to_use
from drift.clip import Clip
from drift.command_line import build, keep_freed_memory
from drift.metrics.davis import DavisScore
from drift.module import TrackingModule
from drift.reporting.clip_output import OutputFolder
from drift.resuming import ProgressFolder

CONFIGS = Path(__file__).parents[1] / "configs"


class Repeated(Sequence[np.ndarray]):
    """Pictures of another sequence, forth and back, `length` of them, decoded when asked for and reduced."""

    def __init__(self, source: Sequence[np.ndarray], length: int, side: int, *, mask: bool) -> None:
        self.source, self.length, self.side, self.mask = source, length, side, mask

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        last = len(self.source) - 1
        place = index % (2 * last)
        picture = self.source[min(place, 2 * last - place)]
        scale = self.side / max(picture.shape[:2])
        size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
        return cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST if self.mask else cv2.INTER_AREA)


def run(frames: int, side: int) -> None:
    """Tracks a clip of `frames` frames whose longer side is `side` pixels."""
    (sample,) = Sample().predict_dataloader()
    masks = Repeated(list(sample.truth.values()), frames, side, mask=True)
    clip = Clip(
        name="long",
        frames=Repeated(sample.frames, frames, side, mask=False),
        frame_names=[f"{index:05d}" for index in range(frames)],
        given={0: masks[0]},
    )
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("evaluate")
    with tempfile.TemporaryDirectory() as folder:
        backbone, make_tracker = build(config, "backbone"), build(config, "propagation")
        settings = build(config, "adaptation")
        module = TrackingModule(
            backbone,
            make_tracker=make_tracker,
            adapters=folder_to_use(settings, backbone, make_tracker(backbone), Path(folder) / "adapters"),
            score=DavisScore([clip.name]),
            output=OutputFolder(Path(folder), ("masks", "overlay"), ProgressFolder(Path(folder))),
        )
        module.predict_step(clip)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs=2, default=(100, 500), help="the two lengths")
    parser.add_argument("--side", type=int, default=427, help="pixels of the longer side")
    parser.add_argument("--only", type=int, help="run one length alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only:
        keep_freed_memory()
        run(options.only, options.side)
        return
    peaks = [
        peak_process_bytes(
            "benchmarks.long_clip",
            *("--only", str(frames), "--side", str(options.side), "--threads", str(options.threads)),
        )
        for frames in options.frames
    ]
    figures: dict[str, float | int | str] = {}
    for frames, peak in zip(options.frames, peaks, strict=True):
        figures[f"peak_megabytes_{frames}_frames"] = peak / 1e6
    figures["memory_ratio"] = peaks[1] / peaks[0]
    report("Peak memory by length of the clip", figures, options.json)


if __name__ == "__main__":
    main()
