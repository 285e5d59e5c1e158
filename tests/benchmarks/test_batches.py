"""Time and memory by batch size."""

from __future__ import annotations

import json
import sys

from benchmarks import batches


def test_every_size_of_batch_is_measured(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    words = ["--batches", "1", "3", "--size", "40", "56", "--runs", "1", "--json", str(out), "backbone=tiny"]
    monkeypatch.setattr(sys, "argv", ["batches", *words])
    batches.main()
    figures = json.loads(out.read_text())
    assert figures.keys() == {f"{kind}_{n}" for n in (1, 3) for kind in ("seconds_per_frame", "megabytes")}
    assert figures["megabytes_3"] > 2 * figures["megabytes_1"] > 0
