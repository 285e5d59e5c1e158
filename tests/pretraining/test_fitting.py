"""A training that is killed, or whose disk fills up, goes on from what is whole."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch
from examples import CUTOUTS, GROUNDS

from drift.errors import InputError
from pretraining.fitting import fit, newest_whole_checkpoint


class Brightness(L.LightningModule):
    """Learns the mean brightness of scenes, and keeps what it has seen; has no randomness of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.level = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[float] = []

    def training_step(self, batch, batch_index):
        mean = batch.views.mean()
        self.seen.append(float(mean))
        return (self.level - mean).square()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


def train(folder: Path, steps: int) -> Brightness:
    module = Brightness()
    fit(
        module,
        (CUTOUTS, GROUNDS),
        folder=folder,
        max_steps=steps,
        side=16,
        batch_size=2,
        seed=0,
        precision="32-true",
        save_every=2,
    )
    return module


pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", 10)
    first = train(tmp_path / "parts", 6)
    second = train(tmp_path / "parts", 10)
    assert first.seen + second.seen == whole.seen, "each batch once, in order"
    assert torch.equal(second.level, whole.level), "optimizer and average went on too"


def test_a_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first = train(tmp_path, 5)
    again = train(tmp_path, 5)
    assert again.seen == []
    assert torch.equal(again.level, first.level), "the average, not the last weights"


def test_two_checkpoints_are_kept_and_every_start_has_its_own_log(tmp_path: Path) -> None:
    train(tmp_path, 6)
    train(tmp_path, 8)
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=6.ckpt", "step=8.ckpt"]
    assert sorted(path.name for path in (tmp_path / "log").iterdir()) == ["from_0", "from_6"]


@pytest.mark.parametrize("left", [0, 1, 500, 0.5, 0.99])
def test_a_truncated_checkpoint_is_passed_over(
    tmp_path: Path, left: float, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path, 6)
    newest = tmp_path / "step=6.ckpt"
    content = newest.read_bytes()
    newest.write_bytes(content[: int(left * len(content)) if isinstance(left, float) else left])
    assert newest_whole_checkpoint(tmp_path) == tmp_path / "step=4.ckpt"
    assert f"{newest} is not whole" in capsys.readouterr().out
    assert len(train(tmp_path, 8).seen) == 4, "goes on from step 4"
    assert newest_whole_checkpoint(tmp_path) == tmp_path / "step=8.ckpt"


def test_without_a_checkpoint_training_starts_anew(tmp_path: Path) -> None:
    assert newest_whole_checkpoint(tmp_path / "missing") is None
    (tmp_path / "step=2.ckpt").write_text("no checkpoint", encoding="utf-8")
    assert newest_whole_checkpoint(tmp_path) is None
    assert len(train(tmp_path, 4).seen) == 4


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = L.Trainer.save_checkpoint

    def fill(trainer: L.Trainer, path: str, *rest: object) -> None:
        if "step=4" in str(path):
            Path(path).write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(trainer, path, *rest)

    monkeypatch.setattr(L.Trainer, "save_checkpoint", fill)
    with pytest.raises(InputError, match="the disk is full; make room") as raised:
        train(tmp_path, 6)
    assert "step=4.ckpt" in str(raised.value)
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["step=2.ckpt"]
    monkeypatch.undo()
    assert len(train(tmp_path, 6).seen) == 4


def test_a_killed_training_goes_on(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]; from pathlib import Path; "
        "from test_fitting import train; train(Path(sys.argv[1]), 100000)"
    )
    places = [str(Path(__file__).parent), *sys.path]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), *places],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 120
        while newest_step(tmp_path) < 8 and time.monotonic() < until:
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    found = newest_whole_checkpoint(tmp_path)
    assert found is not None
    done = int(found.stem.removeprefix("step="))
    assert done >= 8
    assert len(train(tmp_path, done + 4).seen) == 4


def newest_step(folder: Path) -> int:
    return max((int(path.stem.removeprefix("step=")) for path in folder.glob("step=*.ckpt")), default=0)
