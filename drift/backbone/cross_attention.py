"""Reading cross-attention out of a diffusers UNet: which tokens of the prompt each place attends to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from drift.backbone.attention import AllLayersRead, chosen_layers

__all__ = ["cross_attention_recorded"]

Maps = dict[str, Float[Tensor, "batch heads height width tokens"]]


@contextmanager
def cross_attention_recorded(unet: UNet2DConditionModel, names: Sequence[str]) -> Iterator[Maps]:
    """Within it, one forward pass of `unet` fills the yielded dict with probabilities, then stops.

    The maps carry gradients where the pass does. The pass is left once the last chosen layer has its
    queries and keys.

    Args:
        unet: the model.
        names: layers, by the name of their transformer ("up_blocks.1.attentions.0").

    Raises:
        OptionError: the model has no layer of a given name; the message lists those it has.
    """
    layers = chosen_layers(unet, names)
    maps: Maps = {}
    grids: dict[str, tuple[int, int]] = {}
    queries: dict[str, Tensor] = {}

    def keep_grid(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            grids[name] = tuple(arguments[0].shape[-2:])  # type: ignore[assignment]

        return hook

    def keep_queries(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], projected: Tensor) -> None:
            queries[name] = projected

        return hook

    def attend(name: str, heads: int):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], projected: Tensor) -> None:
            q, k = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (queries.pop(name), projected))
            probabilities = (q @ k.mT / math.sqrt(q.shape[-1])).float().softmax(-1)
            maps[name] = probabilities.unflatten(2, grids[name])
            if len(maps) == len(layers):
                raise AllLayersRead

        return hook

    handles = []
    for name, (transformer, block) in layers.items():
        handles.append(transformer.register_forward_pre_hook(keep_grid(name)))
        handles.append(block.attn2.to_q.register_forward_hook(keep_queries(name)))
        handles.append(block.attn2.to_k.register_forward_hook(attend(name, block.attn2.heads)))
    try:
        yield maps
    except AllLayersRead:
        pass
    finally:
        for handle in handles:
            handle.remove()
