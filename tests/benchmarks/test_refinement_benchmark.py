"""The refinement benchmark: scores, outcome counts, IoU lift, times, and the command."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from examples import Clips, moving_square, write_davis

from benchmarks import refinement
from benchmarks.refinement import lift, milliseconds, run_variants
from benchmarks.yardsticks import ColourPatches
from drift.clip import Clip
from drift.propagation.refiner import Refined

OPTIONS = {"affinity": "attention", "heads": "joint", "temperature": 0.01, "top_k": 3, "radius": 5}


class TrueMasks:
    """Refines every mask to the true mask of the frame."""

    def __init__(self, clip: Clip, *, feedback: bool) -> None:
        self.feedback, self._clip, self.calls = feedback, clip, 0

    def refine(self, frame, labels):
        self.calls += 1
        index = next(i for i, other in enumerate(self._clip.frames) if np.array_equal(other, frame.numpy()))
        truth = torch.from_numpy(self._clip.truth[index] > 0).float()[None]
        return Refined(torch.cat([1 - truth, truth]), ("refined",))


def test_each_variant_has_its_own_scores_and_outcome_counts():
    clip = moving_square(5, (64, 96))
    refiners = {
        "none": None,
        "plain": TrueMasks(clip, feedback=False),
        "feedback": TrueMasks(clip, feedback=True),
    }
    figures = run_variants(ColourPatches(), refiners, OPTIONS, Clips(clip))
    assert figures["plain"].scores.j_and_f == figures["feedback"].scores.j_and_f == 1.0
    assert figures["none"].scores.j_and_f < 1.0
    assert figures["none"].outcomes == {}
    assert figures["plain"].outcomes == figures["feedback"].outcomes == {"refined": 4}
    assert refiners["plain"].calls == refiners["feedback"].calls == 4


def test_lift_gives_the_iou_before_and_after_refinement():
    clip = moving_square(5, (120, 200))
    before, after = lift(TrueMasks(clip, feedback=False), Clips(clip), every=1)
    assert 0.25 <= before < 1
    assert after == 1.0


def test_a_frame_is_timed_with_the_given_number_of_objects():
    counts = []

    class Recorder:
        feedback = False

        def refine(self, frame, labels):
            counts.append(len(labels.object_ids))
            return Refined(labels.upsampled(), ())

    assert milliseconds(Recorder(), 10, runs=2) > 0
    assert counts == [10] * 3


def test_the_command_prints_and_writes_all_figures(tmp_path, monkeypatch, capsys, checkpoint):
    root = write_davis(tmp_path / "data", {"ant": moving_square(4, name="ant")}, binary=True)
    words = [
        str(root),
        *("--variants", "none,grabcut", "--runs", "1", "--json", str(tmp_path / "out.json")),
        f"backbone.checkpoint={checkpoint}",
        "backbone.layers=[up_blocks.2.attentions.0]",
    ]
    monkeypatch.setattr(sys, "argv", ["refinement", *words])
    refinement.main()
    flat = json.loads((tmp_path / "out.json").read_text())
    assert {"J_none", "F_grabcut", "J&F_grabcut_ant", "ms_per_frame_grabcut", "ten_grabcut"} <= flat.keys()
    assert {"ms_per_extra_object_grabcut", "corrupted_iou_grabcut", "refined_iou_grabcut"} <= flat.keys()
    assert "ant" in capsys.readouterr().out


def test_an_unknown_variant_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["refinement", str(tmp_path), "--variants", "magic"])
    with pytest.raises(SystemExit):
        refinement.main()
    assert "unknown variant magic" in capsys.readouterr().err
