"""Masks proposed by the embedded Segment Anything model, from propagated masks and from boxes and points."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from drift.clip import ObjectPrompt
from drift.precision import full_precision, resolved_precision
from drift.refinement.refinement import Proposals
from drift.refinement.sam_prompts import PromptSettings, prompts_of_object
from drift.refinement.tiny_encoder import Embedding
from drift.refinement.tiny_sam import COARSE_SIDE, FINE_SIDE, MASK_STRIDE, TinySam

__all__ = ["TinySamProposer"]

_ITERATIONS = 4  # predictions per prompt of boxes and points, each with the last as the mask prompt


class TinySamProposer(nn.Module):
    """Proposes one mask per object, from prompts made of the propagated soft masks.

    Outer autocast has no effect. The pretrained stages of the encoder compute in `precision`, the rest in float32.

    Args:
        sam: moved and converted in place.
        prompts: options of the prompts.
        device: device of the model.
        precision: one of `drift.precision.PRECISIONS`.

    Raises:
        OptionError: `precision` is not allowed.
    """

    def __init__(
        self,
        sam: TinySam,
        *,
        prompts: PromptSettings,
        device: torch.device | str = "cpu",
        precision: str = "auto",
    ) -> None:
        super().__init__()
        self.sam = sam.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.sam.image_encoder.convert_stages(resolved_precision(precision, device))
        self.prompts = prompts
        self._last: tuple[Tensor, dict[int, Embedding]] | None = (
            None  # last frame, and its embeddings by side
        )

    def grid(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """See `Proposer.grid`: the grid of the model's masks."""
        height, width = self.sam.input_size(frame_size)
        return height // MASK_STRIDE, width // MASK_STRIDE

    def propose(
        self,
        frame: UInt8[Tensor, "height width 3"],
        probabilities: Float[Tensor, "channels rows columns"],
        objects: list[int],
    ) -> Proposals:
        """See `Proposer.propose`. The score is the expected IoU under the probabilities of the mask."""
        soft = probabilities.cpu().numpy()
        prompts = [prompts_of_object(soft, n, self.prompts) for n in objects]
        boxes, points = (
            torch.from_numpy(_input_pixels(np.stack(each), MASK_STRIDE, MASK_STRIDE)).to(self._device)
            for each in ([prompt.box for prompt in prompts], [prompt.points for prompt in prompts])
        )
        labels = torch.from_numpy(np.stack([prompt.labels for prompt in prompts])).to(self._device)
        logits = torch.from_numpy(np.stack([prompt.logits for prompt in prompts]))[:, None].to(self._device)
        with full_precision(self._device.type):
            masks = self.sam.predict(
                self._embed(frame),
                boxes=boxes if self.prompts.box else None,
                points=points,
                labels=labels,
                logits=logits if self.prompts.mask else None,
            ).sigmoid()
        return Proposals(masks.to(probabilities), _expected_iou(masks).to(probabilities))

    @torch.inference_mode()
    def segment(
        self, frame: UInt8[Tensor, "height width 3"], prompt: ObjectPrompt
    ) -> Bool[Tensor, "height width"]:
        """See `Segmenter.segment`.

        The mask is predicted several times, each time with the last prediction as the mask prompt. Without a box the
        points are first added one by one at `COARSE_SIDE`, where the receptive field is a larger part of the frame.
        """
        size = frame.shape[0], frame.shape[1]
        logits: Tensor | None = None
        with full_precision(self._device.type):
            if prompt.box is None:
                embedding, prompts = self._prompted(frame, prompt, COARSE_SIDE)
                for count in range(1, len(prompt.points) + 1):
                    logits = self.sam.predict(embedding, **_first(prompts, count), logits=logits)
            embedding, prompts = self._prompted(frame, prompt, FINE_SIDE)
            for _ in range(_ITERATIONS):
                if logits is not None:
                    logits = F.interpolate(logits, self.grid(size), mode="bilinear", align_corners=False)
                logits = self.sam.predict(embedding, **prompts, logits=logits)
        assert logits is not None
        return F.interpolate(logits, size, mode="bilinear", align_corners=False)[0, 0] > 0

    def _prompted(
        self, frame: Tensor, prompt: ObjectPrompt, side: int
    ) -> tuple[Embedding, dict[str, Tensor | None]]:
        """Embedding of the frame with `side` as its longer side, and the prompts in pixels of that size."""
        size = frame.shape[0], frame.shape[1]
        down, across = (
            length / whole for length, whole in zip(self.sam.input_size(size, side), size, strict=True)
        )
        boxes = None
        if prompt.box is not None:
            corners = (
                np.array(prompt.box, np.float32).reshape(1, 2, 2) - 0.5
            )  # from edges to centres of pixels
            boxes = torch.from_numpy(_input_pixels(corners, across, down)).reshape(1, 4).to(self._device)
        points = np.array(prompt.points, np.float32).reshape(1, -1, 2)
        prompts = {
            "boxes": boxes,
            "points": torch.from_numpy(_input_pixels(points, across, down)).to(self._device),
            "labels": torch.tensor([prompt.inside], dtype=torch.long, device=self._device).reshape(1, -1),
        }
        return self._cached_embedding(frame, side), prompts

    @property
    def _device(self) -> torch.device:
        return self.sam.mask_decoder.mask.weight.device

    def _cached_embedding(self, frame: Tensor, side: int) -> Embedding:
        """Embedding of a frame, cached until another frame is segmented."""
        last = self._last  # other threads may replace it
        if last is None or not torch.equal(last[0], frame):
            self._last = last = (frame.clone(), {})
        if side not in last[1]:
            last[1][side] = self._embed(frame, side)
        return last[1][side]

    def _embed(self, frame: Tensor, side: int = FINE_SIDE) -> Embedding:
        return self.sam.embed(frame.to(self._device).permute(2, 0, 1).float(), side)


def _first(prompts: dict[str, Tensor | None], points: int) -> dict[str, Tensor | None]:
    """Prompts with the first `points` points only."""
    return {name: None if each is None else each[:, :points] for name, each in prompts.items()}


def _input_pixels(coordinates: np.ndarray, across: float, down: float) -> np.ndarray:
    """Scales coordinates x, y, x, y … with pixel centres at integers from a grid to the input."""
    scale = np.resize(np.array([across, down], np.float32), coordinates.shape[-1])
    return (coordinates.astype(np.float32) + 0.5) * scale - 0.5


def _expected_iou(masks: Float[Tensor, "objects 1 rows columns"]) -> Float[Tensor, "objects 1"]:
    """Expected intersection over expected union of thresholded masks, given their probabilities."""
    shown = masks > 0.5
    union = torch.where(shown, 1.0, masks).sum((-2, -1))
    return (masks * shown).sum((-2, -1)) / union.clamp(min=1e-6)
