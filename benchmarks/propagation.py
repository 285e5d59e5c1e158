"""The kernel beside the dense form of DINO and DIFT: `python -m benchmarks.propagation --json FILE`.

Dense: the affinity of all target tokens to all memory tokens is exponentiated, multiplied by a 0/1 neighbourhood mask,
restricted to the top-k entries per target token, normalised, and multiplied by the labels.

Both give the same labels. Time is the median of runs in turn in one process; memory is the increase of the peak
resident memory over that of a process with the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measuring import arguments, paired_seconds, peak_process_bytes, report
from drift.propagation import propagate


def dense(
    queries: Tensor, keys: list[Tensor], labels: list[Tensor], *, temperature: float, radius: int, top_k: int
) -> Tensor:
    """Labels `(height, width, channels)` propagated by a single head; queries and keys are `(height, width, dim)`."""
    height, width, _ = queries.shape
    memory = torch.stack(keys).flatten(0, 2)
    affinity = torch.exp(memory @ queries.flatten(0, 1).T / temperature)  # (memory tokens, target tokens)
    row = torch.arange(height).repeat_interleave(width)
    column = torch.arange(width).repeat(height)
    near = ((row[:, None] - row).abs() <= radius) & ((column[:, None] - column).abs() <= radius)
    affinity *= near.float().repeat(len(keys), 1)
    weights, tokens = affinity.topk(top_k, dim=0)
    weights /= weights.sum(0)
    propagated = torch.einsum("kn,knc->nc", weights, torch.stack(labels).flatten(0, 2)[tokens])
    return propagated.unflatten(0, (height, width))


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument(
        "--grid", type=int, nargs=2, default=(60, 107), help="tokens of a frame, rows and columns"
    )
    parser.add_argument("--memory-frames", type=int, default=21)
    parser.add_argument("--radius", type=int, default=15)
    parser.add_argument("--top-k", type=int, default=15)
    parser.add_argument("--dim", type=int, default=128, help="dimension of a query")
    parser.add_argument("--objects", type=int, default=3)
    parser.add_argument("--only", choices=("inputs", "ours", "dense"), help="run only this, once")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    calls = _calls(options)
    if options.only:
        if options.only != "inputs":
            calls[options.only]()
        return
    with torch.inference_mode():
        difference = (calls["ours"]()[0] - calls["dense"]()).abs().max().item()
        seconds = paired_seconds(calls, runs=options.runs)
    words: list[str] = []
    for name in ("memory_frames", "radius", "top_k", "dim", "objects", "threads"):
        words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    words += ["--grid", *map(str, options.grid)]
    peaks = {
        name: peak_process_bytes("benchmarks.propagation", "--only", name, *words)
        for name in ("inputs", "ours", "dense")
    }
    ours, theirs = peaks["ours"] - peaks["inputs"], peaks["dense"] - peaks["inputs"]
    figures: dict[str, float | int | str] = {
        "target_tokens": options.grid[0] * options.grid[1],
        "memory_tokens": options.grid[0] * options.grid[1] * options.memory_frames,
        "threads": options.threads,
        "seconds_ours": seconds["ours"],
        "seconds_dense": seconds["dense"],
        "speedup": seconds["dense"] / seconds["ours"],
        "peak_megabytes_ours": ours / 1e6,
        "peak_megabytes_dense": theirs / 1e6,
        "memory_ratio": ours / theirs,
        "largest_difference": difference,
    }
    report("Label propagation, ours beside the dense form", figures, options.json)


@torch.inference_mode()
def _calls(options) -> dict[str, Callable[[], Tensor]]:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)
    height, width = options.grid
    shape = (height, width, options.dim)
    queries = F.normalize(torch.randn(shape, generator=generator), dim=-1)
    keys = [
        F.normalize(torch.randn(shape, generator=generator), dim=-1) for _ in range(options.memory_frames)
    ]
    labels = [
        torch.rand(height, width, options.objects + 1, generator=generator).softmax(-1)
        for _ in range(options.memory_frames)
    ]
    settings = {"temperature": 0.1, "radius": options.radius, "top_k": options.top_k}
    with_head = [key[None] for key in keys]
    return {
        "ours": lambda: propagate(queries[None], with_head, labels, **settings),
        "dense": lambda: dense(queries, keys, labels, **settings),
    }


if __name__ == "__main__":
    main()
