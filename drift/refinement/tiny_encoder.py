"""Image encoder of the embedded Segment Anything model, with the layers of EfficientNet-lite0."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from drift.efficientnet import COARSEST_STRIDE, STAGE_WIDTHS, EfficientNetLite0

__all__ = ["TinyImageEncoder"]


_STRIDE = 16  # pixels per embedding token
_MIXERS = 4
_INNER = 192  # channels of the mixers


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


class TinyImageEncoder(EfficientNetLite0):
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
        self.fine = nn.Conv2d(STAGE_WIDTHS[1], _INNER, 4, stride=4)
        self.middle = nn.Conv2d(STAGE_WIDTHS[2], _INNER, 2, stride=2)
        self.coarse = nn.Conv2d(STAGE_WIDTHS[4], _INNER, 1)
        self.coarsest = nn.Conv2d(STAGE_WIDTHS[6], _INNER, 1)
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
        strides = self.stage_outputs(images)
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
    return -(-last // COARSEST_STRIDE) * COARSEST_STRIDE
