"""The part of the UNet that no condition reaches, computed once (up to its first cross-attention).

Optimising a prompt runs the same latents through the same UNet at every step; all that lies before the first
cross-attention gives the same each time, and no gradient goes into it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from drift.backbone.attention import AllLayersRead, self_attention_layers

__all__ = ["Prefix", "computed_prefix", "replayed"]


@dataclass(frozen=True)
class Prefix:
    """What the UNet's modules gave before its first cross-attention, for a batch of latents.

    Attributes:
        outputs: by module, its output: a tensor with one row per latent, or a tuple of such.
    """

    outputs: dict[nn.Module, Any]


@torch.no_grad()
def computed_prefix(
    unet: UNet2DConditionModel,
    latents: Float[Tensor, "batch channels rows columns"],
    timestep: int,
    condition: Float[Tensor, "1 tokens dim"],
    *,
    read: Sequence[str] = (),
) -> Prefix:
    """Runs the UNet up to its first cross-attention.

    Args:
        unet: the model.
        latents: at `timestep`.
        timestep: τ.
        condition: any; nothing that is kept depends on it.
        read: self-attention layers that are to be read in the passes to come, which therefore have to run.
    """
    layers = self_attention_layers(unet)
    finished: dict[nn.Module, Any] = {}
    runs: Counter[nn.Module] = Counter()

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        finished[module] = output
        runs[module] += 1

    def leave(module: nn.Module, arguments: Any) -> None:
        raise AllLayersRead

    handles = [module.register_forward_hook(keep) for module in unet.modules()]
    handles += [block.attn2.register_forward_pre_hook(leave) for _, block in layers.values()]
    try:
        unet(latents, timestep, encoder_hidden_states=condition.expand(len(latents), -1, -1))
    except AllLayersRead:
        pass
    finally:
        for handle in handles:
            handle.remove()
    needed = {part for name in read for part in (layers[name][1].attn1.to_q, layers[name][1].attn1.to_k)}
    kept = [
        module
        for module in finished
        if runs[module] == 1 and not any(part in needed for part in module.modules())
    ]
    inner = {part for module in kept for part in module.modules() if part is not module}
    return Prefix({module: finished[module] for module in kept if module not in inner})


@contextmanager
def replayed(prefix: Prefix) -> Iterator[None]:
    """Within it, a pass of the UNet for the same latents takes from the prefix what was computed."""

    def replay(output: Any):  # type: ignore[no-untyped-def]
        return lambda *arguments, **options: output

    for module, output in prefix.outputs.items():
        module.forward = replay(output)
    try:
        yield
    finally:
        for module in prefix.outputs:
            del module.forward
