"""One meaning of `precision` on every device, and no outer autocast."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from drift import precision
from drift.errors import OptionError
from drift.precision import PRECISIONS, full_precision, resolved_precision


@pytest.mark.parametrize("device", ["cpu", "cuda:1", torch.device("mps")])
def test_a_named_precision_is_the_same_on_every_device(device):
    for name in PRECISIONS[1:]:
        assert resolved_precision(name, device) == getattr(torch, name)


@pytest.mark.parametrize(
    ("device", "capabilities", "expected"),
    [
        ("cpu", {"avx2": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ("cpu", {"avx512_bf16": True}, torch.float32),
        ("cpu", {"amx_bf16": True}, torch.bfloat16),
        ("cpu", {}, torch.float32),
        ("cuda", {}, torch.float16),
        (torch.device("cuda", 1), {"avx512_bf16": True}, torch.float16),
    ],
)
def test_auto_is_the_fast_precision_of_the_device(device, capabilities, expected, monkeypatch):
    monkeypatch.setattr(precision.torch.cpu, "get_capabilities", lambda: capabilities)
    assert resolved_precision("auto", device) == expected


@pytest.mark.parametrize("name", ["half", "fp16", None, 16, "double"])
def test_another_precision_is_refused(name):
    with pytest.raises(
        OptionError,
        match=f"precision={'null' if name is None else name}: allowed is auto, float32, bfloat16, float16",
    ):
        resolved_precision(name, "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_cpu_computes_in_every_precision(dtype):
    images, weights = torch.randn(1, 4, 9, 9).to(dtype), torch.randn(8, 4, 3, 3).to(dtype)
    out = F.group_norm(F.conv2d(images, weights), 2)
    assert out.dtype == dtype
    assert torch.allclose(out.float(), F.group_norm(F.conv2d(images.float(), weights.float()), 2), atol=0.1)


def test_full_precision_suspends_an_outer_autocast():
    large = torch.full((4, 4), 300.0)
    with torch.autocast("cpu", torch.float16):
        assert (large @ large).isinf().all()
        with full_precision("cpu"):
            assert (large @ large == 360_000).all()
        assert (large @ large).dtype == torch.float16
