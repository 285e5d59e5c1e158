"""Fitting a LightningModule to a clip, also from within another Trainer."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from drift.backbones.interface import Backbone
from drift.configuration import groups
from drift.configuration.checking import check_fields
from drift.errors import DriftError
from drift.precision import full_precision

__all__ = ["ClipModule", "Diverged", "FitOptions", "fit"]

BackboneType = TypeVar("BackboneType", bound=Backbone)


class Diverged(DriftError):
    """A loss is infinite or NaN.

    Args:
        message: names the module.
        losses: losses of its steps.
    """

    def __init__(self, message: str, losses: list[float]) -> None:
        super().__init__(message)
        self.losses = losses


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """When `fit` ends.

    Attributes:
        learning_rate: learning rate of Adam.
        steps: upper bound of steps; each covers the given frame and all of its augmented views.
        patience, tolerance: stop once the loss has not fallen by `tolerance` (absolute) in `patience` steps.

    Raises:
        OptionError: an option is out of range.
    """

    learning_rate: float = 0.1
    steps: int = 200
    patience: int = 10
    tolerance: float = 0.003

    group = ""
    """Where the options are in the configuration, for error messages."""

    kind: ClassVar[Any] = groups.Fit
    """What they allow."""

    def __post_init__(self) -> None:
        check_fields(self, self.kind, self.group)


class ClipModule(L.LightningModule, Generic[BackboneType]):
    """Base of the modules that are fitted to a clip: one step per epoch, of which the best parameters are kept.

    The frozen backbone must not be a submodule: `state_dict` is the adapter.

    Args:
        backbone: the frozen backbone.
        options: how the module is fitted.

    Attributes:
        batches: number of batches of an epoch, whose gradients are accumulated: an epoch is one step.
        losses: mean loss of each epoch.
    """

    batches: int = 1

    def __init__(self, backbone: BackboneType, options: FitOptions) -> None:
        super().__init__()
        self._backbone = (backbone,)  # in a tuple: not a submodule
        self.fit_options = options
        self.losses: list[float] = []
        self._start: dict[str, Tensor] = {}  # parameters at the start of the epoch
        self._best: dict[str, Tensor] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over all parameters."""
        return torch.optim.Adam(self.parameters(), lr=self.fit_options.learning_rate)

    def transfer_batch_to_device(self, batch: object, device: torch.device, dataloader_idx: int) -> object:
        """Batches are computed by the backbone, so they are on its device already."""
        return batch

    def logged(self, loss: Tensor) -> Tensor:
        """Logs `loss` for `EarlyStopping` and returns it."""
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=1)
        return loss

    def on_train_epoch_start(self) -> None:
        """Records the parameters."""
        self._start = {name: value.detach().clone() for name, value in self.named_parameters()}

    def on_train_epoch_end(self) -> None:
        """Records the loss of the epoch, and the parameters if it is the lowest."""
        loss = float(self.trainer.callback_metrics["loss"])
        if loss < min(self.losses, default=math.inf):
            self._best = self._start
        self.losses.append(loss)

    def on_fit_end(self) -> None:
        """Restores the best parameters."""
        for name, parameter in self.named_parameters():
            parameter.data.copy_(self._best.get(name, parameter))


def fit(module: ClipModule, **options: Any) -> None:
    """Fits `module` with a `lightning.Trainer` until its loss has settled; keeps its best parameters.

    Args:
        module: a `TextualInversion` or `HeadWeighting`; its options are `FitOptions`.
        options: replace those of the module: `steps`, `patience`, `tolerance`, `learning_rate`.

    Raises:
        Diverged: the loss is infinite or NaN.
    """
    module.fit_options = replace(module.fit_options, **options)
    device, limits = module._backbone[0].device, module.fit_options
    stopping = EarlyStopping(
        "loss", min_delta=limits.tolerance, patience=limits.patience, check_on_train_epoch_end=True
    )
    # An outer Trainer may predict in inference mode or under autocast; optimisation needs neither.
    with _quiet(), torch.inference_mode(False), torch.enable_grad(), full_precision(device.type):
        L.Trainer(
            accelerator="cpu" if device.type == "cpu" else device.type,
            devices=1 if device.type == "cpu" else [device.index or 0],
            max_epochs=limits.steps,
            accumulate_grad_batches=module.batches,
            callbacks=[stopping],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        ).fit(module)
    finite = all(bool(parameter.isfinite().all()) for parameter in module.parameters())
    if not finite or not math.isfinite(module.losses[-1]):
        message = f"the loss of {type(module).__name__} diverged at step {len(module.losses)}"
        raise Diverged(message, module.losses)
    for parameter in module.parameters():
        parameter.requires_grad_(False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Lightning's notes, which every Trainer would repeat for every clip."""
    loggers = [
        logging.getLogger(name) for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
