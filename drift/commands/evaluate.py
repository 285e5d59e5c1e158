"""Tracks the objects of a data set's clips and scores the result: `drift evaluate --help`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

from drift.commands import CONFIGS
from drift.interrupts import interruptible

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from drift.metrics.davis import DavisScores


def evaluate(config: DictConfig) -> DavisScores | None:
    """Runs one configuration and writes to `output.dir`.

    Returns:
        The scores; None in processes other than the first.
    """
    # Imported here, as a configuration is composed and checked without them.
    from pathlib import Path

    from omegaconf import OmegaConf

    from drift.adaptation.adapter_files import AdapterFolder
    from drift.callbacks import ReportWriter, ResultsWriter
    from drift.command_line import build, claimed_folder, load_models, options_of, start_run
    from drift.dashboard import Dashboard
    from drift.errors import DriftError, InputError
    from drift.metrics.davis import DavisScore
    from drift.module import TrackingModule
    from drift.processes import watched
    from drift.reporting.output_folder import output_folder
    from drift.reporting.run_log import RunLog
    from drift.submission import write_submission

    settings = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    output = output_folder(settings)
    started = start_run(config)
    data, folder = started.data, started.folder
    submission = data.submission()
    if submission and "masks" not in output.formats:
        raise DriftError("output.formats: must contain masks, which the data set's server scores")
    log = RunLog(
        started.console,
        as_json=config.output.json_logs,
        verbose=config.output.verbose,
        last_frame=data.scores_last_frame,
    )
    results = ResultsWriter(settings, log)
    reports = [ReportWriter(folder, results)] if config.output.report else []
    callbacks = [results, Dashboard(settings, results), *reports]
    trainer = build(config, "trainer", devices=started.devices, callbacks=callbacks)
    models = load_models(config, trainer.strategy.root_device)
    cache = config.backbone.get("cache")
    with options_of("adaptation"):
        adapters = AdapterFolder.to_read(
            models.adaptation,
            models.propagation,
            folder / "adapters",
            shared=Path(cache).expanduser() / "adapters" if cache else None,
        )
    module = TrackingModule(
        models.backbone,
        refiner=models.refiner,
        make_tracker=models.make_tracker,
        adapters=adapters,
        score=DavisScore(data.sequences, last_frame=data.scores_last_frame),
        output=output.of(data.sequences),
        progress=started.progress,
        waits_for_device=bool(config.output.verbose),
    )
    with claimed_folder(config, is_global_zero=trainer.is_global_zero), watched(trainer):
        trainer.logger = build(config, "logger")
        trainer.predict(module, datamodule=data, return_predictions=False)
        if trainer.is_global_zero and results.scores:
            archive = folder / "submission.zip" if submission else None
            if archive and submission:
                write_submission(archive, folder / "masks", submission)
            log.end(results.clips, results.scores, folder, archive)
    if defects := [clip.defect for clip in results.clips if clip.defect]:
        raise InputError("; ".join(defects))
    return results.scores


def main() -> int:
    """Runs the command line; returns the exit status."""
    from drift.command_line import run

    return run(evaluate, config_dir=CONFIGS, config_name="evaluate")


if __name__ == "__main__":
    sys.exit(interruptible(main))
