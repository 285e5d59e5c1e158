"""Models side by side in one run: `python -m benchmarks.models ROOT --models a,b,c --json FILE --figure FILE`.

ROOT is a folder in DAVIS-2016's layout. A model is a choice of `backbone=`, with the noise and propagation options that
it brings, followed by Hydra overrides after colons (`sd21:backbone.checkpoint=FOLDER:propagation=dift`); or one of the
yardsticks `copy`, `flow`, `colour`, `latents` (of the embedded model), `teacher`, `efficientnet` and `random`, see
`benchmarks.quality`. For each: J, F, J&F, and seconds and peak memory per frame, of features and propagation apart.

`python evaluate.py -m experiment=grid/models` is the same as a sweep, which several processes and GPUs share.
"""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.measuring import arguments, write_json
from benchmarks.quality import (
    CONFIGS,
    Figures,
    Row,
    Tracked,
    composed,
    draw,
    flat_figures,
    options_of_tracker,
    print_table,
    run_rows,
    yardsticks,
)
from datamodules.davis import Davis2016
from drift.command_line import build, keep_freed_memory

__all__ = ["main", "model_row"]

DEFAULT = (
    "copy",
    "flow",
    "colour",
    "latents",
    "efficientnet",
    "random",
    "tiny:propagation=tiny_cosine",
    "tiny",
)


def model_row(text: str, device: torch.device) -> Row:
    """The row of a model, named as it is written on the command line; a yardstick's is built in."""
    known = yardsticks()
    if text in known:
        return known[text]()
    name, *overrides = text.split(":")
    choices = sorted(path.stem for path in (CONFIGS / "backbone").glob("*.yaml"))
    if name not in choices:
        raise SystemExit(f"unknown model {name}; expected {', '.join((*known, *choices))}")
    config = composed(f"backbone={name}", *overrides)
    backbone = build(config, "backbone", device=device)
    return Row(text, text, Tracked(backbone, options_of_tracker(config)))


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder in DAVIS-2016's layout")
    parser.add_argument("--models", type=lambda text: text.split(","), default=DEFAULT, help="a,b: see above")
    parser.add_argument("--sequences", type=lambda text: text.split(","), help="a,b: only these clips")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cuda, or cpu")
    parser.add_argument("--figure", type=Path, help="draw the scores into this image file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    data = Davis2016(options.root, sequences=options.sequences)
    figures: dict[str, Figures] = {}
    for model in options.models:  # one in memory at a time
        figures |= run_rows([model_row(model, options.device)], data, device=options.device, memory=True)
    print_table(figures)
    write_json({"sequences": float(len(data.sequences)), **flat_figures(figures)}, options.json)
    if options.figure is not None:
        draw(figures, options.figure)


if __name__ == "__main__":
    main()
