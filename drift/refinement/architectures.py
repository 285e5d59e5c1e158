"""Segment Anything models from the package `segment-anything`: the official sizes and a small one."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

from drift.refinement.tiny_encoder import TinyImageEncoder

__all__ = ["OFFICIAL_SIZES", "build_official", "build_tiny"]

OFFICIAL_SIZES = ("vit_b", "vit_l", "vit_h")
_PACKAGE = "segment_anything"
_SIDE, _WIDTH, _STRIDE, _HEADS = 640, 128, 16, 4  # of the small model
_MEAN, _STD = 127.0, 128.0  # of pixels in [0, 255]


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


def build_tiny() -> Any:
    """A `Sam` of 4.5 million parameters with random weights, for inputs of 640 x 640 pixels, stride 16."""
    modeling = _load("modeling")
    grid = (_SIDE // _STRIDE, _SIDE // _STRIDE)
    return modeling.Sam(
        image_encoder=TinyImageEncoder(img_size=_SIDE, width=_WIDTH),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=_WIDTH, image_embedding_size=grid, input_image_size=(_SIDE, _SIDE), mask_in_chans=16
        ),
        mask_decoder=modeling.MaskDecoder(
            num_multimask_outputs=3,
            transformer=modeling.TwoWayTransformer(
                depth=2, embedding_dim=_WIDTH, mlp_dim=4 * _WIDTH, num_heads=_HEADS
            ),
            transformer_dim=_WIDTH,
            iou_head_depth=3,
            iou_head_hidden_dim=_WIDTH,
        ),
        pixel_mean=[_MEAN] * 3,
        pixel_std=[_STD] * 3,
    ).eval()
