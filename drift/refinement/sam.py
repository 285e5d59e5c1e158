"""Masks proposed by Segment Anything: one embedding a frame, all objects' prompts in one batch (design 2.7)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from drift.clip import ObjectPrompt
from drift.options import choice
from drift.refinement.decoding import (
    MASK_STRIDE,
    Kinds,
    PromptTensors,
    candidates,
    content_size,
    embed,
    stacked,
)
from drift.refinement.grabcut import cut_out
from drift.refinement.prompts import Prompts, PromptSettings, prompts_of
from drift.refinement.refinement import Proposals

__all__ = ["SAM_PRECISIONS", "SamProposer"]

_SOFTENED = 0.005  # of a frame's longer side: the blur of a mask that was cut out, before it is mended
SAM_PRECISIONS = ("auto", "float16", "bfloat16", "float32")
"""`auto`: float16 on an accelerator, float32 on a CPU."""


class SamProposer(nn.Module):
    """Four masks for each object, asked for with what is known of it.

    Args:
        sam: a `segment_anything` `Sam`.
        prompts: which prompts are given.
        precision: one of `SAM_PRECISIONS`.

    Raises:
        OptionError: an option is not allowed.
    """

    def __init__(self, sam: Any, *, prompts: PromptSettings, precision: str = "auto") -> None:
        choice("precision", precision, SAM_PRECISIONS)
        super().__init__()
        self.sam = sam.requires_grad_(False).eval()
        self.prompts, self.precision = prompts, precision

    def grid(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """See `Proposer.grid`: that of the Sam's masks, its padding left out."""
        height, width = content_size(frame_size, self.sam.image_encoder.img_size)
        return height // MASK_STRIDE, width // MASK_STRIDE

    def propose(
        self,
        frame: UInt8[Tensor, "height width 3"],
        probabilities: Float[Tensor, "channels rows columns"],
        objects: list[int],
    ) -> Proposals:
        """See `Proposer.propose`."""
        asked = stacked(
            [self._prompts(probabilities, n) for n in objects], self.sam.image_encoder.img_size
        ).to(frame.device)
        kinds = Kinds(self.prompts.box, asked.labels.shape[1] > 0, self.prompts.mask)
        with self._computing(frame.device):
            embedding = embed(self.sam, frame.permute(2, 0, 1).float())
            masks, scores = candidates(self.sam, embedding, asked, kinds)
        rows, columns = probabilities.shape[-2:]
        return Proposals(masks[..., :rows, :columns].float().sigmoid(), scores.float())

    @torch.inference_mode()
    def segment(
        self, frame: UInt8[Tensor, "height width 3"], prompt: ObjectPrompt
    ) -> Bool[Tensor, "height width"]:
        """See `Segmenter.segment`. A Sam that only learned to mend masks gets one, cut out by colours."""
        frame = frame.to(self.sam.device)
        if getattr(self.sam.image_encoder, "mends_masks", False):
            return self._mended(frame, prompt)
        side = self.sam.image_encoder.img_size
        size = frame.shape[0], frame.shape[1]
        rows, columns = content_size(size, side)
        asked = _shown(prompt, (rows / size[0], columns / size[1]), side).to(frame.device)
        kinds = Kinds(prompt.box is not None, bool(prompt.points), masks=False)
        with self._computing(frame.device):
            embedding = embed(self.sam, frame.permute(2, 0, 1).float())
            logits, scores = candidates(self.sam, embedding, asked, kinds)
            # The first mask is for clear prompts; one click may mean a part or the whole, and the scores decide.
            is_clear = prompt.box is not None or len(prompt.points) > 1
            best = 0 if is_clear else int(scores[0].argmax())
            # What was found is asked for again with its own mask, as SAM's authors advise.
            asked = asked._replace(logits=F.pad(logits[:, best, None], _rest(logits, side)).float())
            logits, _ = candidates(self.sam, embedding, asked, replace(kinds, masks=True))
        inner = logits[:, :1, : rows // MASK_STRIDE, : columns // MASK_STRIDE].float()
        return F.interpolate(inner, size, mode="bilinear", align_corners=False)[0, 0] > 0

    def _mended(self, frame: Tensor, prompt: ObjectPrompt) -> Tensor:
        cut = cut_out(frame.cpu().numpy(), prompt).astype(np.float32)
        size = frame.shape[0], frame.shape[1]
        soft = torch.from_numpy(cv2.GaussianBlur(cut, (0, 0), _SOFTENED * max(size))).to(frame.device)
        inside = torch.ones(size, dtype=torch.bool, device=frame.device)
        if prompt.box is not None:
            left, top, right, bottom = (round(one) for one in prompt.box)
            inside.fill_(False)[top:bottom, left:right] = True
        for _ in range(2):
            coarse = F.interpolate(torch.stack([1 - soft, soft])[None], self.grid(size), mode="area")[0]
            if not (coarse[1] > 0.5).any():
                break
            mask = self.propose(frame, coarse, [1]).probabilities[:, :1]
            soft = F.interpolate(mask, size, mode="bilinear", align_corners=False)[0, 0]
        return (soft > 0.5) & inside

    def _prompts(self, probabilities: Tensor, channel: int) -> Prompts:
        soft = probabilities.cpu().numpy()
        others = np.delete(soft[1:], channel - 1, axis=0)
        highest = others.max(0) if len(others) else np.zeros_like(soft[0])
        return prompts_of(soft[channel], highest, self.prompts)

    def _computing(self, device: torch.device) -> torch.autocast:
        """Autocast to the precision, which is no autocast for float32."""
        usual = "float32" if device.type == "cpu" else "float16"
        name = usual if self.precision == "auto" else self.precision
        dtype = torch.float16 if name == "float16" else torch.bfloat16
        return torch.autocast(device.type, dtype=dtype, enabled=name != "float32")


def _shown(prompt: ObjectPrompt, scale: tuple[float, float], side: int) -> PromptTensors:
    """A prompt in a frame's pixels as tensors in those of the Sam's input, made larger by `scale` down and across."""
    down, across = scale

    def placed(x: float, y: float) -> tuple[float, float]:
        return (x + 0.5) * across - 0.5, (y + 0.5) * down - 0.5  # Sam adds the half pixel of a centre itself

    left, top, right, bottom = prompt.box or (0.0, 0.0, 0.0, 0.0)
    box = (*placed(left, top), *placed(right, bottom))
    points = [placed(x, y) for x, y in prompt.points]
    return PromptTensors(
        torch.tensor([box]),
        torch.tensor([points]).reshape(1, -1, 2),
        torch.tensor([[int(one) for one in prompt.inside]], dtype=torch.long).reshape(1, -1),
        torch.zeros(1, 1, side // MASK_STRIDE, side // MASK_STRIDE),
    )


def _rest(logits: Tensor, side: int) -> tuple[int, int, int, int]:
    """What masks without the padding lack to the square of a mask prompt, as `F.pad` takes it."""
    square = side // MASK_STRIDE
    return 0, square - logits.shape[-1], 0, square - logits.shape[-2]
