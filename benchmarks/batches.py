"""Seconds and memory of a backbone by batch size: `python -m benchmarks.batches --batches 1 2 4 8`.

For other backbones and devices: `python -m benchmarks.batches --device cuda backbone=sd21 backbone.precision=float16`.
"""

from __future__ import annotations

import torch

from benchmarks.measuring import MemoryWatch, arguments, paired_seconds, report
from benchmarks.quality import composed
from drift.backbones import Backbone
from drift.command_line import build, keep_freed_memory
from drift.propagation.labels import pad_to_stride

__all__ = ["main", "read"]


def read(backbone: Backbone, frames: torch.Tensor) -> None:
    """Computes the features of a batch of frames `(batch, 3, height, width)` in [0, 1] and synchronises the device."""
    generators = [torch.Generator().manual_seed(number) for number in range(len(frames))]
    with torch.inference_mode():
        backbone.features(frames, generators)
    if backbone.device.type == "cuda":
        torch.cuda.synchronize(backbone.device)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 2, 4, 8), help="batch sizes")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 854), help="height and width of frames")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as backbone=sd21")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    backbone: Backbone = build(composed(*options.overrides), "backbone", device=options.device)
    random = torch.Generator().manual_seed(0)
    frames = torch.rand(max(options.batches), 3, *options.size, generator=random).to(backbone.device)
    frames = pad_to_stride(frames, backbone.stride)
    calls = {size: (lambda size=size: read(backbone, frames[:size])) for size in options.batches}
    seconds = paired_seconds({str(size): call for size, call in calls.items()}, runs=options.runs)
    figures: dict[str, float | int | str] = {}
    for size, call in calls.items():
        watch = MemoryWatch(backbone.device)
        with watch.stage("pass"):
            call()
        figures[f"seconds_per_frame_{size}"] = seconds[str(size)] / size
        figures[f"megabytes_{size}"] = watch.bytes["pass"] / 1e6
    report("Batch sizes", figures, options.json)


if __name__ == "__main__":
    main()
