"""Learns an adapter for each of a data set's clips, for `evaluate.py` to use: `python train.py --help`."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig

from drift.adaptation.setup import folder_to_fill
from drift.command_line import build, options_of, prepared, run
from drift.processes import watched
from drift.training import AdaptersModule

CONFIGS = Path(__file__).parent / "configs"


def train(config: DictConfig) -> Path:
    """Learns what is missing in `output.dir`, and gives that folder."""
    ready = prepared(config)
    with options_of("adaptation"):
        adapters = folder_to_fill(build(config, "adaptation"), ready.backbone, ready.tracker, ready.folder)
    module = AdaptersModule(ready.backbone, adapters=adapters, progress=ready.progress)
    trainer = build(config, "trainer", logger=build(config, "logger") or False)
    try:
        with watched(trainer):
            trainer.predict(module, datamodule=ready.data, return_predictions=False)
    except Exception:
        module.end_loggers(exit_code=1)
        raise
    finally:
        ready.progress.stop()  # an error stands alone
    if trainer.is_global_zero:
        ready.console.print(f"adapters: {ready.folder}", soft_wrap=True)
        ready.console.print(
            f"use them: python evaluate.py ... adaptation=drift adaptation.checkpoints={ready.folder}",
            soft_wrap=True,
        )
    return ready.folder


if __name__ == "__main__":
    sys.exit(run(train, config_dir=CONFIGS, config_name="train"))
