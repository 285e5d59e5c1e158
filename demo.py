"""A page on which objects are clicked on, tracked and corrected: `python demo.py --help`."""

from __future__ import annotations

import sys

from drift.commands import CONFIGS
from drift.commands.demo import demo, main, options
from drift.interrupts import interruptible

__all__ = ["CONFIGS", "demo", "main", "options"]

if __name__ == "__main__":
    sys.exit(interruptible(main))
