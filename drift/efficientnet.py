"""EfficientNet-lite0 (Tan and Le, 2019) with batch norms folded into the convolutions, all stages' outputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["COARSEST_STRIDE", "STAGE_WIDTHS", "Block", "EfficientNetLite0"]


class _Stage(NamedTuple):
    """Blocks of equal width; `stride` is that of the first block."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    width: int


_STEM = 32
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
STAGE_WIDTHS = tuple(stage.width for stage in _STAGES)
"""Channels of the stages' outputs, which have strides of 2, 4, 8, 16, 16, 32, 32."""
COARSEST_STRIDE = 32


class _SamePadded(nn.Conv2d):
    """Convolution with the padding of TensorFlow's SAME mode for inputs of even size."""

    def forward(self, features: Tensor) -> Tensor:
        before, odd = divmod(self.kernel_size[0] - self.stride[0], 2)
        # An odd total pads one more row and column at the end. This equals symmetric padding with zeros in the kernel's
        # first row and column, which costs less than a padded copy of the features.
        weight = F.pad(self.weight, (1, 0, 1, 0)) if odd else self.weight
        return F.conv2d(features, weight, self.bias, self.stride, before + odd, groups=self.groups)


class Block(nn.Module):
    """Inverted residual: expansion, depthwise convolution, projection."""

    def __init__(self, width_in: int, width: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width_in * expansion
        self.expand = nn.Conv2d(width_in, inner, 1) if expansion > 1 else None
        self.depthwise = _SamePadded(inner, inner, kernel, stride=stride, groups=inner)
        self.project = nn.Conv2d(inner, width, 1)
        self._residual = stride == 1 and width_in == width

    def forward(self, features: Tensor) -> Tensor:
        """`(batch, width_in, height, width)` to `(batch, width, height / stride, width / stride)`."""
        inner = features if self.expand is None else F.relu6(self.expand(features), inplace=True)
        out = self.project(F.relu6(self.depthwise(inner), inplace=True))
        return out + features if self._residual else out


class EfficientNetLite0(nn.Module):
    """Stem and stages, without the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _SamePadded(3, _STEM, 3, stride=2)
        self.stages = nn.ModuleList()
        before = _STEM
        for blocks, kernel, stride, expansion, width in _STAGES:
            widths = [before, *[width] * (blocks - 1)]
            self.stages.append(
                nn.Sequential(
                    *(
                        Block(
                            width_in,
                            width,
                            kernel=kernel,
                            stride=stride if number == 0 else 1,
                            expansion=expansion,
                        )
                        for number, width_in in enumerate(widths)
                    )
                )
            )
            before = width

    def stage_outputs(self, images: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """Outputs of all stages, `(batch, STAGE_WIDTHS[n], rows, columns)`.

        Args:
            images: normalized RGB; height and width are multiples of 32.
        """
        outputs = []
        features = F.relu6(self.stem(images.contiguous(memory_format=torch.channels_last)), inplace=True)
        for stage in self.stages:
            features = stage(features)
            outputs.append(features)
        return outputs
