"""Mask decoder of the embedded Segment Anything model, for prompts drawn as image planes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from drift.refinement.tiny_encoder import HEADS, WIDTHS, Embedding, Mixer, upsampled

__all__ = ["PLANES", "STRIDE", "TinyMaskDecoder", "draw_boxes", "draw_masks", "draw_points"]

STRIDE = 4  # pixels of the input per pixel of the planes
PLANES = 8
_NARROW, _WIDE = 1.5, 8.0  # standard deviations of the Gaussians of a point, in pixels of the planes
_MASK_SCALE = 4.0  # logits are drawn as tanh(logits / _MASK_SCALE)


def draw_points(
    size: tuple[int, int], points: Float[Tensor, "objects points 2"], labels: Int[Tensor, "objects points"]
) -> Float[Tensor, "objects 4 rows columns"]:
    """Gaussians of two widths around the points inside the object, then around the points outside.

    Args:
        size: rows and columns of the planes.
        points: x, y in pixels of the input, whose centres are at integers.
        labels: 1 inside, 0 outside, -1 for padding.
    """
    x, y = _centres(size, points.device)
    planes = []
    for label in (1, 0):
        for deviation in (_NARROW, _WIDE):
            scale = -0.5 / (deviation * STRIDE) ** 2
            across = (scale * (x - points[..., :1]).square()).exp()
            down = (scale * (y - points[..., 1:]).square()).exp() * (labels == label)[..., None]
            planes.append((down[..., :, None] * across[..., None, :]).amax(1))
    return torch.stack(planes, 1)


def draw_boxes(
    size: tuple[int, int], boxes: Float[Tensor, "objects 4"]
) -> Float[Tensor, "objects 2 rows columns"]:
    """Two planes: 1 inside the box and -1 outside; and a ramp from 0 at the edges of the box to 1 in its middle.

    Args:
        size: rows and columns of the planes.
        boxes: left, top, right, bottom in pixels of the input.
    """
    x, y = _centres(size, boxes.device)
    left, top, right, bottom = (edge[:, None] for edge in boxes.unbind(1))
    across = torch.minimum(x - left, right - x) / (right - left).clamp(min=1) * 2
    down = torch.minimum(y - top, bottom - y) / (bottom - top).clamp(min=1) * 2
    depth = torch.minimum(down[:, :, None], across[:, None, :])
    return torch.stack([(depth > 0).float() * 2 - 1, depth.clamp(0, 1)], 1)


def draw_masks(logits: Float[Tensor, "objects 1 rows columns"]) -> Float[Tensor, "objects 2 rows columns"]:
    """Two planes: the mask in [-1, 1], and the constant 1, which marks that a mask is given."""
    return torch.cat([(logits / _MASK_SCALE).tanh(), torch.ones_like(logits)], 1)


def _centres(size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Coordinates x and y of the centres of the planes' pixels, in pixels of the input."""
    y, x = ((torch.arange(length, device=device) + 0.5) * STRIDE - 0.5 for length in size)
    return x, y


class _Matching(nn.Module):
    """Attention between tokens of a frame with precomputed weights, which do not depend on the prompts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.values = nn.Conv2d(width, width, 1)
        self.project = nn.Conv2d(width, width, 1)
        self.mixer = Mixer(width)

    def forward(self, tokens: Tensor, attention: Tensor) -> Tensor:
        """`(frames * objects, width, rows, columns)` to the same shape.

        Args:
            tokens: tokens of the objects, frame by frame.
            attention: see `Embedding`.
        """
        frames, heads = attention.shape[:2]
        values = self.values(tokens).flatten(2)  # (frames * objects, width, tokens)
        values = values.unflatten(0, (frames, -1)).unflatten(2, (heads, -1)).transpose(1, 2)
        shape = values.shape  # frames, heads, objects, depth, tokens
        attended = attention @ values.flatten(2, 3).transpose(2, 3)
        attended = attended.transpose(2, 3).reshape(shape).transpose(1, 2).reshape(tokens.shape)
        return self.mixer(tokens + self.project(attended))


class TinyMaskDecoder(nn.Module):
    """Decodes prompt planes into masks, from stride 16 to stride 2."""

    def __init__(self) -> None:
        super().__init__()
        half, quarter, eighth, sixteenth = WIDTHS
        self.draw = nn.Conv2d(PLANES, half, 3, padding=1)
        self.draw_eighth = nn.Conv2d(half, quarter, 3, stride=2, padding=1)
        self.draw_sixteenth = nn.Conv2d(quarter, eighth, 3, stride=2, padding=1)
        self.prompt_sixteenth = nn.Conv2d(eighth, sixteenth, 1)
        self.prompt_eighth = nn.Conv2d(quarter, eighth, 1)
        self.prompt_quarter = nn.Conv2d(half, quarter, 1)
        self.matchings = nn.ModuleList(_Matching(sixteenth) for _ in range(2))
        self.to_eighth = nn.Conv2d(sixteenth, eighth, 1)
        self.eighth_mixers = nn.Sequential(Mixer(eighth, 5), Mixer(eighth, 5))
        self.coarse_mask = nn.Conv2d(eighth, 1, 1)
        self.likeness = nn.Conv2d(2 * HEADS + 1, quarter, 1)
        self.to_quarter = nn.Conv2d(eighth, quarter, 1)
        self.quarter_mixers = nn.Sequential(Mixer(quarter, 3), Mixer(quarter, 3))
        self.to_half = nn.Conv2d(quarter, half, 1)
        self.half_filter = nn.Conv2d(half, half, 3, padding=1)
        self.mask = nn.Conv2d(half, 1, 3, padding=1)

    def forward(self, embedding: Embedding, planes: Tensor) -> Tensor:
        """Logits of masks at stride 2, `(frames * objects, 1, rows, columns)`.

        Args:
            embedding: embedding of the frames.
            planes: drawn points, boxes and masks, `(frames * objects, PLANES, rows, columns)`; 0 for kinds of prompts
                that are not given.
        """
        return self.fine(embedding, *self.coarse(embedding, planes))

    def coarse(self, embedding: Embedding, planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits at stride 8, and the features at strides 8 and 4 that `fine` takes."""
        quarter = F.relu(self.draw(planes))
        eighth = F.relu(self.draw_eighth(quarter))
        sixteenth = F.relu(self.draw_sixteenth(eighth))
        tokens = _with_frames(self.prompt_sixteenth(sixteenth), embedding.sixteenth)
        for matching in self.matchings:
            tokens = matching(tokens, embedding.attention)
        tokens = _with_frames(
            upsampled(self.to_eighth(tokens)) + self.prompt_eighth(eighth), embedding.eighth
        )
        tokens = self.eighth_mixers(tokens)
        return self.coarse_mask(tokens), tokens, quarter

    def fine(self, embedding: Embedding, coarse: Tensor, eighth: Tensor, quarter: Tensor) -> Tensor:
        """Logits at stride 2 from the output of `coarse`."""
        likeness = self.likeness(_likeness(embedding.colours, upsampled(coarse)))
        tokens = upsampled(self.to_quarter(eighth)) + self.prompt_quarter(quarter) + likeness
        tokens = self.quarter_mixers(_with_frames(tokens, embedding.quarter))
        fine = F.relu(_with_frames(upsampled(self.to_half(tokens)), embedding.half))
        logits: Tensor = self.mask(F.relu(fine + self.half_filter(fine)))
        return logits


def _with_frames(tokens: Tensor, features: Tensor) -> Tensor:
    """Adds the features of each frame to its objects' tokens."""
    return (tokens.unflatten(0, (len(features), -1)) + features[:, None]).flatten(0, 1)


def _likeness(colours: Tensor, mask: Tensor) -> Tensor:
    """Cosine similarity of colours to their means inside and outside a mask, and the logits of the mask.

    Args:
        colours: see `Embedding`.
        mask: logits, `(frames * objects, 1, rows, columns)`.

    Returns:
        `(frames * objects, 2 * HEADS + 1, rows, columns)`.
    """
    inside = mask.sigmoid()
    weights = torch.cat([inside, 1 - inside], 1)
    weights = weights / weights.sum((-2, -1), keepdim=True).clamp(min=1)
    weights = (
        weights.flatten(2).unflatten(0, (len(colours), -1)).flatten(1, 2)
    )  # (frames, objects * 2, pixels)
    means = F.normalize(
        weights[:, None] @ colours.transpose(2, 3), dim=-1
    )  # (frames, HEADS, objects * 2, depth)
    cosine = (means @ colours).transpose(1, 2).unflatten(1, (-1, 2)).flatten(0, 1).flatten(1, 2)
    return torch.cat([cosine.unflatten(-1, mask.shape[-2:]), mask.clamp(-8, 8) / 4], 1)
