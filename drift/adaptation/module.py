"""The LightningModule that is fitted to one clip: prompt embeddings and head weights are its parameters."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from drift.errors import DriftError

__all__ = ["AdaptationModule", "Diverged", "Objective", "fit"]


class Diverged(DriftError):
    """A loss is no longer a number."""


@dataclass(frozen=True)
class Objective:
    """What one parameter is optimised for.

    Attributes:
        name: of the parameter, for messages and figures.
        start: its first value.
        prepare: called once, when the objectives before it are met, with a function that gives their parameters
            by name; gives the loss as a function of the parameter.
        learning_rate: of Adam.
        steps: at most as many.
        patience: it is met once the lowest loss has not fallen by `tolerance` of itself in so many steps.
        tolerance: a share of the loss.
    """

    name: str
    start: Tensor
    prepare: Callable[[Callable[[str], Tensor]], Callable[[Tensor], Tensor]]
    learning_rate: float
    steps: int
    patience: int
    tolerance: float


@dataclass
class Course:
    """How an objective was pursued.

    Attributes:
        losses: of each step.
        best: the parameter that had the lowest.
        lowest: of them.
        settled, settled_at: the last loss that was lower by the tolerance, and how many steps led to it.
    """

    best: Tensor
    losses: list[float] = field(default_factory=list)
    lowest: float = math.inf
    settled: float = math.inf
    settled_at: int = 0


class AdaptationModule(L.LightningModule):
    """Meets one objective after the other, each with a parameter of its own; make a new one for each clip.

    The frozen backbone is none of its parts: `state_dict` holds what is learned and nothing else.

    Args:
        objectives: in the order in which they are to be met; at least one.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        super().__init__()
        self.objectives = list(objectives)
        self.learned = nn.ParameterDict(
            {one.name: nn.Parameter(one.start.detach().clone().float()) for one in objectives}
        )
        self.courses = {one.name: Course(self.learned[one.name].detach().clone()) for one in objectives}
        self._place = 0
        self._loss: Callable[[Tensor], Tensor] | None = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, with each parameter's own learning rate."""
        groups = [
            {"params": [self.learned[one.name]], "lr": one.learning_rate, "name": one.name}
            for one in self.objectives
        ]
        return torch.optim.Adam(groups)

    def train_dataloader(self) -> DataLoader:
        """One batch for each step; the views are the objectives' own."""
        steps = sum(one.steps for one in self.objectives)
        return DataLoader(list(range(steps)), batch_size=None)  # type: ignore[arg-type]

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        """The loss of the objective in hand.

        Raises:
            Diverged: it is infinite or not a number.
        """
        objective = self.objectives[self._place]
        if self._loss is None:
            self._loss = objective.prepare(self.value)
        parameter = self.learned[objective.name]
        loss = self._loss(parameter)
        value = float(loss.detach())
        if not math.isfinite(value):
            step = len(self.courses[objective.name].losses)
            raise Diverged(f"the loss of {objective.name} is {value} at step {step}")
        self._note(objective, value, parameter)
        return loss

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        """Goes on to the next objective, or ends, where the one in hand is met."""
        objective = self.objectives[self._place]
        course = self.courses[objective.name]
        steps = len(course.losses)
        if steps < objective.steps and steps - course.settled_at < objective.patience:
            return
        self.learned[objective.name].data.copy_(course.best)
        self.learned[objective.name].requires_grad_(False)
        self._place, self._loss = self._place + 1, None
        if self._place == len(self.objectives):
            self.trainer.should_stop = True

    def value(self, name: str) -> Tensor:
        """What an objective's parameter has come to."""
        return self.courses[name].best

    def _note(self, objective: Objective, value: float, parameter: Tensor) -> None:
        course = self.courses[objective.name]
        course.losses.append(value)
        if value < course.lowest:
            course.lowest = value
            course.best = parameter.detach().clone()
        if value < course.settled * (1 - objective.tolerance):
            course.settled, course.settled_at = value, len(course.losses)


def fit(module: AdaptationModule, device: torch.device) -> None:
    """Fits the module with a Lightning Trainer of its own, also from within another Trainer's prediction.

    Raises:
        Diverged: a loss is no longer a number.
    """
    with _quiet():
        trainer = L.Trainer(
            accelerator="cpu" if device.type == "cpu" else device.type,
            devices=1 if device.type == "cpu" else [device.index or 0],
            max_epochs=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
    with _quiet(), torch.inference_mode(False), torch.enable_grad():
        trainer.fit(module)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's notes on every Trainer: there is one for each clip."""
    loggers = [
        logging.getLogger(name) for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero")
    ]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning.*")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
