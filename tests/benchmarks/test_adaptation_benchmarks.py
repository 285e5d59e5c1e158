"""The benchmarks of adaptation: both loops fit the same loss, and seeds propagate within a frame."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from examples import moving_square, write_davis

from benchmarks import adaptation, within_image
from benchmarks.yardsticks import ColourPatches
from drift.adaptation import Learned, PromptOptions
from drift.backbones import load_backbone
from drift.propagation import PropagationOptions

LAYERS = ["up_blocks.2.attentions.0", "up_blocks.2.attentions.1"]
COLOUR = PropagationOptions("attention", "fused", temperature=0.02, top_k=5, radius=5)


def test_the_plain_loop_and_ours_are_timed_to_the_same_loss(checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "figures.json"
    words = ["--checkpoint", str(checkpoint), "--layers", ",".join(LAYERS), "--steps", "2", "--most", "4"]
    words += ["--tokens", "2", "--sd-side", "0", "--side", "128", "--runs", "1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["adaptation", *words])
    adaptation.main()
    figures = json.loads(path.read_text())
    assert figures["steps_ours_learned_prompt"] == 2
    speedup = figures["seconds_plain_own_prompt"] / figures["seconds_ours_own_prompt"]
    assert figures["speedup_own_prompt"] == pytest.approx(speedup)
    # The same steps from the same embeddings: after ours the plain loop reaches that loss, at most one step later.
    assert figures["target_reached_plain_own_prompt"] == "true"
    assert figures["steps_plain_own_prompt"] <= 3
    assert figures["loss_plain_own_prompt"] <= 1.01 * figures["loss_ours_own_prompt"]


@pytest.mark.parametrize("conditioned", [False, True])
def test_the_plain_loop_computes_the_loss_of_textual_inversion(checkpoint, conditioned):
    backbone = load_backbone(str(checkpoint), layers=LAYERS, precision="float32")
    clip = moving_square(1, (96, 128))
    options = PromptOptions(tokens=2, conditioned=conditioned, refresh=0, learning_rate=0.1)
    losses = []
    for kind in (adaptation.TextualInversion, adaptation.PlainLoop):
        module = kind(backbone, clip.frames[0], clip.given[0], options)
        adaptation.fitted_seconds(module, 3)
        losses.append(module.losses)
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_seeds_are_a_fraction_of_mask_and_background():
    labels = torch.zeros(20, 30)
    labels[:10, :20] = 1
    drawn = within_image.seeds(labels, 0.05, 0)
    assert drawn[labels > 0].sum() == 10
    assert drawn[labels == 0].sum() == 20


def test_only_seeds_propagate():
    clip = moving_square(1, (96, 128))
    (layer,) = ColourPatches().features(
        torch.from_numpy(clip.frames[0]).permute(2, 0, 1)[None] / 255, torch.Generator()
    )
    covered = within_image.labels_of_mask(torch.from_numpy(clip.given[0]), [1], 8)[0]
    places = within_image.seeds(covered, 0.3, 0).flatten()
    logits = (layer.queries.flatten(2, 3) @ layer.keys.flatten(2, 3).mT)[0, 0, :, places] / (7 * 0.02)
    values, kept = logits.topk(5)
    propagated = (values.softmax(-1) * (covered.flatten()[places] >= 0.5).float()[kept]).sum(-1)
    soft = within_image.SoftLabels(
        torch.stack([1 - propagated, propagated]).unflatten(1, covered.shape), (1,), (96, 128), 8
    )
    expected = within_image.jaccard(soft.mask() > 0, torch.from_numpy(clip.given[0]) > 0).item()
    iou = within_image.propagated_iou(ColourPatches(), clip, {}, COLOUR, fraction=0.3)
    assert iou == pytest.approx(expected)
    assert iou > 0.6


def test_within_image_weights_are_learned_on_the_first_frame():
    clip = moving_square(1, (96, 128))
    weights = within_image.learned_weights(ColourPatches(), clip, COLOUR, Learned(views=1, steps=1))
    assert {layer: np.array(w).tolist() for layer, w in weights.items()} == {"patches": [1.0]}


def test_the_table_within_images_has_all_rows(tmp_path, monkeypatch, capsys):
    root = write_davis(tmp_path / "data", {"ant": moving_square(1, (96, 128), name="ant")}, binary=True)
    path = tmp_path / "figures.json"
    words = ["adaptation.head_weighting.views=1", "adaptation.head_weighting.steps=1", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["within_image", str(root), *words])
    within_image.main()
    rows = ["IoU_random_equal", "IoU_random_learned", "IoU_trained_equal", "IoU_trained_learned"]
    assert list(json.loads(path.read_text())) == rows
    assert "ant" in capsys.readouterr().out
