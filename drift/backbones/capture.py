"""Capturing queries and keys of diffusers models through attention processors."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

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
    "check_layers",
    "chosen_layers",
    "self_attention",
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
            `(batch, tokens, channels)`. The tokens of joint attention are those of image and prompt.
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
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """The output of the wrapped processor."""
        with watch_attention(lambda query, key: self.on_attention(query, key, hidden_states)):
            return self.processor(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **options)


def self_attention(layer: nn.Module) -> nn.Module | None:
    """The self-attention of a layer: of a transformer block, or the layer itself; None for any other block."""
    for name in ("attn1", "attn"):  # where image and prompt attend jointly, it is called attn
        if isinstance(attention := getattr(layer, name, None), nn.Module):
            return attention
    return layer if _is_attention(layer) else None


def attention_layers(model: nn.Module) -> dict[str, nn.Module]:
    """All layers with self-attention by name, in the order of the forward pass.

    A layer is a transformer block, or a self-attention beside that of a block or outside of one. Layers of a UNet are
    named after their transformer ("up_blocks.1.attentions.0"); further blocks of the same transformer are named with
    their number ("up_blocks.1.attentions.0.transformer_blocks.1").
    """
    layers = {}
    for name, module in model.named_modules():
        parent, _, attribute = name.rpartition(".")
        if attribute in ("attn1", "attn"):
            layers[re.sub(r"(?<=.)\.transformer_blocks\.0$", "", parent)] = model.get_submodule(parent)
        elif _is_attention(module) and not getattr(module, "is_cross_attention", False):
            if attribute != "attn2" or hasattr(model.get_submodule(parent), "attn"):
                layers[name] = module
    return dict(sorted(layers.items(), key=lambda item: _FORWARD_ORDER.get(item[0].split(".")[0], 0)))


def _is_attention(module: nn.Module) -> bool:
    return hasattr(module, "processor") and hasattr(module, "to_q")


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a UNet on the way up by name ("up_blocks.2"), whose outputs can serve as features (DIFT)."""
    return {f"up_blocks.{number}": block for number, block in enumerate(model.up_blocks)}  # type: ignore[arg-type]


def check_layers(names: object, allowed: Collection[str], otherwise: str = "") -> None:
    """Raises OptionError unless `names` are one or more distinct layers among `allowed`, which the message lists.

    Args:
        names: the option `layers`.
        allowed: names of the layers that the model has.
        otherwise: what else is allowed, for the message.
    """
    chosen = [] if isinstance(names, str) or not isinstance(names, Collection) else list(names)
    if not chosen or len(set(chosen)) < len(chosen) or not set(allowed) >= set(chosen):
        listed = "one or more distinct layers among " + ", ".join(allowed) + otherwise
        raise OptionError("layers", chosen or names, listed)


def chosen_layers(model: nn.Module, names: Collection[str]) -> dict[str, nn.Module]:
    """The attention layers and blocks of a UNet called `names`, in that order.

    Raises:
        OptionError: no names are given, a name is repeated, or the model has no such layer; lists the layers it has.
    """
    layers: dict[str, nn.Module] = {**attention_layers(model), **blocks(model)}
    check_layers(names, layers)
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
        tokens = inputs.flatten(2).mT if inputs.ndim == 4 else inputs  # a feature map
        captured.self_attention[layer] = (queries, keys, tokens)
        captured._exit_if_complete()

    def keep_cross(layer: str, queries: Tensor, keys: Tensor, inputs: Tensor) -> None:
        captured.cross_attention[layer] = queries
        captured._exit_if_complete()

    def keep_block(block: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        captured.blocks[block] = output
        captured._exit_if_complete()

    attention = {name: found for name in layers if (found := self_attention(modules[name])) is not None}
    wanted: list[tuple[Any, OnCapture]] = []
    wanted += [(module, partial(keep_self, name)) for name, module in attention.items()]
    wanted += [(modules[name].attn2, partial(keep_cross, name)) for name in cross]
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
