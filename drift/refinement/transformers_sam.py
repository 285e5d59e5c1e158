"""Mask proposals by SAM-HQ (arXiv 2306.01567), SAM 2 (2408.00714) and EdgeTAM (2501.07256) of transformers."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from drift.checkpoint_files import find_checkpoint, load_part, load_weights, needed_files, read_json
from drift.clip import ObjectPrompt
from drift.errors import InputError, OptionError
from drift.options import choice
from drift.precision import full_precision
from drift.refinement.decoding import MASK_STRIDE, PromptTensors, content_size, padded_square, stacked
from drift.refinement.refinement import Proposals
from drift.refinement.sam_prompts import PromptSettings, prompts_of

__all__ = ["FAMILIES", "Family", "TransformersSamProposer", "load_transformers_sam"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


@dataclass(frozen=True)
class Family:
    """A family of models that share Segment Anything's prompts and mask decoder.

    Attributes:
        architecture: name of the class in transformers.
        model_types: `model_type` of its checkpoints; those of the video models hold an image model too.
        keeps_aspect: whether frames keep their aspect ratio and are padded to the model's square input, or stretched.
        package: a package that the image encoder needs, or None.
    """

    architecture: str
    model_types: tuple[str, ...]
    keeps_aspect: bool = False
    package: str | None = None


FAMILIES = {
    "sam_hq": Family("SamHQModel", ("sam_hq",), keeps_aspect=True),
    "sam2": Family("Sam2Model", ("sam2", "sam2_video")),
    "edgetam": Family("EdgeTamModel", ("edgetam", "edgetam_video"), package="timm"),
}
"""By the name of the refinement."""


def load_transformers_sam(
    family: str, checkpoint: str, *, precision: torch.dtype, revision: str | None = None
) -> Any:
    """A model of transformers in float32, with its image encoder in `precision`.

    Args:
        family: one of `FAMILIES`.
        checkpoint: a folder in transformers' layout, or a Hub id (owner/name).
        precision: data type of the image encoder.
        revision: branch, tag or commit of a Hub id; None for `main`.

    Raises:
        InputError: the checkpoint is missing, incomplete, corrupt or of another family, or a package is missing.
        OptionError: there is no such family.
    """
    choice("family", family, FAMILIES)
    if not isinstance(checkpoint, str) or not checkpoint:
        raise OptionError("checkpoint", checkpoint, "a folder, or a Hub id (owner/name)")
    package = FAMILIES[family].package
    if package is not None and importlib.util.find_spec(package) is None:
        raise InputError(f"refinement={family} needs the package {package}: pip install {package}")
    needed = partial(needed_files, dtype=torch.float32)
    path = find_checkpoint(checkpoint, needed, revision=revision, group="refinement")
    _check_family(path, checkpoint, family)
    kind = getattr(transformers, FAMILIES[family].architecture)
    model = load_part(path, partial(load_weights, kind, dtype=torch.float32))
    model.vision_encoder.to(precision).register_forward_hook(_to_float32)
    return model


class TransformersSamProposer(nn.Module):
    """Proposes masks from prompts made of the propagated soft masks: one embedding per frame, all objects at once.

    Prompts are used as in training: a box, several points or a mask give one mask, the model's answer to unambiguous
    prompts; a single point gives three. Outer autocast has no effect; all but the image encoder computes in float32.

    Args:
        model: `SamHQModel`, `Sam2Model` or `EdgeTamModel` of transformers; see `load_transformers_sam`.
        keeps_aspect: see `Family`.
        prompts: the prompts that are made.
        device: where the model computes.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        model: Any,
        *,
        keeps_aspect: bool,
        prompts: PromptSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False).eval()
        self.keeps_aspect, self.prompts = keeps_aspect, prompts
        self.register_buffer("_mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(_STD).view(3, 1, 1), persistent=False)
        self.to(device)
        self._embedded: tuple[Tensor, list[Any]] | None = None

    @property
    def side(self) -> int:
        """Side of the model's square input, in pixels."""
        return int(self.model.config.prompt_encoder_config.image_size)

    def grid(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """See `Proposer.grid`: the grid of the model's masks without padding."""
        height, width = self._content(frame_size)
        return height // MASK_STRIDE, width // MASK_STRIDE

    def propose(
        self,
        frame: UInt8[Tensor, "height width 3"],
        probabilities: Float[Tensor, "channels rows columns"],
        objects: list[int],
    ) -> Proposals:
        """See `Proposer.propose`."""
        soft = probabilities.cpu().numpy()
        prompts = stacked([self._prompts(soft, n) for n in objects], self.side).to(self._mean.device)
        points = self.prompts.positive_points + self.prompts.negative_points
        with full_precision(self._mean.device.type):
            logits, scores = self._masks(
                self._embedding(frame),
                prompts,
                boxes=self.prompts.box,
                masks=self.prompts.mask,
                unambiguous=self.prompts.box or self.prompts.mask or points > 1,
            )
        rows, columns = soft.shape[-2:]
        return Proposals(logits[..., :rows, :columns].sigmoid().to(probabilities), scores.to(probabilities))

    @torch.inference_mode()
    def segment(
        self, frame: UInt8[Tensor, "height width 3"], prompt: ObjectPrompt
    ) -> Bool[Tensor, "height width"]:
        """See `Segmenter.segment`. The mask is predicted, then refined with itself as a further prompt."""
        size = (frame.shape[0], frame.shape[1])
        content = self._content(size)
        prompts = self._clicked(prompt, content[0] / size[0], content[1] / size[1]).to(self._mean.device)
        boxes, several = prompt.box is not None, len(prompt.points) > 1
        with full_precision(self._mean.device.type):
            embedding = self._embedding(frame)
            logits, scores = self._masks(
                embedding, prompts, boxes=boxes, masks=False, unambiguous=boxes or several
            )
            best = logits[:, int(scores[0].argmax()), None]
            prompts = prompts._replace(logits=padded_square(best, self.side // MASK_STRIDE))
            logits, _ = self._masks(embedding, prompts, boxes=boxes, masks=True, unambiguous=True)
        inside = logits[:, :1, : content[0] // MASK_STRIDE, : content[1] // MASK_STRIDE]
        return F.interpolate(inside, size, mode="bilinear", align_corners=False)[0, 0] > 0

    def _content(self, frame_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the resized frame in the square input."""
        return content_size(frame_size, self.side) if self.keeps_aspect else (self.side, self.side)

    def _embedding(self, frame: UInt8[Tensor, "height width 3"]) -> list[Any]:
        """Image embeddings as the mask decoder takes them; computed once for the same frame."""
        frame = frame.to(self._mean.device)
        if self._embedded is None or not torch.equal(self._embedded[0], frame):
            size = self._content((frame.shape[0], frame.shape[1]))
            pixels = frame.permute(2, 0, 1)[None].float() / 255
            pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
            inputs = padded_square((pixels - self._mean) / self._std, self.side)
            embeddings = self.model.get_image_embeddings(inputs.to(self._encoder_dtype))
            self._embedded = (frame, list(embeddings))
        return self._embedded[1]

    @property
    def _encoder_dtype(self) -> torch.dtype:
        return next(self.model.vision_encoder.parameters()).dtype

    def _masks(
        self, embedding: list[Any], prompts: PromptTensors, *, boxes: bool, masks: bool, unambiguous: bool
    ) -> tuple[Float[Tensor, "objects masks side side"], Float[Tensor, "objects masks"]]:
        """Logits and predicted IoU. Objects are the batch, as the mask prompts of a batch entry are those of one."""
        points = prompts.points.shape[1] > 0
        output = self.model(
            **_embedding_arguments(embedding, len(prompts.boxes)),
            input_points=prompts.points[:, None] if points else None,
            input_labels=prompts.labels[:, None] if points else None,
            input_boxes=prompts.boxes[:, None] if boxes else None,
            input_masks=prompts.logits if masks else None,
            multimask_output=not unambiguous,
        )
        return output.pred_masks[:, 0], output.iou_scores[:, 0]

    def _prompts(self, soft: np.ndarray, channel: int) -> Any:
        others = np.delete(soft[1:], channel - 1, axis=0)
        return prompts_of(soft[channel], others.max(0, initial=0.0), self.prompts)

    def _clicked(self, prompt: ObjectPrompt, vertical: float, horizontal: float) -> PromptTensors:
        """Prompt tensors in pixels of the input; both factors are from frame to input."""
        scale = torch.tensor([horizontal, vertical])
        box = torch.tensor(prompt.box or (0.0, 0.0, 0.0, 0.0)).view(2, 2)
        # the model adds 0.5 to pixels with centres at whole numbers; the edges of a box have none
        corners = (box * scale - 0.5).view(1, 4)
        points = (torch.tensor(prompt.points).view(1, -1, 2) + 0.5) * scale - 0.5
        labels = torch.tensor(prompt.inside, dtype=torch.long).view(1, -1)
        side = self.side // MASK_STRIDE
        return PromptTensors(corners, points, labels, torch.zeros(1, 1, side, side))


def _check_family(path: Path, checkpoint: str, family: str) -> None:
    """Raises InputError unless `path` is a folder whose config.json names the family."""
    place = f"refinement.checkpoint={checkpoint}"
    if not (path / "config.json").is_file():
        raise InputError(
            f"{place}: no folder with config.json, as transformers writes it; a single file of Segment Anything needs "
            "refinement=sam"
        )
    model_type = str(read_json(path / "config.json").get("model_type"))
    fitting = [name for name, other in FAMILIES.items() if model_type in other.model_types]
    if family not in fitting:
        use = f"use refinement={fitting[0]}" if fitting else f"expected {', '.join(FAMILIES)}"
        raise InputError(f"{place}: config.json with model_type {model_type}, not {family}; {use}")


def _embedding_arguments(embedding: list[Any], objects: int) -> dict[str, Any]:
    """Arguments of the model for the embedding of a frame, which every object of the batch shares."""
    if isinstance(embedding[-1], Tensor):  # by resolution: SAM 2, EdgeTAM
        return {"image_embeddings": [one.expand(objects, -1, -1, -1) for one in embedding]}
    last, intermediate = embedding  # SAM-HQ, whose decoder also reads intermediate layers
    return {
        "image_embeddings": last.expand(objects, -1, -1, -1),
        "intermediate_embeddings": list(intermediate),
    }


def _to_float32(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Converts the outputs of the image encoder, for the float32 layers after it."""
    for name, value in output.items():
        output[name] = (
            value.float() if isinstance(value, Tensor) else type(value)(one.float() for one in value)
        )
    return output
