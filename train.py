"""Learns an adapter for each of a data set's clips, for `evaluate.py` to use: `python train.py --help`."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
from omegaconf import DictConfig
from rich.console import Console

from drift.adaptation.setup import folder_to_fill
from drift.command_line import build, options_of, prepare_output, run
from drift.reporting.progress import ProgressBars
from drift.training import AdaptersModule

CONFIGS = Path(__file__).parent / "configs"


def train(config: DictConfig) -> Path:
    """Learns what is missing in `output.dir`, and gives that folder."""
    folder = prepare_output(config)
    L.seed_everything(config.seed, workers=True, verbose=False)
    console = Console()
    data = build(config, "data")
    with options_of("data"):
        data.setup()
    backbone, make_tracker = build(config, "backbone"), build(config, "propagation")
    with options_of("propagation"):
        tracker = make_tracker(backbone)
    with options_of("adaptation"):
        adapters = folder_to_fill(build(config, "adaptation"), backbone, tracker, folder)
    progress = ProgressBars(console, enabled=config.output.progress and console.is_terminal)
    module = AdaptersModule(backbone, adapters=adapters, progress=progress)
    trainer = build(config, "trainer", logger=build(config, "logger") or False)
    try:
        trainer.predict(module, datamodule=data, return_predictions=False)
    finally:
        progress.stop()  # an error stands alone
    if trainer.is_global_zero:
        console.print(f"adapters: {folder}", soft_wrap=True)
        console.print(f"use them: python evaluate.py ... adaptation.checkpoints={folder}", soft_wrap=True)
    return folder


if __name__ == "__main__":
    sys.exit(run(train, config_dir=CONFIGS, config_name="train"))
