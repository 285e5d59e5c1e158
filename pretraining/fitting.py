"""Resumable training with Lightning on generated scenes."""

from __future__ import annotations

import errno
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset

from drift.errors import InputError
from pretraining.scenes import SceneDataset

__all__ = ["fit", "newest_whole_checkpoint"]


class _SceneData(L.LightningDataModule):
    """Scenes from the global step onwards, so that a resumed training repeats none."""

    def __init__(
        self,
        dataset: Callable[..., Dataset],
        sources: tuple,
        *,
        side: int,
        batch_size: int,
        max_steps: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.dataset, self.sources, self.side, self.batch_size = dataset, sources, side, batch_size
        self.max_steps, self.seed = max_steps, seed

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        done, processes = self.trainer.global_step, self.trainer.world_size
        batches = self.dataset(
            *self.sources,
            side=self.side,
            length=self.max_steps * processes,  # Lightning counts those of before the resume as well
            batch_size=self.batch_size // processes,
            seed=self.seed,
            first=done * processes,
        )
        return DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=4)


def _step(checkpoint: Path) -> int:
    """Step number in a file name such as `step=200.ckpt`."""
    return int(checkpoint.stem.partition("=")[2])


def newest_whole_checkpoint(folder: Path) -> Path | None:
    """Newest readable checkpoint in `folder`, or None.

    Truncated checkpoints are skipped with a message.
    """
    for checkpoint in sorted(folder.glob("step=*.ckpt"), key=_step, reverse=True):
        try:
            torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
            print(f"{checkpoint} is not whole: passed over")
        else:
            return checkpoint
    return None


class _Checkpoints(ModelCheckpoint):
    """Keeps the two newest checkpoints; deletes an old one only after a new one is written."""

    def __init__(self, folder: Path, every: int) -> None:
        super().__init__(
            folder,
            filename="{step}",
            monitor="step",
            mode="max",
            save_top_k=2,
            every_n_train_steps=every,
            enable_version_counter=False,
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the last step too, if it is no multiple of `every`."""
        if trainer.global_step != self._last_global_step_saved:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        try:
            super()._save_checkpoint(trainer, filepath)
        except OSError as error:
            Path(filepath).unlink(missing_ok=True)
            reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
            raise InputError(
                f"{filepath}: the checkpoint could not be written, {reason}; make room and give the same "
                "command again: it goes on from the checkpoint before"
            ) from error


def fit(
    module: L.LightningModule,
    sources: tuple,
    *,
    folder: Path,
    max_steps: int,
    side: int,
    batch_size: int,
    seed: int,
    dataset: Callable[..., Dataset] = SceneDataset,
    precision: str = "bf16-mixed",
    ema_decay: float = 0.998,
    save_every: int = 100,
    processes: int = 1,
) -> None:
    """Trains `module` for `max_steps`, resuming from the newest readable checkpoint in `folder`.

    At the end the module holds the exponential moving average of its weights. Every start writes its
    losses into a folder of its own, `folder/log/from_STEP`. `dataset` gives the batches from `sources`, as
    `SceneDataset` does from cut-outs and backgrounds. With several `processes` each takes its share of every batch,
    which on a CPU is faster than as many threads.

    Raises:
        InputError: a checkpoint could not be written; those before it are untouched.
    """
    resumed = newest_whole_checkpoint(folder)
    started = 0 if resumed is None else _step(resumed)
    average: Any = EMAWeightAveraging(decay=ema_decay, update_starting_at_step=save_every)
    trainer = L.Trainer(
        max_steps=max_steps,
        max_epochs=-1,
        accelerator="auto" if torch.cuda.is_available() and processes == 1 else "cpu",
        devices=processes,
        strategy="auto" if processes == 1 else "ddp_fork",
        precision=precision,  # type: ignore[arg-type]
        gradient_clip_val=1.0,
        callbacks=[_Checkpoints(folder, save_every), average, _OwnNoise(seed), _Progress(max_steps)],
        logger=CSVLogger(folder, name="log", version=f"from_{started}"),
        log_every_n_steps=10,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    scenes = _SceneData(dataset, sources, side=side, batch_size=batch_size, max_steps=max_steps, seed=seed)
    trainer.fit(
        module, datamodule=scenes, ckpt_path=None if resumed is None else str(resumed), weights_only=False
    )
    finished = newest_whole_checkpoint(folder)
    assert finished is not None
    # Whatever process trained, and even where nothing was left to train.
    averaged = torch.load(finished, map_location="cpu", weights_only=False)["state_dict"]
    module.load_state_dict(averaged)


class _OwnNoise(L.Callback):
    """Seeds the global generator by process and step, so that a resumed training draws new noise."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        torch.manual_seed((self.seed * 100_003 + trainer.global_step) * 64 + trainer.global_rank)


class _Progress(L.Callback):
    """Prints step, mean loss and seconds per step at regular intervals."""

    def __init__(self, max_steps: int, every: int = 20) -> None:
        self.max_steps, self.every = max_steps, every
        self._losses: list[float] = []
        self._since = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        self._losses.append(float(outputs["loss"]))
        if trainer.is_global_zero and trainer.global_step % self.every == 0:
            now = time.perf_counter()
            seconds = (now - self._since) / len(self._losses)
            mean = sum(self._losses) / len(self._losses)
            left = seconds * (self.max_steps - trainer.global_step) / 60
            print(
                f"step {trainer.global_step} of {self.max_steps}, loss {mean:.4f}, "
                f"{seconds:.2f} s a step, {left:.0f} min left",
                flush=True,
            )
            self._losses, self._since = [], now
