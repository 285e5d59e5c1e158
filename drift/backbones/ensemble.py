"""Several backbones at once, whose features the kernel fuses: `Ensemble`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from drift.backbones.interface import Backbone, Features
from drift.backbones.loading import load_backbone, wrap_backbone
from drift.errors import OptionError
from drift.noising.interface import Generators

__all__ = ["Ensemble", "load_ensemble"]


class Ensemble(nn.Module):
    """The layers of several backbones; implements `Backbone`.

    A layer is called "MEMBER/LAYER". How members are fused is how layers are: with `heads="fused"` the weighted mean of
    their logits, with the weights that head weighting fixes or learns (Zhang et al., arXiv 2305.15347, concatenate the
    normalised features of Stable Diffusion and DINOv2: cosine similarity and fixed weights).

    The kernel needs grids whose sizes differ by powers of two. Frames are therefore resized for each member, by less
    than a factor of √2, so that its tokens cover `stride` pixels of the ensemble's frames times a power of two.

    Args:
        members: backbones by name.

    Raises:
        OptionError: there are no members, or a name is empty or holds a slash or a dot.
    """

    batch = 1

    def __init__(self, members: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not members or not all(name and not set(name) & set("/.") for name in members):
            raise OptionError("members", list(members), "one or more backbones, by names without / and .")
        self.members: Any = nn.ModuleDict(members)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: the members are frozen."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """Device of the first member."""
        device: torch.device = next(iter(self.members.values())).device
        return device

    @property
    def stride(self) -> int:
        """Pixels per token of the member with the finest grid."""
        return int(min(member.stride for member in self.members.values()))

    @property
    def layers(self) -> dict[str, int]:
        """The layers of all members, with their number of heads."""
        return {
            f"{name}/{layer}": heads
            for name, member in self.members.items()
            for layer, heads in member.layers.items()
        }

    @property
    def description(self) -> Mapping[str, object]:
        """The members' descriptions by name."""
        return {"members": {name: dict(member.description) for name, member in self.members.items()}}

    def features(
        self,
        frames: Float[Tensor, "batch 3 height width"],
        generator: Generators,
        *,
        prompt: Float[Tensor, "prompts tokens dim"] | None = None,
        cross: Collection[str] = (),
    ) -> list[Features]:
        """See `Backbone`. Members take their noise from `generator` one after the other."""
        if prompt is not None or cross:
            raise ValueError("Ensemble has no prompt")
        return [
            replace(layer, layer=f"{name}/{layer.layer}").to(self.device)
            for name, member in self.members.items()
            for layer in member.features(self._resized(frames, member.stride), generator)
        ]

    def _resized(self, frames: Tensor, stride: int) -> Tensor:
        """Frames for a member: as many multiples of its stride as they hold of its tokens' size in the ensemble."""
        token = self.stride * 2 ** round(math.log2(stride / self.stride))
        height, width = frames.shape[-2:]
        padded = F.pad(frames, (0, -width % token, 0, -height % token), mode="replicate")
        if token == stride:
            return padded
        size = [length // token * stride for length in padded.shape[-2:]]
        return F.interpolate(padded, size, mode="bilinear", align_corners=False, antialias=True)


def load_ensemble(
    members: Mapping[str, Mapping[str, Any]] | Sequence[Mapping[str, Any]],
    *,
    device: torch.device | str = "cpu",
    precision: str = "auto",
    batch: int | str = "auto",
    cache: str | None = None,
    cache_gigabytes: float = 20.0,
) -> Backbone:
    """Loads several backbones as one.

    Args:
        members: by name, the arguments of `load_backbone` for each; the members of a list are named by their number.
        device: where the models compute.
        precision: of the members that do not state theirs; see `load_backbone`.
        batch: see `load_backbone`.
        cache, cache_gigabytes: see `load_backbone`; features of all members are kept together.

    Raises:
        InputError, OptionError: see `load_backbone`; an option is named with its member.
    """
    if not isinstance(members, Mapping):
        members = {str(number): member for number, member in enumerate(members or ())}
    loaded = {
        name: _load(name, {"precision": precision, **member}, device) for name, member in members.items()
    }
    return wrap_backbone(Ensemble(loaded), batch=batch, cache=cache, cache_gigabytes=cache_gigabytes)


def _load(name: str, options: Mapping[str, Any], device: torch.device | str) -> Any:
    try:
        return load_backbone(**options, device=device)
    except OptionError as error:
        raise OptionError(f"members.{name}.{error.name}", error.value, error.allowed) from None
