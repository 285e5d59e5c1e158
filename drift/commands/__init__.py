"""The commands of `drift`; `evaluate.py`, `train.py` and `demo.py` of a checkout run the same."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CONFIGS"]

_PACKAGED = Path(__file__).parents[1] / "configs"

CONFIGS = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "configs"
"""The configurations: in an installed package, or at the top of a checkout."""
