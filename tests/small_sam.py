"""A small Segment Anything model of the official classes with random weights."""

from __future__ import annotations

from typing import Any

import torch

from drift.refinement.architectures import _load

__all__ = ["small_sam"]

SIDE, WIDTH = 640, 128


def small_sam() -> Any:
    """For inputs of 640 x 640 pixels, stride 16."""
    torch.manual_seed(0)
    modeling = _load("modeling")
    return modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            img_size=SIDE, embed_dim=32, depth=1, num_heads=2, out_chans=WIDTH
        ),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=WIDTH,
            image_embedding_size=(SIDE // 16, SIDE // 16),
            input_image_size=(SIDE, SIDE),
            mask_in_chans=16,
        ),
        mask_decoder=modeling.MaskDecoder(
            num_multimask_outputs=3,
            transformer=modeling.TwoWayTransformer(
                depth=2, embedding_dim=WIDTH, mlp_dim=2 * WIDTH, num_heads=4
            ),
            transformer_dim=WIDTH,
        ),
    ).eval()
