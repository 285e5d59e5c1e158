"""The benchmarks of adaptation: both loops optimise one loss, and sparse labels spread over what looks alike."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from examples import moving_square

from benchmarks import adaptation, within_image
from benchmarks.yardsticks import ColourPatches
from drift.adaptation.head_weighting import Propagation


def test_the_plain_loop_and_ours_are_timed_to_the_same_loss(checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "figures.json"
    words = ["--checkpoint", str(checkpoint), "--layers", "up_blocks.2.attentions.0,up_blocks.2.attentions.1"]
    words += [
        "--steps",
        "2",
        "--most",
        "4",
        "--tokens",
        "2",
        "--sd-side",
        "0",
        "--side",
        "320",
        "--runs",
        "1",
        "--json",
        str(path),
    ]
    monkeypatch.setattr(sys, "argv", ["adaptation", *words])
    adaptation.main()
    figures = json.loads(path.read_text())
    assert figures["steps_ours"] == 2
    assert 1 <= figures["steps_plain_unconditioned"] <= 4
    assert figures["speedup"] == pytest.approx(figures["seconds_plain"] / figures["seconds_ours"])
    # The same steps from the same start: after ours the plain loop has met that loss, one step later at most.
    assert figures["gave_up_unconditioned"] == "false"
    assert figures["steps_plain_unconditioned"] <= 3
    assert figures["loss_plain_unconditioned"] <= 1.01 * figures["loss_ours_unconditioned"]


def test_seeds_are_a_share_of_mask_and_background():
    labels = torch.zeros(20, 30)
    labels[:10, :20] = 1
    places, known = within_image.seeds(labels, 0.05, 0)
    assert len(places) == len(set(places.tolist())) == 10 + 20
    assert known.sum() == 10
    assert torch.equal(labels.flatten()[places], known)


def test_a_label_spreads_over_what_has_its_colour():
    clip = moving_square(1, (96, 128))
    propagation = Propagation("attention", "fused", 0.02, None, 5)
    spread = within_image.spread_overlap(ColourPatches(), clip, {}, propagation, share=0.3)
    assert spread > 0.6
