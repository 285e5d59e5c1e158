"""Latent diffusion transformers in which the tokens of image and prompt attend jointly, and rectified flow.

The prompt has no keys of its own: they change from layer to layer with the image's. So these models have a prompt, but
textual inversion, which needs cross-attention, is not possible with them.
"""

from __future__ import annotations

from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from drift.backbones.diffusion import LatentDiffusionModel

__all__ = ["JointAttentionModel"]


class JointAttentionModel(LatentDiffusionModel):
    """A latent diffusion transformer with joint attention. Features are those of the image's tokens.

    Args:
        pooled: embedding of the whole prompt.
        options: see `LatentDiffusionModel`.
    """

    conditioning = "joint attention"

    image_tokens: Literal["first", "last"]
    """Whether the tokens of the image come before or after those of the prompt."""

    _pooled: Tensor

    def __init__(self, *, pooled: Float[Tensor, "1 pooled_dim"], **options: Any) -> None:
        super().__init__(**options)
        self.register_buffer("_pooled", pooled.detach().to(self.denoiser.dtype), persistent=False)

    def _on_grid(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        count = (rows // self.patch_size) * (columns // self.patch_size)
        of_image = tokens[..., :count, :] if self.image_tokens == "first" else tokens[..., -count:, :]
        return super()._on_grid(of_image, rows, columns)
