"""Capturing queries and keys of diffusers models through attention processors."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from drift.errors import OptionError

__all__ = [
    "Captured",
    "LastLayerCaptured",
    "attention_layers",
    "blocks",
    "capture",
    "chosen_layers",
    "watch_attention",
]

_FORWARD_ORDER = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}

OnAttention = Callable[[Tensor, Tensor], None]
OnCapture = Callable[[Tensor, Tensor, Tensor], None]


class LastLayerCaptured(Exception):
    """Ends a forward pass once all requested layers are captured."""


class Captured:
    """Queries, keys and inputs of attention layers from one forward pass.

    Attributes:
        self_attention: by layer, queries and keys `(batch, heads, tokens, dim)` and the layer's input
            `(batch, tokens, channels)`.
        cross_attention: by layer, queries `(batch, heads, tokens, dim)` of the cross-attention.
        blocks: by block, its output `(batch, channels, rows, columns)`.
    """

    def __init__(self, layers: Collection[str], cross: Collection[str], *, early_exit: bool) -> None:
        self.self_attention: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self.cross_attention: dict[str, Tensor] = {}
        self.blocks: dict[str, Tensor] = {}
        self._requested = len(set(layers)) + len(set(cross))
        self._early_exit = early_exit

    def _exit_if_complete(self) -> None:
        captured = len(self.self_attention) + len(self.cross_attention) + len(self.blocks)
        if self._early_exit and captured == self._requested:
            raise LastLayerCaptured


class watch_attention(TorchFunctionMode):  # noqa: N801 - a context manager
    """Within it, `on_attention(queries, keys)` is called before each scaled dot-product attention.

    Queries and keys are those that are compared: after query and key norms, rotary embedding and fused projections,
    whatever module computes them.
    """

    def __init__(self, on_attention: OnAttention) -> None:
        super().__init__()
        self._on_attention = on_attention

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            query, key = (*args, *(kwargs[name] for name in ("query", "key") if name in kwargs))[:2]
            self._on_attention(query, key)
        return function(*args, **kwargs)


class _CaptureProcessor:
    """Runs an attention processor and passes its queries, keys and input to a callback."""

    def __init__(self, processor: Any, on_attention: OnCapture) -> None:
        self.processor, self.on_attention = processor, on_attention

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """The output of the wrapped processor."""
        with watch_attention(lambda query, key: self.on_attention(query, key, hidden_states)):
            return self.processor(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **options)


def attention_layers(model: nn.Module) -> dict[str, BasicTransformerBlock]:
    """All transformer blocks of a UNet by layer name, in the order of the forward pass.

    A layer is named after its transformer ("up_blocks.1.attentions.0"); further blocks of the same transformer are
    named with their number ("up_blocks.1.attentions.0.transformer_blocks.1").
    """
    named = [
        (name, module) for name, module in model.named_modules() if isinstance(module, BasicTransformerBlock)
    ]
    named.sort(key=lambda item: _FORWARD_ORDER.get(item[0].split(".")[0], 0))
    return {re.sub(r"\.transformer_blocks\.0$", "", name): block for name, block in named}


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a UNet on the way up by name ("up_blocks.2"), whose outputs can serve as features (DIFT)."""
    return {f"up_blocks.{number}": block for number, block in enumerate(model.up_blocks)}  # type: ignore[arg-type]


def chosen_layers(model: nn.Module, names: Collection[str]) -> dict[str, nn.Module]:
    """The attention layers and blocks called `names`, in that order.

    Raises:
        OptionError: no names are given, a name is repeated, or the model has no such layer; lists the layers it has.
    """
    layers: dict[str, nn.Module] = {**attention_layers(model), **blocks(model)}
    if isinstance(names, str) or not names or len(set(names)) < len(names) or not layers.keys() >= set(names):
        allowed = "one or more distinct layers among " + ", ".join(layers)
        raise OptionError("layers", names if isinstance(names, str) else list(names), allowed)
    return {name: layers[name] for name in names}


@contextmanager
def capture(
    modules: Mapping[str, nn.Module],
    layers: Collection[str],
    cross: Collection[str] = (),
    *,
    early_exit: bool = True,
) -> Iterator[Captured]:
    """Within it, one forward pass of the model fills the yielded `Captured`.

    Installs attention processors and restores the model's own when it is left. With `early_exit` the pass is abandoned
    as soon as the last requested layer has its queries and keys.

    Args:
        modules: attention layers and blocks of the model, see `chosen_layers`.
        layers: layers whose self-attention is captured, and blocks whose output is.
        cross: layers whose cross-attention is captured.
        early_exit: False to run the pass to its end.
    """
    captured = Captured(layers, cross, early_exit=early_exit)

    def keep_self(layer: str, queries: Tensor, keys: Tensor, inputs: Tensor) -> None:
        captured.self_attention[layer] = (queries, keys, inputs)
        captured._exit_if_complete()

    def keep_cross(layer: str, queries: Tensor, keys: Tensor, inputs: Tensor) -> None:
        captured.cross_attention[layer] = queries
        captured._exit_if_complete()

    def keep_block(block: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        captured.blocks[block] = output
        captured._exit_if_complete()

    attention = {
        name: module for name, module in modules.items() if isinstance(module, BasicTransformerBlock)
    }
    wanted: list[tuple[Any, OnCapture]] = []
    wanted += [(attention[name].attn1, partial(keep_self, name)) for name in layers if name in attention]
    wanted += [(attention[name].attn2, partial(keep_cross, name)) for name in cross]
    hooks = [
        modules[name].register_forward_hook(partial(keep_block, name))
        for name in layers
        if name not in attention
    ]
    own = [(module, module.processor) for module, _ in wanted]
    for module, on_attention in wanted:
        module.processor = _CaptureProcessor(module.processor, on_attention)
    try:
        yield captured
    except LastLayerCaptured:
        pass
    finally:
        for module, processor in own:
            module.processor = processor
        for hook in hooks:
            hook.remove()
