"""Image encoder of the embedded Segment Anything model: EfficientNet-lite0 and a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from drift.efficientnet import STAGE_WIDTHS, EfficientNetLite0

__all__ = ["HEADS", "WIDTHS", "Embedding", "Mixer", "TinyImageEncoder", "upsampled"]

WIDTHS = (8, 24, 64, 128)
"""Channels of the embedding at strides 2, 4, 8 and 16."""
HEADS = 4
_INPUTS = (
    STAGE_WIDTHS[0],
    STAGE_WIDTHS[1],
    STAGE_WIDTHS[2],
    STAGE_WIDTHS[3] + STAGE_WIDTHS[4],
    STAGE_WIDTHS[5] + STAGE_WIDTHS[6],
)  # channels at strides 2 to 32


class Embedding(NamedTuple):
    """Input of the mask decoder for a batch of frames.

    Attributes:
        half, quarter, eighth, sixteenth: features at strides 2, 4, 8 and 16, `(batch, WIDTHS[n], rows, columns)`.
        colours: unit vectors at stride 4, by head, `(batch, HEADS, WIDTHS[1] / HEADS, rows * columns)`.
        attention: between tokens at stride 16, `(batch, HEADS, tokens, tokens)`; each row sums to 1.
    """

    half: Tensor
    quarter: Tensor
    eighth: Tensor
    sixteenth: Tensor
    colours: Tensor
    attention: Tensor


def upsampled(features: Tensor) -> Tensor:
    """Features interpolated bilinearly to twice the size."""
    return F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)


class Mixer(nn.Module):
    """ConvNeXt-like residual block: depthwise convolution, norm, pointwise MLP."""

    def __init__(self, width: int, kernel: int = 7) -> None:
        super().__init__()
        self.filter = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.widen = nn.Conv2d(width, 2 * width, 1)
        self.narrow = nn.Conv2d(2 * width, width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(batch, width, rows, columns)` to the same shape."""
        return tokens + self.narrow(F.relu(self.widen(self.norm(self.filter(tokens)))))


class TinyImageEncoder(EfficientNetLite0):
    """Feature pyramid over the stages of EfficientNet-lite0 at strides 2 to 32."""

    def __init__(self) -> None:
        super().__init__()
        half, quarter, eighth, sixteenth = WIDTHS
        self.coarsest = nn.Sequential(nn.Conv2d(_INPUTS[4], sixteenth, 1), Mixer(sixteenth))
        self.coarse = nn.Conv2d(_INPUTS[3], sixteenth, 1)
        self.middle = nn.Conv2d(_INPUTS[2], eighth, 1)
        self.fine = nn.Conv2d(_INPUTS[1], quarter, 1)
        self.finest = nn.Conv2d(_INPUTS[0], half, 3, padding=1)
        self.coarse_mixers = nn.Sequential(Mixer(sixteenth), Mixer(sixteenth))
        self.coarse_to_middle = nn.Conv2d(sixteenth, eighth, 1)
        self.middle_mixer = Mixer(eighth, 5)
        self.middle_to_fine = nn.Conv2d(eighth, quarter, 1)
        self.fine_filter = nn.Conv2d(quarter, quarter, 3, padding=1)
        self.colours = nn.Conv2d(quarter, quarter, 1)
        self.queries = nn.Conv2d(sixteenth, sixteenth, 1)
        self.keys = nn.Conv2d(sixteenth, sixteenth, 1)

    def convert_stages(self, dtype: torch.dtype) -> None:
        """Converts the weights of the stem and the stages to `dtype`; the pyramid stays in float32."""
        self.stem.to(dtype)
        self.stages.to(dtype)

    def strides(self, images: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """Outputs of the pretrained stages at strides 2, 4, 8, 16 and 32 for normalized images."""
        stages = self.stage_outputs(images)
        return [*stages[:3], torch.cat(stages[3:5], 1), torch.cat(stages[5:], 1)]

    def joined(self, strides: Sequence[Tensor]) -> Embedding:
        """Embedding from the output of `strides`."""
        coarse = self.coarse_mixers(self.coarse(strides[3]) + upsampled(self.coarsest(strides[4])))
        middle = self.middle_mixer(self.middle(strides[2]) + upsampled(self.coarse_to_middle(coarse)))
        fine = F.relu(self.fine(strides[1]) + upsampled(self.middle_to_fine(middle)))
        fine = self.fine_filter(fine)
        colours = F.normalize(_split(self.colours(fine)), dim=2)
        queries, keys = _split(self.queries(coarse)), _split(self.keys(coarse))
        attention = (queries.transpose(2, 3) @ keys / queries.shape[2] ** 0.5).softmax(-1)
        return Embedding(self.finest(strides[0]), fine, middle, coarse, colours, attention)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Embedding:
        """Embedding of normalized images, whose height and width are multiples of 32."""
        return self.joined(self.strides(images))


def _split(features: Tensor) -> Tensor:
    """`(batch, width, rows, columns)` to `(batch, HEADS, width / HEADS, rows * columns)`."""
    return features.flatten(2).unflatten(1, (HEADS, -1))
