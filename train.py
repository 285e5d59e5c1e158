"""Learns an adapter for each clip of a data set, for `evaluate.py` to use: `python train.py --help`."""

from __future__ import annotations

import sys

from drift.commands import CONFIGS
from drift.commands.train import main, train
from drift.interrupts import interruptible

__all__ = ["CONFIGS", "main", "train"]

if __name__ == "__main__":
    sys.exit(interruptible(main))
