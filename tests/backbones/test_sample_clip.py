"""Every backbone of a diffusion model runs on the sample clip, with its YAML and a small random model of its class."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
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
def test_labels_are_propagated_through_the_sample_clip(name, checkpoint, small_checkpoint):
    family = name.removesuffix("_turbo")
    folder = small_checkpoint(family) if family in CHECKPOINTS else checkpoint
    overrides = [f"backbone={name}", f"backbone.checkpoint={folder}", "backbone.precision=float32"]
    with initialize_config_dir(str(evaluate.CONFIGS), version_base="1.3"):
        config = compose("evaluate", overrides=overrides)
    tracker = build(config, "propagation")(build(config, "backbone"))
    frames = [resized(read_frame(path), cv2.INTER_AREA) for path in sorted(SAMPLE.rglob("*.jpg"))[:3]]
    given = resized(read_mask(min(SAMPLE.rglob("*.png"))), cv2.INTER_NEAREST)
    soft = [tracker.step(frame, given if index == 0 else None) for index, frame in enumerate(frames)]
    assert (soft[0].mask().numpy() == given).all()
    for labels in soft:
        assert labels.mask().shape == given.shape
        assert labels.object_ids == tuple(int(number) for number in np.unique(given) if number)
        assert torch.allclose(labels.probabilities.sum(0), torch.ones(()), atol=1e-4)
    assert tracker.backbone.stride <= labels.stride
    assert 0 < float(labels.probabilities[1:].max()) <= 1 + 1e-4, (
        "what random weights propagate of the object"
    )
