"""Image encoder of the embedded Segment Anything model, with the layers of EfficientNet-lite0."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Block", "TinyImageEncoder"]


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
"""EfficientNet-lite0 (Tan and Le, 2019): stride 2 after the stem, then 2, 4, 8, 16, 16, 32, 32."""
_STRIDE = 16  # pixels per embedding token
_COARSEST = 32
_MIXERS = 4
_INNER = 192  # channels of the mixers


class _SamePadded(nn.Conv2d):
    """Convolution with the padding of TensorFlow's SAME mode for inputs of even size."""

    def forward(self, features: Tensor) -> Tensor:
        total = self.kernel_size[0] - self.stride[0]
        before = total // 2
        padded = F.pad(features, (before, total - before) * 2) if total % 2 else features
        padding = 0 if total % 2 else before
        return F.conv2d(padded, self.weight, self.bias, self.stride, padding, groups=self.groups)


class Block(nn.Module):
    """Inverted residual: expansion, depthwise convolution, projection. Batch norms are folded into the weights."""

    def __init__(self, width_in: int, width: int, *, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width_in * expansion
        self.expand = nn.Conv2d(width_in, inner, 1) if expansion > 1 else None
        self.depthwise = _SamePadded(inner, inner, kernel, stride=stride, groups=inner)
        self.project = nn.Conv2d(inner, width, 1)
        self._residual = stride == 1 and width_in == width

    def forward(self, features: Tensor) -> Tensor:
        """`(batch, width_in, height, width)` to `(batch, width, height / stride, width / stride)`."""
        inner = features if self.expand is None else F.relu6(self.expand(features))
        out = self.project(F.relu6(self.depthwise(inner)))
        return out + features if self._residual else out


class _Mixer(nn.Module):
    """ConvNeXt-like residual block: 7 x 7 depthwise convolution, norm, pointwise MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.filter = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.widen = nn.Conv2d(width, 2 * width, 1)
        self.narrow = nn.Conv2d(2 * width, width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """`(batch, width, rows, columns)` to the same shape."""
        return tokens + self.narrow(F.gelu(self.widen(self.norm(self.filter(tokens)))))


class TinyImageEncoder(nn.Module):
    """Sums features of strides 4, 8, 16 and 32 at stride 16, and mixes them. Padded rows and columns are skipped.

    Args:
        img_size: side of the padded square input, in pixels; a multiple of 32.
        width: channels of the embedding.
    """

    ignores_padding = True
    needs_mask_prompt = True  # every training example has one

    def __init__(self, *, img_size: int, width: int) -> None:
        super().__init__()
        self.img_size = img_size
        self.stem = _SamePadded(3, _STEM, 3, stride=2)
        stages, before = [], _STEM
        for stage in _STAGES:
            blocks = []
            for number in range(stage.blocks):
                stride = stage.stride if number == 0 else 1
                blocks.append(
                    Block(before, stage.width, kernel=stage.kernel, stride=stride, expansion=stage.expansion)
                )
                before = stage.width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.fine = nn.Conv2d(_STAGES[1].width, _INNER, 4, stride=4)
        self.middle = nn.Conv2d(_STAGES[2].width, _INNER, 2, stride=2)
        self.coarse = nn.Conv2d(_STAGES[4].width, _INNER, 1)
        self.coarsest = nn.Conv2d(_STAGES[6].width, _INNER, 1)
        self.mixers = nn.Sequential(*(_Mixer(_INNER) for _ in range(_MIXERS)))
        self.readout = nn.Conv2d(_INNER, width, 1)

    def forward(
        self, images: Float[Tensor, "batch 3 side side"]
    ) -> Float[Tensor, "batch width rows columns"]:
        """Embedding of preprocessed images, padded with 0 at the bottom and on the right; 0 on the padding."""
        rows, columns = (_used(images, dim) for dim in (-2, -1))
        tokens = self._tokens(images[..., :rows, :columns])
        side = self.img_size // _STRIDE
        return F.pad(tokens, (0, side - tokens.shape[-1], 0, side - tokens.shape[-2]))

    def _tokens(self, images: Tensor) -> Tensor:
        strides = []
        features = F.relu6(self.stem(images))
        for stage in self.stages:
            features = stage(features)
            strides.append(features)
        tokens = self.fine(strides[1]) + self.middle(strides[2]) + self.coarse(strides[4])
        coarsest = self.coarsest(strides[6])
        tokens = tokens + F.interpolate(coarsest, scale_factor=2, mode="bilinear", align_corners=False)
        embedding: Tensor = self.readout(self.mixers(tokens))
        return embedding


def _used(images: Tensor, dim: int) -> int:
    """Rows (`dim` -2) or columns (-1) without the padding, rounded up to a multiple of the coarsest stride."""
    other = -1 if dim == -2 else -2
    filled = (images != 0).any(other).flatten(0, 1).any(0).nonzero()
    last = int(filled[-1]) + 1 if len(filled) else 1
    return -(-last // _COARSEST) * _COARSEST
