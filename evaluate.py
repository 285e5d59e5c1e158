"""Tracks the objects of a data set's clips and scores the result: `python evaluate.py --help`."""

from __future__ import annotations

import sys

from drift.commands import CONFIGS
from drift.commands.evaluate import evaluate, main
from drift.interrupts import interruptible

__all__ = ["CONFIGS", "evaluate", "main"]

if __name__ == "__main__":
    sys.exit(interruptible(main))
