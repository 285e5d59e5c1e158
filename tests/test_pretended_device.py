"""The pretended accelerator refuses what CUDA refuses, accepts what CUDA accepts, and leaves nothing behind."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import lightning as L
import numpy as np
import pytest
import torch
from accelerator import DEVICE, MixedDevices, PretendedTensor, pretended_accelerator
from lightning.pytorch.accelerators import AcceleratorRegistry
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

CPU, INDICES = torch.arange(12.0).view(3, 4), torch.tensor([0, 2])


@pytest.fixture
def there():
    with pretended_accelerator():
        yield CPU.to(DEVICE)


REFUSED = {
    "sum of tensors": lambda x: x + CPU,
    "sum with the CPU first": lambda x: CPU + x,
    "sum in place": lambda x: x.add_(CPU),
    "number on the device, tensor on the CPU": lambda x: CPU + x.sum(),
    "product": lambda x: x @ CPU.T,
    "einsum": lambda x: torch.einsum("ab,cb->ac", x, CPU),
    "concatenation": lambda x: torch.cat([x, CPU]),
    "stacked numbers": lambda x: torch.stack([x.sum(), CPU.sum()]),
    "choice": lambda x: torch.where(CPU > 1, x, 0.0),
    "mask": lambda x: x.masked_fill(CPU > 1, 0.0),
    "tensor on the CPU by indices of the device": lambda x: CPU[INDICES.to(DEVICE)],
    "values of the CPU by index": lambda x: x.__setitem__(x > 1, CPU[CPU > 1]),
    "gather": lambda x: x.gather(1, INDICES[:, None]),
    "convolution": lambda x: F.conv2d(x[None, None], torch.ones(1, 1, 1, 1)),
    "module": lambda x: nn.Linear(4, 2)(x),
    "interpolation of a mask": lambda x: F.mse_loss(x, CPU),
    "output": lambda x: torch.add(x, x, out=torch.empty(3, 4)),
    "comparison": lambda x: torch.equal(x, CPU),
    "generator of the CPU": lambda x: torch.randn(3, generator=torch.Generator(), device=DEVICE),
}


@pytest.mark.parametrize("inference", [False, True], ids=["", "inference_mode"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_devices_is_refused(there, name, inference):
    with torch.inference_mode(inference), pytest.raises(MixedDevices):
        REFUSED[name](there)


ACCEPTED = {
    "number on the CPU": lambda x: x + CPU.sum(),
    "number": lambda x: 2 * x,
    "number by mask": lambda x: x.masked_fill(x > 3, CPU.sum()),
    "indices on the CPU": lambda x: x[INDICES],
    "indices on the device": lambda x: x[INDICES.to(x.device)],
    "list as index": lambda x: x[:, [0, 2]],
    "array as index": lambda x: x[np.array([0, 2])],
    "assignment": lambda x: _assigned(x.clone()),
    "attention": lambda x: F.scaled_dot_product_attention(*[x[None, None]] * 3),
    "interpolation": lambda x: F.interpolate(x[None, None], scale_factor=2, mode="bilinear"),
    "out": lambda x: torch.bmm(x[None], x.T[None], out=torch.empty(1, 3, 3, device=x.device)),
    "factories": lambda x: (
        torch.zeros(2, device=x.device) + torch.tensor([1, 2], device=x.device) + x.new_ones(1)
    ),
    "module": lambda x: nn.LayerNorm(4).to(x.device)(x),
    "copy to the CPU": lambda x: x.cpu() + CPU,
    "type and device of another tensor": lambda x: CPU.double().to(x) + x,
    "Python's numbers": lambda x: torch.tensor([x.sum().item(), float(x[1, 1]), *x[0].tolist()]),
}


def _assigned(x):
    x[0], x[:, [1]], x[x > 8] = 1.0, 2.0, 0.0
    x[1] = CPU[0]  # a copy to the device
    return x


@pytest.mark.parametrize("inference", [False, True], ids=["", "inference_mode"])
@pytest.mark.parametrize("name", ACCEPTED)
def test_what_cuda_accepts_gives_the_result_of_the_cpu(there, name, inference):
    with torch.inference_mode(inference):
        result, expected = ACCEPTED[name](there), ACCEPTED[name](CPU)
    assert torch.allclose(result.cpu(), expected)
    if name not in ("copy to the CPU", "Python's numbers"):
        assert result.device == DEVICE
        assert isinstance(result, PretendedTensor)


def test_an_array_cannot_share_memory_with_the_device(there):
    with pytest.raises((TypeError, RuntimeError)):
        there.numpy()
    with pytest.raises((TypeError, RuntimeError)):
        np.asarray(there)


def test_other_threads_have_the_device_too(there):
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: CPU.to(DEVICE) + there).result().device == DEVICE
        with pytest.raises(MixedDevices):
            pool.submit(lambda: CPU + there).result()


def test_gradients_are_on_the_device(there):
    layer = nn.Linear(4, 2).to(DEVICE)
    layer(there).square().sum().backward()
    copy = nn.Linear(4, 2)
    copy.load_state_dict({name: value.cpu() for name, value in layer.state_dict().items()})
    copy(CPU).square().sum().backward()
    assert layer.weight.grad.device == DEVICE
    assert torch.allclose(layer.weight.grad.cpu(), copy.weight.grad)


class _Line(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.slope, self.devices = nn.Parameter(torch.zeros(4)), set()

    def training_step(self, batch, batch_idx):
        self.devices |= {batch.device, self.slope.device}
        loss = (batch @ self.slope - 1).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


def test_lightning_trains_on_the_device(there):
    module = _Line()
    L.Trainer(
        accelerator=DEVICE.type,
        devices=[0],
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, DataLoader(CPU, batch_size=3))
    assert module.devices == {DEVICE}
    assert module.slope.cpu().abs().sum() > 0


def test_nothing_is_left_behind():
    names = ("autocast", "tensor", "inference_mode", "as_tensor")

    def replaced():
        others = torch.accelerator.synchronize, torch.Tensor.__getitem__, threading.Thread.run
        return [getattr(torch, name) for name in names], others, torch._C._only_lift_cpu_tensors()

    before = replaced()
    with pytest.raises(KeyError), pretended_accelerator():
        raise KeyError
    assert replaced() == before
    assert DEVICE.type not in AcceleratorRegistry
    assert torch.accelerator.is_available() == torch.cuda.is_available()
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    with pytest.raises(RuntimeError, match="Lazy"):
        torch.zeros(1, device=DEVICE)
