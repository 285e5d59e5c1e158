"""Every backbone of a diffusion model follows an object of the sample clip, with its YAML and a small random model."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from small_models import CHECKPOINTS

import drift
import evaluate
from drift.command_line import build
from drift.image_files import read_frame, read_mask

SAMPLE = Path(drift.__file__).parent / "assets" / "sample"
CHOICES = sorted({*CHECKPOINTS, "sd15", "sd21", "sd21_base", "sd_turbo", "sdxl_turbo"})


def resized(picture: np.ndarray, interpolation: int) -> np.ndarray:
    return cv2.resize(picture, (213, 120), interpolation=interpolation)


@pytest.mark.parametrize("name", CHOICES)
def test_an_object_of_the_sample_clip_is_followed(name, checkpoint, small_checkpoint):
    family = name.removesuffix("_turbo")
    folder = small_checkpoint(family) if family in CHECKPOINTS else checkpoint
    overrides = [f"backbone={name}", f"backbone.checkpoint={folder}", "backbone.precision=float32"]
    with initialize_config_dir(str(evaluate.CONFIGS), version_base="1.3"):
        config = compose("evaluate", overrides=overrides)
    tracker = build(config, "propagation")(build(config, "backbone"))
    frames = [resized(read_frame(path), cv2.INTER_AREA) for path in sorted(SAMPLE.rglob("*.jpg"))[:3]]
    given = resized(read_mask(min(SAMPLE.rglob("*.png"))), cv2.INTER_NEAREST)
    masks = [tracker.step(frame, given if index == 0 else None).mask() for index, frame in enumerate(frames)]
    assert (masks[0].numpy() == given).all()
    assert all(mask.shape == given.shape for mask in masks)
    assert set(masks[-1].unique().tolist()) <= set(np.unique(given).tolist())
    followed = (masks[-1].numpy() > 0) & (given > 0)
    assert followed.sum() > 0.3 * (given > 0).sum(), "the object hardly moves in three frames"
