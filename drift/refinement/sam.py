"""Mask proposals by Segment Anything: one image embedding per frame, the prompts of all objects in one batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from drift.clip import ObjectPrompt
from drift.precision import full_precision, resolved_precision
from drift.refinement.decoding import (
    MASK_STRIDE,
    Kinds,
    PromptTensors,
    candidates,
    content_size,
    embed,
    padded_square,
    stacked,
)
from drift.refinement.refinement import Proposals
from drift.refinement.sam_prompts import PromptSettings, prompts_of_object

__all__ = ["SamProposer"]


class SamProposer(nn.Module):
    """Proposes four masks per object, from prompts made of the propagated soft masks.

    Outer autocast has no effect. The image encoder computes in `precision`; the prompt encoder, the mask decoder
    and the channel-wise layer norms of the encoder's neck compute in float32, at little cost.

    Args:
        sam: `segment_anything.modeling.Sam`, which is moved and converted in place.
        prompts: the prompts that are made.
        device: where Segment Anything computes.
        precision: one of `drift.precision.PRECISIONS`.

    Raises:
        OptionError: `precision` is not allowed.
    """

    def __init__(
        self,
        sam: Any,
        *,
        prompts: PromptSettings,
        device: torch.device | str = "cpu",
        precision: str = "auto",
    ) -> None:
        super().__init__()
        _convert_encoder(sam.image_encoder, resolved_precision(precision, device))
        self.sam = sam.requires_grad_(False).eval().to(device)
        self.prompts = prompts

    def grid(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """See `Proposer.grid`: the grid of Segment Anything's masks without padding."""
        height, width = content_size(frame_size, self.sam.image_encoder.img_size)
        return height // MASK_STRIDE, width // MASK_STRIDE

    def propose(
        self,
        frame: UInt8[Tensor, "height width 3"],
        probabilities: Float[Tensor, "channels rows columns"],
        objects: list[int],
    ) -> Proposals:
        """See `Proposer.propose`."""
        soft = probabilities.cpu().numpy()
        prompts = stacked(
            [prompts_of_object(soft, n, self.prompts) for n in objects], self.sam.image_encoder.img_size
        )
        kinds = Kinds(self.prompts.box, prompts.labels.shape[1] > 0, self.prompts.mask)
        device: torch.device = self.sam.device
        with full_precision(device.type):
            embedding = embed(self.sam, frame.to(device).permute(2, 0, 1).float())
            logits, scores = candidates(self.sam, embedding, prompts.to(device), kinds)
        rows, columns = soft.shape[-2:]
        return Proposals(logits[..., :rows, :columns].sigmoid().to(probabilities), scores.to(probabilities))

    @torch.inference_mode()
    def segment(
        self, frame: UInt8[Tensor, "height width 3"], prompt: ObjectPrompt
    ) -> Bool[Tensor, "height width"]:
        """See `Segmenter.segment`."""
        frame = frame.to(self.sam.device)
        side = self.sam.image_encoder.img_size
        size = frame.shape[0], frame.shape[1]
        rows, columns = content_size(size, side)
        prompts = _tensors(prompt, (rows / size[0], columns / size[1]), side).to(frame.device)
        kinds = Kinds(prompt.box is not None, bool(prompt.points), masks=False)
        with full_precision(frame.device.type):
            embedding = embed(self.sam, frame.permute(2, 0, 1).float())
            logits, scores = candidates(self.sam, embedding, prompts, kinds)
            # The first mask is for unambiguous prompts; a single point is ambiguous, so the score decides.
            is_unambiguous = prompt.box is not None or len(prompt.points) > 1
            best = 0 if is_unambiguous else int(scores[0].argmax())
            # Second pass with the predicted logits as the mask prompt, as SAM's authors advise.
            prompts = prompts._replace(logits=padded_square(logits[:, best, None], side // MASK_STRIDE))
            logits, _ = candidates(self.sam, embedding, prompts, replace(kinds, masks=True))
        content = logits[:, :1, : rows // MASK_STRIDE, : columns // MASK_STRIDE]
        return F.interpolate(content, size, mode="bilinear", align_corners=False)[0, 0] > 0


def _convert_encoder(encoder: Any, dtype: torch.dtype) -> None:
    """Converts weights; the neck of a ViT stays in float32, as its layer norms square activations and add 1e-6."""
    encoder.to(dtype)
    if hasattr(encoder, "neck"):
        encoder.neck.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def _tensors(prompt: ObjectPrompt, scale: tuple[float, float], side: int) -> PromptTensors:
    """Prompt tensors in pixels of Segment Anything's input; `scale` is vertical, horizontal, from frame to input."""
    vertical, horizontal = scale

    def scaled(x: float, y: float) -> tuple[float, float]:
        return (x + 0.5) * horizontal - 0.5, (y + 0.5) * vertical - 0.5  # SAM adds 0.5 for the pixel centre

    left, top, right, bottom = prompt.box or (0.0, 0.0, 0.0, 0.0)
    box = (*scaled(left, top), *scaled(right, bottom))
    points = [scaled(x, y) for x, y in prompt.points]
    return PromptTensors(
        torch.tensor([box]),
        torch.tensor([points]).reshape(1, -1, 2),
        torch.tensor([prompt.inside], dtype=torch.long).reshape(1, -1),
        torch.zeros(1, 1, side // MASK_STRIDE, side // MASK_STRIDE),
    )
