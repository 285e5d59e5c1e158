"""`benchmarks.prompts`: kinds of prompts, clicks in errors, command line."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from examples import moving_square, write_davis

from benchmarks import prompts
from benchmarks.prompts import KINDS, prompted
from drift.refinement.refinement import Proposals

CLIP = moving_square(2, (64, 96))
FRAME, TRUTH = CLIP.frames[0], CLIP.truth[0] > 0


class Knowing:
    """Returns an empty mask for the first prompts, then the true mask."""

    def __init__(self, wrong: int = 0) -> None:
        self.asked: list = []
        self.wrong = wrong

    def grid(self, frame_size):
        return frame_size

    def segment(self, frame, prompt):
        self.asked.append(prompt)
        return torch.from_numpy(TRUTH & (len(self.asked) > self.wrong))

    def propose(self, frame, probabilities, objects):
        assert probabilities.shape == (2, *TRUTH.shape)
        assert objects == [1]
        return Proposals(torch.from_numpy(TRUTH).float()[None, None], torch.ones(1, 1))


def test_the_true_mask_has_an_iou_of_1():
    ious = prompted(Knowing(), FRAME, TRUTH)
    assert ious.keys() == {*KINDS, "corrupted"}
    assert all(ious[kind] == 1 for kind in KINDS)
    assert ious["corrupted"] < 1


def test_the_box_is_exact_and_clicks_go_on_where_the_mask_is_wrong():
    knowing = Knowing(wrong=3)
    ious = prompted(knowing, FRAME, TRUTH)
    rows, columns = np.nonzero(TRUTH)
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert knowing.asked[0].box == box
    assert [len(prompt.points) for prompt in knowing.asked[1:]] == [1, 2, 3, 4, 5]
    assert all(TRUTH[int(y), int(x)] for x, y in knowing.asked[3].points)
    assert knowing.asked[3].inside == (True, True, True)
    assert (ious["box"], ious["one click"], ious["five clicks"]) == (0, 0, 1)


def test_the_command_prints_and_writes_all_figures(tmp_path, monkeypatch, capsys):
    root = write_davis(tmp_path / "data", {"ant": moving_square(3, name="ant")}, binary=True)
    monkeypatch.setattr(sys, "argv", ["prompts", str(root), "--json", str(tmp_path / "out.json")])
    prompts.main()
    flat = json.loads((tmp_path / "out.json").read_text())
    assert flat.keys() == {
        f"{kind}_{name}_ant" for name in prompts.PROPOSERS for kind in (*KINDS, "corrupted")
    }
    assert flat["box_sam_tiny_ant"] == pytest.approx(1, abs=0.5)
    assert "ant" in capsys.readouterr().out
