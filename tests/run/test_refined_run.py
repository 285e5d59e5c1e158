"""evaluate.py with a refinement: what is in its files, and what bad weights are answered with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import few_steps, moving_square, write_davis

import evaluate
from drift.command_line import run
from drift.image_files import read_mask
from drift.refinement.tiny_sam import TinySam


@pytest.fixture
def command(checkpoint, tmp_path, monkeypatch, capsys):
    """Runs `evaluate.py` on a small clip with the small checkpoint; gives the exit status and the errors."""
    root = write_davis(tmp_path / "data", {"ant": moving_square(4, name="ant")})

    def call(*overrides: str) -> tuple[int, str]:
        words = [
            "data=davis",
            f"data.root={root}",
            f"backbone.checkpoint={checkpoint}",
            "backbone.layers=[up_blocks.2.attentions.0]",
            "logger=none",
            "output.attention=false",
            "output.formats=[masks]",
            f"output.dir={tmp_path / 'out'}",
            *overrides,
        ]
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *few_steps(words)])
        status = run(evaluate.evaluate, config_dir=evaluate.CONFIGS, config_name="evaluate")
        return status, capsys.readouterr().err

    return call


@pytest.mark.parametrize("feedback", ["true", "false"])
@pytest.mark.parametrize("choice", ["grabcut", "sam_tiny"])
def test_results_count_what_became_of_each_mask(command, tmp_path, choice, feedback):
    assert command(f"refinement={choice}", f"refinement.feedback={feedback}") == (0, "")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    counts = results["sequences"]["ant"]["refinements"]
    assert counts.keys() <= {"refined", "disagrees", "jumps", "lost"}
    assert sum(counts.values()) == 3
    assert results["seconds_per_frame_by_stage"]["refine"] > 0
    first = read_mask(tmp_path / "out" / "masks" / "ant" / "00000.png")
    assert np.array_equal(first, moving_square(4).truth[0])


def test_without_refinement_nothing_is_counted(command, tmp_path):
    assert command("refinement=none") == (0, "")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "refinements" not in results["sequences"]["ant"]


def test_another_checkpoint_than_the_embedded_one_is_taken_by_its_name(command, tmp_path):
    file = tmp_path / "mine.pth"
    torch.save(TinySam().state_dict(), file)
    assert command("refinement=sam", f"refinement.checkpoint={file}") == (0, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["refinement=sam"], ["sam_vit_h_4b8939.pth", "no such file", "refinement.download=true"]),
        (["refinement=sam", "refinement.checkpoint=cut.pth"], ["cut.pth", "truncated"]),
        (["refinement=sam_tiny", "refinement.min_iou=2"], ["refinement.min_iou=2", "0 to 1"]),
        (["refinement=sam_tiny", "refinement.positive_points=many"], ["refinement.positive_points=many"]),
        (["refinement=sam_tiny", "refinement.feedback=often"], ["refinement.feedback=often"]),
        (["refinement=grabcut", "refinement.iterations=0"], ["refinement.iterations=0"]),
        (["refinement=sam_tiny", "refinement.point=3"], ["refinement.point", "positive_points"]),
    ],
)
def test_bad_options_and_files_are_answered_in_one_line(command, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    Path("cut.pth").write_bytes(b"PK\x03\x04 and no more")
    status, errors = command(*words)
    assert status == 2
    assert len(errors.splitlines()) == 1
    assert all(part in errors for part in said)
