"""Segment Anything models of the official sizes, from the package `segment-anything`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

__all__ = ["OFFICIAL_SIZES", "build_official"]

OFFICIAL_SIZES = ("vit_b", "vit_l", "vit_h")
_PACKAGE = "segment_anything"


def _load(name: str) -> ModuleType:
    """Imports a module of the package without running `segment_anything/__init__.py`, which needs torchvision."""
    package = sys.modules.get(_PACKAGE)
    if package is None:
        spec = importlib.util.find_spec(_PACKAGE)
        assert spec is not None
        sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module(f"{_PACKAGE}.{name}")
    finally:
        if package is None:
            del sys.modules[_PACKAGE]  # a later import runs the package's `__init__`


def build_official(size: str) -> Any:
    """A `Sam` of one of `OFFICIAL_SIZES` with random weights, for inputs of 1024 x 1024 pixels."""
    return _load("build_sam").sam_model_registry[size]()
