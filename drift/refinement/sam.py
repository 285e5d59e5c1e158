"""Masks proposed by Segment Anything: one embedding a frame, all objects' prompts in one batch (design 2.7)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from drift.options import choice
from drift.refinement.decoding import MASK_STRIDE, Kinds, candidates, content_size, embed, stacked
from drift.refinement.prompts import Prompts, PromptSettings, prompts_of
from drift.refinement.refinement import Proposals

__all__ = ["SAM_PRECISIONS", "SamProposer"]

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
