"""Reading attention out of a diffusers UNet: which layers there are, and what they compute with.

The processors of diffusers never expose probabilities, and none are needed: queries and keys say all,
at a fraction of the memory. They are caught where they are made, at the projections of the layer, so
that whatever processor the model runs with stays in place. What is read carries gradients where the pass does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from drift.backbone.interface import LayerReading
from drift.errors import OptionError

__all__ = [
    "AllLayersRead",
    "CrossReading",
    "Recording",
    "chosen_layers",
    "recorded",
    "self_attention_layers",
]


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


@dataclass(frozen=True)
class CrossReading:
    """What one cross-attention layer computes with.

    Attributes:
        queries: one vector per head and place, not yet scaled by 1/√dim.
        keys: one per head and token of the prompt.
    """

    queries: Float[Tensor, "batch heads height width dim"]
    keys: Float[Tensor, "batch heads tokens dim"]

    def logits(self) -> Float[Tensor, "batch heads height width tokens"]:
        """Q Kᵀ / √dim, in float32."""
        flat = (self.queries.flatten(2, 3) @ self.keys.mT).float() / math.sqrt(self.queries.shape[-1])
        return flat.unflatten(2, self.queries.shape[2:4])


@dataclass
class Recording:
    """What one pass of the UNet showed, by layer."""

    self_attention: dict[str, LayerReading] = field(default_factory=dict)
    cross_attention: dict[str, CrossReading] = field(default_factory=dict)


class _Projections:
    """Catches the queries and keys of one attention layer, as `(batch, heads, tokens, dim)`."""

    def __init__(self, attention: Attention) -> None:
        self.attention = attention
        self.caught: dict[str, Tensor] = {}

    def install(self, when_both) -> list[RemovableHandle]:  # type: ignore[no-untyped-def]
        def catch(part: str):  # type: ignore[no-untyped-def]
            def hook(module: nn.Module, arguments: tuple[Tensor, ...], projected: Tensor) -> None:
                self.caught[part] = projected.unflatten(2, (self.attention.heads, -1)).transpose(1, 2)
                if len(self.caught) == 2:
                    queries, keys = self.caught["queries"], self.caught["keys"]
                    self.caught.clear()
                    when_both(queries, keys)

            return hook

        return [
            self.attention.to_q.register_forward_hook(catch("queries")),
            self.attention.to_k.register_forward_hook(catch("keys")),
        ]


class _Recorder:
    """Collects what the chosen layers compute with while the UNet runs."""

    def __init__(
        self, unet: UNet2DConditionModel, names: Sequence[str], cross: Sequence[str], *, leave: bool
    ) -> None:
        self.recording = Recording()
        self._leave = leave
        self._names, self._cross = set(names), set(cross)
        self._layers = chosen_layers(unet, list(dict.fromkeys([*names, *cross])))
        self._grids: dict[str, tuple[int, int]] = {}
        self._inputs: dict[str, Tensor] = {}

    def install(self) -> list[RemovableHandle]:
        handles = []
        for name, (transformer, block) in self._layers.items():
            handles.append(transformer.register_forward_pre_hook(self._keep_grid(name)))
            if name in self._names:
                handles.append(
                    block.attn1.register_forward_pre_hook(self._keep_inputs(name), with_kwargs=True)
                )
                handles += _Projections(block.attn1).install(self._keep_self(name))
            if name in self._cross:
                handles += _Projections(block.attn2).install(self._keep_cross(name))
        return handles

    def _keep_grid(self, name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            self._grids[name] = tuple(arguments[0].shape[-2:])  # type: ignore[assignment]

        return hook

    def _keep_inputs(self, name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], options: dict) -> None:
            tokens = arguments[0] if arguments else options["hidden_states"]
            self._inputs[name] = tokens.unflatten(1, self._grids[name])

        return hook

    def _keep_self(self, name: str):  # type: ignore[no-untyped-def]
        def keep(queries: Tensor, keys: Tensor) -> None:
            grid = self._grids[name]
            reading = LayerReading(
                name, queries.unflatten(2, grid), keys.unflatten(2, grid), self._inputs.pop(name)
            )
            self.recording.self_attention[name] = reading
            self._leave_if_done()

        return keep

    def _keep_cross(self, name: str):  # type: ignore[no-untyped-def]
        def keep(queries: Tensor, keys: Tensor) -> None:
            reading = CrossReading(queries.unflatten(2, self._grids[name]), keys)
            self.recording.cross_attention[name] = reading
            self._leave_if_done()

        return keep

    def _leave_if_done(self) -> None:
        done = self.recording
        complete = (len(done.self_attention), len(done.cross_attention)) == (
            len(self._names),
            len(self._cross),
        )
        if complete and self._leave:
            raise AllLayersRead


@contextmanager
def recorded(
    unet: UNet2DConditionModel, names: Sequence[str], *, cross: Sequence[str] = (), leave: bool = True
) -> Iterator[Recording]:
    """Within it, one forward pass of `unet` fills the yielded recording, then stops.

    The pass is left with `AllLayersRead`, raised before the last chosen layer attends and caught here.

    Args:
        unet: the model.
        names: layers whose self-attention is read.
        cross: layers whose cross-attention is read.
        leave: whether the pass stops there; False to have the UNet's output too.

    Raises:
        OptionError: the model has no layer of a given name; the message lists those it has.
    """
    recorder = _Recorder(unet, names, cross, leave=leave)
    handles = recorder.install()
    try:
        yield recorder.recording
    except AllLayersRead:
        pass
    finally:
        for handle in handles:
            handle.remove()
