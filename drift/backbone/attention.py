"""Reading self-attention out of a diffusers UNet: which layers there are, and what they compute with.

The processors of diffusers never expose probabilities, and none are needed: queries and keys say all,
at a fraction of the memory. They are caught where they are made, at the projections of the layer, so
that whatever processor the model runs with stays in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from drift.backbone.interface import LayerReading
from drift.errors import OptionError

__all__ = ["AllLayersRead", "chosen_layers", "recorded", "self_attention_layers"]


class AllLayersRead(Exception):
    """Leaves the UNet's forward: every chosen layer has been read, what follows is not needed."""


def self_attention_layers(
    unet: UNet2DConditionModel,
) -> dict[str, tuple[Transformer2DModel, BasicTransformerBlock]]:
    """Every self-attention layer by name, in the order of the forward pass.

    A layer is named after its transformer ("up_blocks.1.attentions.0"); of a transformer with several
    blocks the later ones carry their number ("up_blocks.1.attentions.0.transformer_blocks.1").
    """
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    layers = {}
    for path, module in sorted(unet.named_modules(), key=lambda item: order.get(item[0].split(".")[0], 0)):
        if isinstance(module, Transformer2DModel):
            for number, block in enumerate(module.transformer_blocks):
                name = path if number == 0 else f"{path}.transformer_blocks.{number}"
                layers[name] = (module, block)
    return layers


def chosen_layers(
    unet: UNet2DConditionModel, names: Sequence[str]
) -> dict[str, tuple[Transformer2DModel, BasicTransformerBlock]]:
    """The layers of these names.

    Raises:
        OptionError: the model has no layer of a given name; the message lists those it has.
    """
    layers = self_attention_layers(unet)
    for name in names:
        if name not in layers:
            raise OptionError("layers", name, "among " + ", ".join(layers))
    return {name: layers[name] for name in names}


class _Recorder:
    """Collects the readings of the chosen layers while the UNet runs."""

    def __init__(self, layers: dict[str, tuple[Transformer2DModel, BasicTransformerBlock]]) -> None:
        self.layers = layers
        self.readings: dict[str, LayerReading] = {}
        self._parts: dict[str, dict[str, Tensor]] = {name: {} for name in layers}
        self._grids: dict[str, tuple[int, int]] = {}

    def install(self) -> list[RemovableHandle]:
        handles = []
        for name, (transformer, block) in self.layers.items():
            handles.append(transformer.register_forward_pre_hook(self._keep_grid(name)))
            handles.append(block.attn1.register_forward_pre_hook(self._keep_inputs(name), with_kwargs=True))
            handles.append(block.attn1.to_q.register_forward_hook(self._keep_projection(name, "queries")))
            handles.append(block.attn1.to_k.register_forward_hook(self._keep_projection(name, "keys")))
        return handles

    def _keep_grid(self, name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            self._grids[name] = tuple(arguments[0].shape[-2:])  # type: ignore[assignment]

        return hook

    def _keep_inputs(self, name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], options: dict) -> None:
            tokens = arguments[0] if arguments else options["hidden_states"]
            self._parts[name]["inputs"] = tokens.unflatten(1, self._grids[name])

        return hook

    def _keep_projection(self, name: str, part: str):  # type: ignore[no-untyped-def]
        heads = self.layers[name][1].attn1.heads

        def hook(module: nn.Module, arguments: tuple[Tensor, ...], projected: Tensor) -> None:
            parts = self._parts[name]
            split = projected.unflatten(2, (heads, -1)).transpose(1, 2)
            parts[part] = split.unflatten(2, self._grids[name])
            if parts.keys() >= {"inputs", "queries", "keys"}:
                self.readings[name] = LayerReading(name, **parts)
                parts.clear()
                if len(self.readings) == len(self.layers):
                    raise AllLayersRead

        return hook


@contextmanager
def recorded(unet: UNet2DConditionModel, names: Sequence[str]) -> Iterator[dict[str, LayerReading]]:
    """Within it, one forward pass of `unet` fills the yielded dict, then stops.

    The pass is left with `AllLayersRead`, raised before the last chosen layer attends and caught here.

    Raises:
        OptionError: the model has no layer of a given name; the message lists those it has.
    """
    recorder = _Recorder(chosen_layers(unet, names))
    handles = recorder.install()
    try:
        yield recorder.readings
    except AllLayersRead:
        pass
    finally:
        for handle in handles:
            handle.remove()
