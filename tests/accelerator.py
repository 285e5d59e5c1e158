"""A pretended accelerator: tensors on a device other than the CPU, computed by the CPU, under CUDA's rules.

`pretended_accelerator()` is a context manager that yields a device. Within it, tensors and modules move to the device
with `.to(device)`, factory functions accept `device=device`, and Lightning has an accelerator of that name. An
operation that CUDA refuses because its tensors are on different devices raises `MixedDevices`.

The device is PyTorch's `lazy`: the one type of device that PyTorch knows, guards in autograd, and does not implement in
its packages. So nothing has to be registered for the whole process, and everything is restored on exit.

What it does not show: kernels and data types that a GPU lacks or computes differently, autocast, memory, speed,
asynchronous execution, pinned memory and several devices.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["DEVICE", "MixedDevices", "PretendedTensor", "pretended_accelerator"]

DEVICE = torch.device("lazy", 0)

_ops = torch.ops.aten
_MOVES = (_ops._to_copy.default, _ops.copy_.default)
_INDEXING = (
    _ops.index.Tensor,
    _ops.index_put.default,
    _ops.index_put_.default,
    _ops._index_put_impl_.default,
    _ops._unsafe_index.Tensor,
)


class MixedDevices(RuntimeError):
    """An operation on tensors of several devices, which CUDA would refuse."""


class PretendedTensor(torch.Tensor):
    """A tensor on the pretended device.

    Attributes:
        values: the same tensor on the CPU.
    """

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor) -> PretendedTensor:
        inference = torch.inference_mode(
            values.is_inference()
        )  # views of other tensors are no inference tensors
        with inference, no_dispatch():
            like = torch.empty_strided(values.shape, values.stride(), dtype=values.dtype, device="meta")
            tensor = torch.Tensor._make_subclass(
                cls, like, False, dispatch_device=True, device_for_backend_keys=DEVICE
            )
        tensor.values = values
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return _run(func, args, kwargs, _leaves(args, kwargs))

    def __repr__(self, **options: Any) -> str:
        return f"PretendedTensor({self.values!r})"

    def __format__(self, spec: str) -> str:
        return format(self.values, spec)

    def tolist(self) -> Any:
        return self.values.tolist()


class _PretendedDevice(TorchDispatchMode):
    """Runs the operations that create tensors on the pretended device or have arguments on it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = _leaves(args, kwargs)
        if any(isinstance(leaf, PretendedTensor) or _is_pretended(leaf) for leaf in leaves):
            return _run(func, args, kwargs, leaves)
        return func(*args, **kwargs)


def _run(func: Any, args: tuple, kwargs: Mapping[str, Any], leaves: Sequence[Any]) -> Any:
    """The result of an operation, on the device where CUDA would leave it."""
    if func is torch.ops.prim.device.default:
        return DEVICE
    if _is_composite(func):  # in inference mode they arrive whole
        with _PretendedDevice():
            return func.decompose(*args, **kwargs)
    _check(func, args, kwargs, leaves)
    result = func(*_mapped(_on_cpu, args), **_mapped(_on_cpu, kwargs))
    written = kwargs.get("out", args[0] if func._schema.is_mutable and args else None)
    if written is not None:
        if isinstance(written, Tensor) and written.shape != _on_cpu(written).shape:
            raise NotImplementedError(f"{func} changes the shape of a tensor on the pretended device")
        return written if isinstance(result, Tensor) else result
    targets = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
    pretended = any(map(_is_pretended, targets)) if targets else _pretended(leaves)
    return _mapped(_on_device, result) if pretended else result


@cache
def _is_composite(func: Any) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def _check(func: Any, args: tuple, kwargs: Mapping[str, Any], leaves: Sequence[Any]) -> None:
    """Raises MixedDevices where CUDA would raise an error about devices."""
    if func in _MOVES:
        return
    pretended = _pretended(leaves)
    others = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, PretendedTensor)]
    refused = others
    if func in _INDEXING:  # indices may be on the CPU, and so may a single value to be written
        self, value = args[0], args[2] if len(args) > 2 else None
        refused = [x for x in others if x is self or (x is value and x.dim())]
    elif torch.Tag.pointwise in func.tags or "fill" in func._schema.name:  # a value that is read may be, too
        written = args[0] if func._schema.is_mutable else None
        refused = [x for x in others if x.dim() or x is written]
    if pretended and refused:
        shapes = [tuple(x.shape) for x in pretended], [tuple(x.shape) for x in refused]
        raise MixedDevices(
            f"{func}: expected all tensors to be on the same device, but those of shapes {shapes[0]} are on {DEVICE} "
            f"and those of shapes {shapes[1]} on the CPU"
        )
    if kwargs.get("generator") is not None:
        raise MixedDevices(f"{func}: a generator of the CPU for a tensor on {DEVICE}")


def _leaves(*branches: Any) -> list[Any]:
    """All values in nested lists, tuples and dictionaries; PyTorch's own functions on trees are many times slower."""
    leaves = []
    for branch in branches:
        if isinstance(branch, list | tuple):
            leaves += _leaves(*branch)
        elif isinstance(branch, dict):
            leaves += _leaves(*branch.values())
        else:
            leaves.append(branch)
    return leaves


def _mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, list | tuple):
        return type(tree)([_mapped(function, branch) for branch in tree])
    if isinstance(tree, dict):
        return {name: _mapped(function, branch) for name, branch in tree.items()}
    return function(tree)


def _is_pretended(leaf: Any) -> bool:
    return isinstance(leaf, torch.device) and leaf.type == DEVICE.type


def _pretended(leaves: Sequence[Any]) -> list[PretendedTensor]:
    return [leaf for leaf in leaves if isinstance(leaf, PretendedTensor)]


def _on_cpu(leaf: Any) -> Any:
    if isinstance(leaf, PretendedTensor):
        return leaf.values
    return torch.device("cpu") if _is_pretended(leaf) else leaf


def _on_device(leaf: Any) -> Any:
    return PretendedTensor(leaf) if isinstance(leaf, Tensor) else leaf


class _LightningAccelerator(Accelerator):
    """The pretended device for `Trainer(accelerator="lazy", devices=[0])`."""

    def setup_device(self, device: torch.device) -> None:
        """Nothing to set up."""

    def teardown(self) -> None:
        """Nothing to tear down."""

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        return [0]

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [DEVICE]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return DEVICE.type


@contextmanager
def pretended_accelerator() -> Iterator[torch.device]:
    """Yields a device on which tensors can be put within the context, see the module's docstring."""
    autocast, run = torch.autocast, threading.Thread.run
    choose_strategy = _AcceleratorConnector._choose_strategy
    lifts = torch._C._only_lift_cpu_tensors()

    def without_casting(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if device_type == DEVICE.type else autocast(device_type, *args, **kwargs)

    def run_thread(thread: threading.Thread) -> None:
        torch._C._set_only_lift_cpu_tensors(True)  # like the mode, of one thread
        with _PretendedDevice():
            run(thread)

    def single_device(
        connector: Any,
    ) -> Any:  # for accelerators that it does not know Lightning takes the CPU
        if connector._accelerator_flag == DEVICE.type:
            return SingleDeviceStrategy(device=DEVICE)
        return choose_strategy(connector)

    AcceleratorRegistry.register(DEVICE.type, _LightningAccelerator)
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=DEVICE) is a copy that the mode sees
    try:
        with (
            patch.object(torch, "autocast", without_casting),
            patch.object(torch.accelerator, "synchronize"),
            patch.object(threading.Thread, "run", run_thread),  # a mode is of one thread
            patch.object(_AcceleratorConnector, "_choose_strategy", single_device),
            _PretendedDevice(),
        ):
            yield DEVICE
    finally:
        torch._C._set_only_lift_cpu_tensors(lifts)
        AcceleratorRegistry.remove(DEVICE.type)
