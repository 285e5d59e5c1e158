"""Entry points `drift evaluate`, `drift train` and `drift demo`, also those of the scripts of a checkout."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CONFIGS"]

_PACKAGED = Path(__file__).parents[1] / "configs"

CONFIGS = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2] / "configs"
"""Folder of the Hydra configurations: `drift/configs` in an installed package, `configs` in a checkout."""
