"""Half precision changes the speed, and what is read only a little."""

from __future__ import annotations

import pytest
import torch

from drift.backbone import load_latent_diffusion
from drift.backbone.precision import PRECISIONS, computing_in
from drift.errors import OptionError

CPU = torch.device("cpu")
LAYERS = ["up_blocks.1.attentions.0"]


def product_type(precision: str) -> torch.dtype:
    with computing_in(precision, CPU):
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


def test_products_are_computed_in_the_chosen_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert product_type("float32") == torch.float32
    assert product_type("bfloat16") == torch.bfloat16
    for has in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: {"avx512_bf16": has})
        assert product_type("auto") == (torch.bfloat16 if has else torch.float32)


def test_elsewhere_the_trainer_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product_type("auto") == torch.bfloat16
        assert product_type("float32") == torch.float32, "said is said"


def test_an_unknown_precision_is_refused(checkpoint) -> None:
    with pytest.raises(OptionError, match="precision=half: allowed is " + ", ".join(PRECISIONS)):
        load_latent_diffusion(str(checkpoint), layers=LAYERS, timestep=20, precision="half")


def test_what_is_read_is_nearly_the_same_and_in_float32(checkpoint) -> None:
    frames = torch.rand(1, 3, 64, 88)
    readings = []
    for precision in ("float32", "bfloat16"):
        backbone = load_latent_diffusion(str(checkpoint), layers=LAYERS, timestep=20, precision=precision)
        latents = backbone.encode(frames)
        assert latents.dtype == torch.float32
        readings.append(backbone.read(latents, torch.Generator().manual_seed(0))[0])
    for part in ("queries", "keys", "inputs"):
        exact, rough = (getattr(reading, part) for reading in readings)
        assert rough.dtype == torch.float32
        assert not torch.equal(exact, rough)
        cosine = torch.nn.functional.cosine_similarity(exact, rough, dim=-1)
        assert cosine.min() > 0.99
