"""Tracks the objects of a data set's clips and scores the result: `python evaluate.py --help`."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from drift.adaptation.setup import folder_to_use
from drift.callbacks import Dashboard, ResultsWriter
from drift.command_line import build, options_of, prepared, run
from drift.errors import DriftError
from drift.metrics.davis import DavisScores
from drift.module import TrackingModule
from drift.reporting.clip_output import OutputFolder
from drift.reporting.results import results_table

CONFIGS = Path(__file__).parent / "configs"


def evaluate(config: DictConfig) -> DavisScores:
    """Runs one configuration; its files are in `output.dir`."""
    ready = prepared(config)
    data, console, folder = ready.data, ready.console, ready.folder
    with options_of("adaptation"):
        adapters = folder_to_use(
            build(config, "adaptation"), ready.backbone, ready.tracker, folder / "adapters"
        )
    module = TrackingModule(
        ready.backbone,
        refiner=build(config, "refinement"),
        make_tracker=ready.make_tracker,
        adapters=adapters,
        sequences=data.sequences,
        output=OutputFolder(folder, overlays=config.output.overlays),
        progress=ready.progress,
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
