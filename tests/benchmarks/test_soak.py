"""Memory, open files and threads in a long run."""

from __future__ import annotations

import sys

import pytest

from benchmarks import soak


def test_usage_is_constant_while_objects_are_added_and_removed(tmp_path):
    rows = list(soak.soak(30, side=64, interval=3, folder=tmp_path, device="cpu"))
    assert [row["frames"] for row in rows] == list(range(3, 31, 3))
    assert [row["objects"] for row in rows] == [3, 6, *[9] * 8]
    assert rows[-1]["files"] == rows[4]["files"]
    assert rows[-1]["remembered"] == rows[-2]["remembered"]
    assert len(list((tmp_path / "masks" / "soak").iterdir())) == 30


@pytest.mark.parametrize(("last", "status"), [(100.0, 0), (150.0, 1)])
def test_the_exit_status_is_1_if_memory_increases(monkeypatch, capsys, tmp_path, last, status):
    held = [{"frames": n, "megabytes": 100.0 if n < 9 else last, "files": 3, "threads": 2} for n in range(10)]
    monkeypatch.setattr(soak, "soak", lambda *arguments, **options: iter(held))
    monkeypatch.setattr(sys, "argv", ["soak", "--json", str(tmp_path / "out.json")])
    assert soak.main() == status
    assert ("increases: megabytes" in capsys.readouterr().out) == bool(status)
