"""Learns an adapter for each clip of a data set, for `drift evaluate` to use: `drift train --help`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from drift.commands import CONFIGS
from drift.interrupts import interruptible

if TYPE_CHECKING:
    from pathlib import Path

    from omegaconf import DictConfig


def train(config: DictConfig) -> Path:
    """Learns the adapters that are missing in `output.dir`; returns that folder."""
    # Imported here, as a configuration is composed and checked without them.
    from lightning.fabric import Fabric

    from drift.adaptation.adapter_files import AdapterFolder
    from drift.adapter_training import learn_adapters
    from drift.command_line import build, claimed_folder, load_models, start_run
    from drift.errors import OptionError

    started = start_run(config)
    trainer = config.trainer
    strategy = trainer.get("strategy", "auto")
    fabric = Fabric(accelerator=trainer.accelerator, devices=started.devices, strategy=strategy)
    fabric.launch()
    models = load_models(config, fabric.device)
    if not models.adaptation.learns:
        raise OptionError(
            "adaptation", "none", "one that learns: adaptation=tiny, adaptation=drift or experiment=drift"
        )
    adapters = AdapterFolder(models.adaptation, models.propagation, started.folder)
    clips = started.data.clips_of(fabric.global_rank, fabric.world_size)
    with claimed_folder(config, is_global_zero=fabric.is_global_zero):
        logger = build(config, "logger") if fabric.is_global_zero else None
        learn_adapters(
            clips, models.backbone, adapters, loggers=[logger] if logger else [], progress=started.progress
        )
        fabric.barrier()
    if fabric.is_global_zero:
        use = f"python evaluate.py with the same options and adaptation.checkpoints={started.folder}"
        started.console.print(f"adapters: {started.folder}\nuse them: {use}", soft_wrap=True)
    return started.folder


def main() -> int:
    """Runs the command line; returns the exit status."""
    from drift.command_line import run

    return run(train, config_dir=CONFIGS, config_name="train")


if __name__ == "__main__":
    sys.exit(interruptible(main))
