"""Tracks the objects of a data set's clips and scores the result: `python evaluate.py --help`."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from drift.adaptation.setup import folder_to_use
from drift.callbacks import Dashboard, ResultsWriter
from drift.command_line import build, options_of, prepare_output, run
from drift.errors import DriftError
from drift.metrics.davis import DavisScores
from drift.module import TrackingModule
from drift.reporting.clip_output import OutputFolder
from drift.reporting.progress import ProgressBars
from drift.reporting.results import results_table

CONFIGS = Path(__file__).parent / "configs"


def evaluate(config: DictConfig) -> DavisScores:
    """Runs one configuration; its files are in `output.dir`."""
    folder = prepare_output(config)
    L.seed_everything(config.seed, workers=True, verbose=False)
    console = Console()
    data = build(config, "data")
    with options_of("data"):
        data.setup()
    backbone, make_tracker = build(config, "backbone"), build(config, "propagation")
    with options_of("propagation"):
        tracker = make_tracker(backbone)  # each clip gets its own; this one only tells what its options lack
    with options_of("adaptation"):
        adapters = folder_to_use(build(config, "adaptation"), backbone, tracker, folder / "adapters")
    module = TrackingModule(
        backbone,
        make_tracker=make_tracker,
        adapters=adapters,
        sequences=data.sequences,
        output=OutputFolder(folder, overlays=config.output.overlays),
        progress=ProgressBars(console, enabled=config.output.progress and console.is_terminal),
        attention_figures=config.output.attention,
    )
    results = ResultsWriter(OmegaConf.to_container(config, resolve=True))
    logger = build(config, "logger")
    trainer = build(config, "trainer", logger=logger or False, callbacks=[results, Dashboard()])
    if trainer.world_size > len(data.sequences):
        raise DriftError(
            f"trainer.devices={config.trainer.devices}: allowed is 1 to {len(data.sequences)}, one per clip"
        )
    trainer.predict(module, datamodule=data, return_predictions=False)
    if trainer.is_global_zero:
        console.print(results_table(results.clips, results.scores))
        console.print(f"masks, overlays and results: {folder}", soft_wrap=True)
    return results.scores


if __name__ == "__main__":
    sys.exit(run(evaluate, config_dir=CONFIGS, config_name="evaluate"))
