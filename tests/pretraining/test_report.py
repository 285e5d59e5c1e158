"""The model card's figures: losses over resumed trainings."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pretraining.report import losses, smoothed


def write_log(folder: Path, start: int, rows: dict[int, float]) -> None:
    place = folder / "log" / f"from_{start}"
    place.mkdir(parents=True)
    lines = ["step,loss,other", *(f"{step},{loss}," for step, loss in rows.items()), "999,,3.0"]
    (place / "metrics.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_what_was_trained_again_after_a_resume_replaces_what_was_lost(tmp_path: Path) -> None:
    write_log(tmp_path, 0, {9: 1.0, 19: 0.9, 29: 0.8})
    write_log(tmp_path, 20, {29: 0.7, 39: 0.6})
    write_log(tmp_path, 100, {109: 0.1})
    steps, values = losses(tmp_path, "loss")
    assert steps.tolist() == [9, 19, 29, 39, 109]
    assert values.tolist() == [1.0, 0.9, 0.7, 0.6, 0.1]


def test_smoothing_keeps_a_constant_and_the_length() -> None:
    assert np.allclose(smoothed(np.full(20, 3.0)), 3.0)
    assert len(smoothed(np.arange(4.0))) >= 4
