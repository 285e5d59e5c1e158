"""The embedded model beside baselines: `python -m benchmarks.quality ROOT --json FILE --figure FILE`.

Rows, on a folder in DAVIS-2016's layout, in one run: the first mask copied; the mask warped from frame to frame by
dense optical flow (OpenCV DIS, medium); and label propagation, with options for each row, on colour patches, on the
model with random weights, on ImageNet features (EfficientNet-lite0), on the embedded model's latents, on the teacher
that its queries were aligned with, and on the embedded model, by cosine similarity and by attention.
`benchmarks.models` compares other models in the same way.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from benchmarks.measuring import InlineExecutor, MemoryWatch, arguments, write_json
from benchmarks.wrapping import SharedFeatures
from benchmarks.yardsticks import (
    ColourPatches,
    ImageNetFeatures,
    Latents,
    TeacherFeatures,
    copy_first_mask,
    warp_by_flow,
)
from datamodules.davis import Davis2016
from drift.backbones import Backbone
from drift.clip import Clip
from drift.command_line import build, keep_freed_memory
from drift.metrics.davis import DavisScore, DavisScores
from drift.propagation import Tracker, strips
from drift.stopwatch import Stopwatch

__all__ = [
    "COSINE",
    "IMAGENET_BLOCKS",
    "PATCHES",
    "Figures",
    "Row",
    "Tracked",
    "composed",
    "draw",
    "flat_figures",
    "main",
    "options_of_tracker",
    "print_table",
    "randomised",
    "rows",
    "run_rows",
    "yardsticks",
]

CONFIGS = Path(__file__).parents[1] / "configs"

PATCHES = {
    "affinity": "attention",
    "heads": "joint",
    "temperature": 0.005,
    "top_k": 2,
    "radius": 5,
    "memory_frames": 14,
}
IMAGENET_BLOCKS = (4, 10)
COSINE = {"affinity": "cosine", "temperature": 0.08, "top_k": 5, "radius": 16, "memory_frames": 7}
"""Options of the rows that have no configuration. `PATCHES` were found by `python -m benchmarks.tuning`. `COSINE`, of
`imagenet`, `latents` and `teacher`, has the radius, top-k and memory of the embedded model; it was not tuned."""


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: name in the table.
        features: name of its features; rows with the same features share their backbone. Empty for none.
        masks: yields the masks of all frames of a clip; measures the stages of a tracker.
    """

    name: str
    features: str
    masks: Callable[[Clip, Stopwatch], Iterator[np.ndarray]]


@dataclass(frozen=True)
class Figures:
    """Scores of a row, and seconds and peak bytes per frame for features and for propagation.

    Bytes are those allocated beside weights and memory; 0 for a row without tracker.
    """

    scores: DavisScores
    feature_seconds: float
    propagation_seconds: float
    feature_bytes: int = 0
    propagation_bytes: int = 0


@dataclass(frozen=True)
class Tracked:
    """The masks of a tracker with these options."""

    backbone: Backbone
    options: Mapping[str, Any]

    def __call__(self, clip: Clip, stopwatch: Stopwatch) -> Iterator[np.ndarray]:
        """See `Row`."""
        tracker = Tracker(self.backbone, **self.options, stopwatch=stopwatch)
        for index in range(len(clip)):
            yield tracker.step(clip.frames[index], clip.given.get(index)).mask().numpy()

    def peak_bytes(self, clip: Clip, frames: int = 3) -> dict[str, int]:
        """Peak memory of the stages over the first frames of a clip, on one thread."""
        watch, threads = MemoryWatch(self.backbone.device), torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with patch.object(strips, "ThreadPoolExecutor", InlineExecutor):
                for _ in itertools.islice(self(clip, watch), frames):
                    pass
        finally:
            torch.set_num_threads(threads)
        return watch.bytes


def _untracked(method: Callable[[Clip], Iterator[np.ndarray]]) -> Callable[..., Iterator[np.ndarray]]:
    def masks(clip: Clip, stopwatch: Stopwatch) -> Iterator[np.ndarray]:
        predicted = method(clip)
        for _ in range(len(clip)):
            with stopwatch.stage("kernel"):
                mask = next(predicted)
            yield mask

    return masks


def composed(*overrides: str) -> Any:
    """The configuration of `evaluate.py` with overrides."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("evaluate", overrides=list(overrides))


def options_of_tracker(config: Any) -> dict[str, Any]:
    """Keyword arguments of `Tracker`."""
    return {str(name): value for name, value in config.propagation.items() if str(name)[0] != "_"}


def randomised(backbone: Any) -> Any:
    """The backbone with its weights replaced by random ones."""
    torch.manual_seed(0)
    for module in backbone.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return backbone


def rows(names: list[str] | None, overrides: list[str]) -> list[Row]:
    """The rows with the given names; None for all. Only the models that they need are loaded.

    Args:
        names: any of `copy`, `flow`, `colour`, `imagenet`, `latents`, `teacher`, `random`, `cosine`, `attention`.
        overrides: Hydra overrides of the model's rows.
    """
    backbones: dict[str, Backbone] = {}

    def model(name: str, features: str, *propagation: str) -> Row:
        config = composed(*propagation, *overrides)
        if features not in backbones:
            backbone = build(config, "backbone")
            backbones[features] = SharedFeatures(randomised(backbone) if features == "random" else backbone)
        return Row(name, features, Tracked(backbones[features], options_of_tracker(config)))

    fixed = yardsticks()
    makers: dict[str, Callable[[], Row]] = {
        **{name: fixed[name] for name in ("copy", "flow", "colour")},
        "imagenet": lambda: replace(fixed["efficientnet"](), name="imagenet"),
        **{name: fixed[name] for name in ("latents", "teacher")},
        "random": lambda: model("random", "random"),
        "cosine": lambda: model("cosine", "model", "propagation=tiny_cosine"),
        "attention": lambda: model("attention", "model"),
    }
    unknown = set(names or []) - makers.keys()
    if unknown:
        raise SystemExit(f"unknown row {', '.join(sorted(unknown))}; expected {', '.join(makers)}")
    return [makers[name]() for name in names or makers]


def yardsticks() -> dict[str, Callable[[], Row]]:
    """Makers of the rows that every model is compared with: methods without a model, and simple features."""

    def embedded() -> Any:
        return build(composed(), "backbone")

    return {
        "copy": lambda: Row("copy", "", _untracked(copy_first_mask)),
        "flow": lambda: Row("flow", "", _untracked(warp_by_flow)),
        "colour": lambda: Row("colour", "colour", Tracked(ColourPatches(), PATCHES)),
        "latents": lambda: Row("latents", "latents", Tracked(Latents(embedded()), COSINE)),
        "teacher": lambda: Row("teacher", "teacher", Tracked(TeacherFeatures(), COSINE)),
        "efficientnet": lambda: Row(
            "efficientnet", "efficientnet", Tracked(ImageNetFeatures(IMAGENET_BLOCKS), COSINE)
        ),
        "random": lambda: Row(
            "random", "random", Tracked(randomised(embedded()), options_of_tracker(composed()))
        ),
    }


def run_rows(
    chosen: list[Row], data: Davis2016, *, device: torch.device | None = None, memory: bool = False
) -> dict[str, Figures]:
    """Scores and times of all rows. The rows process each frame in turn, so that features are shared.

    Args:
        chosen: the rows.
        data: the clips.
        device: accelerator that the rows compute on, to wait for; None for the CPU.
        memory: whether to measure peak memory too, on the first frames of the first clip.
    """
    scores = {row.name: DavisScore(data.sequences) for row in chosen}
    watches = {row.name: Stopwatch(device) for row in chosen}
    frames = 0
    for clip in track(list(data.predict_dataloader()), description="clips", transient=True):
        masks = {row.name: row.masks(clip, watches[row.name]) for row in chosen}
        for index in range(len(clip)):
            truth = torch.from_numpy(clip.truth[index])
            for name, predicted in masks.items():
                scores[name].update(
                    torch.from_numpy(next(predicted)),
                    truth,
                    sequence=clip.name,
                    frame=index,
                    frames=len(clip),
                    objects=(1,),
                )
        frames += len(clip)
    computes = {row.features: row.name for row in reversed(chosen)}  # the first row with these features
    figures = {}
    for row in chosen:
        features = watches[computes[row.features]].seconds["features"] / frames
        kernel = watches[row.name].seconds["kernel"] / frames
        peaks: dict[str, int] = {}
        if memory and isinstance(row.masks, Tracked):
            peaks = row.masks.peak_bytes(next(iter(data.predict_dataloader())))
        bytes_of = peaks.get("features", 0), peaks.get("kernel", 0)
        figures[row.name] = Figures(scores[row.name].compute(), features, kernel, *bytes_of)
    return figures


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder in DAVIS-2016's layout")
    parser.add_argument("--sequences", type=lambda text: text.split(","), help="a,b: only these clips")
    parser.add_argument("--rows", type=lambda text: text.split(","), help="a,b: only these rows")
    parser.add_argument("--figure", type=Path, help="draw the scores into this image file")
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, such as backbone.timestep=100")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    data = Davis2016(options.root, sequences=options.sequences)
    figures = run_rows(rows(options.rows, options.overrides), data)
    print_table(figures)
    write_json({"sequences": float(len(data.sequences)), **flat_figures(figures)}, options.json)
    if options.figure is not None:
        draw(figures, options.figure)


def flat_figures(figures: Mapping[str, Figures]) -> dict[str, float]:
    """The figures by name and row, for JSON; megabytes are left out where they were not measured."""
    flat: dict[str, float] = {}
    for name, row in figures.items():
        flat |= {
            f"J_{name}": row.scores.jaccard.mean,
            f"F_{name}": row.scores.boundary.mean,
            f"J&F_{name}": row.scores.j_and_f,
            f"feature_seconds_{name}": row.feature_seconds,
            f"propagation_seconds_{name}": row.propagation_seconds,
            f"seconds_per_frame_{name}": row.feature_seconds + row.propagation_seconds,
        }
        if row.feature_bytes:
            flat[f"feature_megabytes_{name}"] = row.feature_bytes / 1e6
            flat[f"propagation_megabytes_{name}"] = row.propagation_bytes / 1e6
        flat |= {f"J&F_{name}_{score.sequence}": score.j_and_f for score in row.scores.sequences}
    return flat


def print_table(figures: Mapping[str, Figures]) -> None:
    """Prints J&F by clip, means, seconds and megabytes per frame."""
    table = Table(Column("sequence", no_wrap=True), title="J&F by sequence, means, and seconds per frame")
    for name in figures:
        table.add_column(name, justify="right", overflow="fold")
    for place, first in enumerate(next(iter(figures.values())).scores.sequences):
        table.add_row(
            first.sequence, *(f"{row.scores.sequences[place].j_and_f:.3f}" for row in figures.values())
        )
    table.add_section()
    flat = flat_figures(figures)
    for figure in ("J", "F", "J&F", "feature_seconds", "propagation_seconds"):
        table.add_row(figure.replace("_", " "), *(f"{flat[f'{figure}_{name}']:.3f}" for name in figures))
    for figure in ("feature_megabytes", "propagation_megabytes"):
        if any(f"{figure}_{name}" in flat for name in figures):
            values = (flat.get(f"{figure}_{name}") for name in figures)
            table.add_row(
                figure.replace("_", " "), *("" if value is None else f"{value:.0f}" for value in values)
            )
    Console().print(table)


def draw(figures: Mapping[str, Figures], path: Path) -> None:
    """Plots J&F by sequence and row, with the means of the rows in the legend."""
    ranked = sorted(figures, key=lambda name: figures[name].scores.j_and_f)
    sequences = figures[ranked[-1]].scores.sequences
    order = sorted(range(len(sequences)), key=lambda place: sequences[place].j_and_f)
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(order) + 1.6), layout="constrained")
    colours = plt.get_cmap("viridis")(np.linspace(0.05, 0.9, len(ranked)))
    for name, colour in zip(ranked, colours, strict=True):
        values = [figures[name].scores.sequences[place].j_and_f for place in order]
        label = f"{name}  {figures[name].scores.j_and_f:.3f}"
        axes.plot(values, range(len(order)), "o", color=colour, markersize=8, label=label)
    axes.set_yticks(range(len(order)), [sequences[place].sequence for place in order])
    axes.set_xlim(0, 1)
    axes.set_xlabel("J&F")
    axes.grid(axis="both", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], title="row, mean", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
