"""One resumable Lightning fit over endless scenes."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from drift.pretrain.pictures import Cutout
from drift.pretrain.scenes import SceneDataset

__all__ = ["fit"]


class _SceneData(L.LightningDataModule):
    """The scenes from the global step on: a resumed training sees none twice."""

    def __init__(
        self, pictures: tuple[list[Cutout], list], *, side: int, batch_size: int, max_steps: int, seed: int
    ) -> None:
        super().__init__()
        self.pictures, self.side, self.batch_size = pictures, side, batch_size
        self.max_steps, self.seed = max_steps, seed

    def train_dataloader(self) -> DataLoader:
        done = self.trainer.global_step if self.trainer else 0
        scenes = SceneDataset(
            *self.pictures,
            side=self.side,
            length=(self.max_steps - done) * self.batch_size,
            seed=self.seed,
            first=done * self.batch_size,
        )
        return DataLoader(scenes, batch_size=self.batch_size, num_workers=1, prefetch_factor=4)


def fit(
    module: L.LightningModule,
    pictures: tuple[list[Cutout], list],
    *,
    folder: Path,
    max_steps: int,
    side: int,
    batch_size: int,
    seed: int,
    precision: str = "bf16-mixed",
    ema_decay: float = 0.998,
    save_every: int = 100,
) -> None:
    """Trains `module` for `max_steps`, going on from `folder/last.ckpt` where it exists.

    At the end the module holds the exponential moving average of its weights.
    """
    last = folder / "last.ckpt"
    checkpoint = ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=save_every, save_last=True, save_top_k=1
    )
    trainer = L.Trainer(
        max_steps=max_steps,
        max_epochs=-1,
        precision=precision,  # type: ignore[arg-type]
        gradient_clip_val=1.0,
        callbacks=[checkpoint, EMAWeightAveraging(decay=ema_decay, update_starting_at_step=save_every)],
        logger=CSVLogger(folder, name="", version=""),
        log_every_n_steps=10,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    scenes = _SceneData(pictures, side=side, batch_size=batch_size, max_steps=max_steps, seed=seed)
    trainer.fit(module, datamodule=scenes, ckpt_path=str(last) if last.is_file() else None)
