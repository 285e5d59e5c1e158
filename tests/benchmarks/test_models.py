"""Models side by side, and the peak memory of a stage."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from examples import moving_square, write_davis, write_encoder
from safetensors.torch import load_file
from small_models import write_checkpoint_of

from benchmarks import model_cost, model_table, models
from benchmarks.measuring import MemoryWatch


def test_yardsticks_and_models_are_compared_in_one_run(tmp_path, monkeypatch, capsys):
    root = write_davis(tmp_path / "data", {"ant": moving_square(4, (64, 96), name="ant")}, binary=True)
    encoder = f"dinov2:backbone.checkpoint={write_encoder(tmp_path / 'dinov2', 'dinov2')}"
    compared = [
        "copy",
        "colour",
        "latents",
        "efficientnet",
        encoder,
        "tiny:propagation.memory_labels=hard",
        "tiny",
    ]
    files = ["--json", str(tmp_path / "m.json"), "--figure", str(tmp_path / "m.png")]
    monkeypatch.setattr(sys, "argv", ["models", str(root), "--models", ",".join(compared), *files])
    models.main()
    figures = json.loads((tmp_path / "m.json").read_text())
    for name in compared:
        assert figures[f"J&F_{name}"] == pytest.approx((figures[f"J_{name}"] + figures[f"F_{name}"]) / 2)
        assert figures[f"seconds_per_frame_{name}"] > 0
    assert figures["J&F_tiny"] > figures["J&F_copy"]
    assert "feature_megabytes_copy" not in figures
    assert figures["feature_megabytes_tiny"] > figures["feature_megabytes_colour"] > 0
    assert figures["propagation_megabytes_tiny"] > 0
    printed = capsys.readouterr().out
    assert "megabytes" in printed
    assert "ant" in printed
    assert (tmp_path / "m.png").stat().st_size > 1000
    monkeypatch.setattr(sys, "argv", ["models", str(root), "--models", "sd9"])
    with pytest.raises(SystemExit, match="^unknown model sd9; expected copy, flow, .* tiny$"):
        models.main()


def test_the_table_says_what_the_code_knows(tmp_path):
    made = model_table.table(model_table.summaries(("tiny", "siglip2"))).splitlines()
    assert made[2].startswith(
        "| `tiny` | `embedded:tiny` | 2 at 8, 3 at 16 | 6 x 32, 4 x 32 | cross-attention |"
    )
    assert made[3].startswith(
        "| `siglip2` | `google/siglip2-base-patch16-naflex` | 12 at 16 | 12 x 64 | none | none |"
    )
    page = (model_table.ROOT / "docs" / "models.md").read_text()
    assert all(line in page for line in made), "docs/models.md is up to date"


def test_a_pass_of_a_model_with_random_weights_is_measured(tmp_path):
    for weights in write_checkpoint_of("dit", tmp_path).rglob("*.safetensors"):
        weights.unlink()
    model_cost.write_random_weights(tmp_path)
    threads = torch.get_num_threads()
    try:
        cost = model_cost.measured("dit", str(tmp_path))
    finally:
        torch.set_num_threads(threads)
    assert cost["seconds"] > 0
    assert cost["gigabytes"] > 0.1
    saved = load_file(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {weight.dtype for weight in saved.values()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


def test_of_a_model_that_does_not_fit_the_reason_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(model_cost, "COSTS", tmp_path / "costs.json")
    monkeypatch.setattr(model_cost, "free_memory", lambda: 20 * 10**9)
    monkeypatch.setattr(sys, "argv", ["model_cost", "--models", "flux"])
    model_cost.main()
    reason = "the weights of its transformer take 23.8 GB in bfloat16 and half as much again to be saved"
    assert json.loads((tmp_path / "costs.json").read_text()) == {
        "flux": {"refused": f"{reason}, 20.0 GB of memory are free"}
    }


def test_the_peak_of_a_stage_is_what_it_holds_at_once():
    watch, kept = MemoryWatch(torch.device("cpu")), []
    for numbers in (1000, 3000, 2000):
        with watch.stage("features"):
            first = torch.zeros(numbers)
            second = first + 1
            del first
            kept.append(second + 1)
            del second
    assert watch.bytes["features"] == pytest.approx(2 * 3000 * 4, rel=0.05)
