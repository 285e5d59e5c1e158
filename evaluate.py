"""Tracks the objects of a data set's clips and scores the result: `python evaluate.py --help`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from drift.adaptation.setup import folder_to_use
from drift.callbacks import Dashboard, ResultsWriter
from drift.command_line import build, options_of, prepared, run
from drift.errors import DriftError, InputError, OptionError
from drift.formats.choosing import check_formats
from drift.metrics.davis import DavisScore, DavisScores
from drift.module import TrackingModule
from drift.options import choice
from drift.reporting.clip_output import OutputFolder
from drift.reporting.results import results_table
from drift.resuming import ProgressFolder, settings_that_count
from drift.submission import write_submission

CONFIGS = Path(__file__).parent / "configs"


def evaluate(config: DictConfig) -> DavisScores:
    """Runs one configuration; its files are in `output.dir`."""
    ready = prepared(config)
    data, console, folder = ready.data, ready.console, ready.folder
    with options_of("adaptation"):
        adapters = folder_to_use(
            build(config, "adaptation"), ready.backbone, ready.tracker, folder / "adapters"
        )
    settings = OmegaConf.to_container(config, resolve=True)
    output = output_folder(folder, settings)
    module = TrackingModule(
        ready.backbone,
        refiner=build(config, "refinement"),
        make_tracker=ready.make_tracker,
        adapters=adapters,
        score=DavisScore(data.sequences, last_frame=data.scores_last_frame),
        output=output,
        progress=ready.progress,
        attention_figures=config.output.attention,
    )
    results = ResultsWriter(settings)
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
        if submission := data.submission():
            write_submission(folder / "submission.zip", folder / "masks", submission)
            console.print(f"for the server: {folder / 'submission.zip'}", soft_wrap=True)
    if defects := [clip.defect for clip in results.clips if clip.defect]:
        raise InputError("; ".join(defects))
    return results.scores


def output_folder(folder: Path, settings: Mapping[str, Any]) -> OutputFolder:
    """Where a run writes, and what it goes on from.

    Raises:
        DriftError: an option of `output` is not allowed.
    """
    output = settings["output"]
    with options_of("output"):
        check_formats(output["formats"])
        choice("resume", output["resume"], (True, False))
        if output["resume"] and "masks" not in output["formats"]:
            raise OptionError(
                "formats", output["formats"], "with output.resume=true a list that has masks in it"
            )
    progress = ProgressFolder(folder, settings_that_count(settings), resume=output["resume"])
    return OutputFolder(folder, tuple(output["formats"]), progress)


if __name__ == "__main__":
    sys.exit(run(evaluate, config_dir=CONFIGS, config_name="evaluate"))
