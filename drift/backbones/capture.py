"""Capturing queries and keys of models of diffusers and transformers while they run."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from drift.errors import OptionError

__all__ = [
    "Block",
    "Captured",
    "LastLayerCaptured",
    "attention_layers",
    "blocks",
    "capture",
    "check_layers",
    "chosen_layers",
    "patches_on_grid",
    "self_attention",
    "watch_attention",
]

_FORWARD_ORDER = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}

_SELF_ATTENTION = ("attn1", "attn", "attention", "self_attn")
"""Its names in the blocks of diffusers (attn: joint with the prompt), of DINOv2 and MAE, and of SigLIP."""

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


@contextmanager
def _watched(module: nn.Module, on_attention: OnCapture) -> Iterator[None]:
    """Within it, `on_attention(queries, keys, input)` is called before each attention that `module` computes."""
    own = module.forward

    def forward(*arguments: Any, **options: Any) -> Any:
        inputs = arguments[0] if arguments else options["hidden_states"]
        with watch_attention(lambda query, key: on_attention(query, key, inputs)):
            return own(*arguments, **options)

    before = vars(module).get("forward")  # where it is watched already
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


@dataclass(frozen=True)
class Block:
    """A module whose output, a feature map `(batch, channels, rows, columns)`, serves as features."""

    module: nn.Module


def self_attention(layer: nn.Module) -> Any:
    """The self-attention of a layer: of a transformer block, or the layer itself."""
    return next((getattr(layer, name) for name in _SELF_ATTENTION if hasattr(layer, name)), layer)


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
        elif _is_attention(module) and (attribute != "attn2" or hasattr(model.get_submodule(parent), "attn")):
            layers[name] = module
    return dict(sorted(layers.items(), key=lambda item: _FORWARD_ORDER.get(item[0].split(".")[0], 0)))


def _is_attention(module: nn.Module) -> bool:
    return hasattr(module, "processor") and hasattr(module, "to_q")


def blocks(model: nn.Module) -> dict[str, Block]:
    """The blocks of a UNet on the way up by name ("up_blocks.2"), whose outputs can serve as features (DIFT)."""
    return {f"up_blocks.{number}": Block(block) for number, block in enumerate(model.up_blocks)}  # type: ignore[arg-type]


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


def patches_on_grid(
    tokens: Float[Tensor, "*batch tokens dim"], grid: tuple[int, int]
) -> Float[Tensor, "*batch rows columns dim"]:
    """Tokens of an image transformer's patches in float32; class and register tokens, which come first, are dropped."""
    return tokens[..., tokens.shape[-2] - grid[0] * grid[1] :, :].unflatten(-2, grid).float()


def chosen_layers(model: nn.Module, names: Collection[str]) -> dict[str, nn.Module | Block]:
    """The attention layers and blocks of a UNet called `names`, in that order.

    Raises:
        OptionError: no names are given, a name is repeated, or the model has no such layer; lists the layers it has.
    """
    layers: dict[str, nn.Module | Block] = {**attention_layers(model), **blocks(model)}
    check_layers(names, layers)
    return {name: layers[name] for name in names}


@contextmanager
def capture(
    modules: Mapping[str, Any],
    layers: Collection[str],
    cross: Collection[str] = (),
    *,
    early_exit: bool = True,
) -> Iterator[Captured]:
    """Within it, one forward pass of the model fills the yielded `Captured`; the model is left as it was.

    With `early_exit` the pass is abandoned as soon as the last requested layer has its queries and keys.

    Args:
        modules: attention layers and blocks of the model by name, see `chosen_layers`.
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

    with ExitStack() as stack:
        for name in layers:
            if isinstance(layer := modules[name], Block):
                stack.callback(layer.module.register_forward_hook(partial(keep_block, name)).remove)
            else:
                stack.enter_context(_watched(self_attention(layer), partial(keep_self, name)))
        for name in cross:
            stack.enter_context(_watched(modules[name].attn2, partial(keep_cross, name)))
        with suppress(LastLayerCaptured):
            yield captured
