"""DDIM inversion: there and back again, and step by step as diffusers does it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.image import peak_signal_noise_ratio

import drift
from drift.backbone import load_latent_diffusion
from drift.backbone.inversion import ddim_inverted, inversion_timesteps
from drift.errors import OptionError
from drift.image_files import read_frame
from drift.pretrain.diffusion import build_scheduler

LAYERS = ["up_blocks.1.attentions.0"]
SAMPLE = Path(drift.__file__).parent / "assets" / "sample"


def schedule(prediction_type: str) -> DDIMScheduler:
    scheduler = build_scheduler()
    scheduler.register_to_config(prediction_type=prediction_type)
    return scheduler


def output(latents: torch.Tensor, timestep: int) -> torch.Tensor:
    """Some smooth function of both."""
    return torch.tanh(latents.roll(1, -1)) + timestep / 1000


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_every_step_is_that_of_diffusers(prediction_type: str) -> None:
    scheduler = schedule(prediction_type)
    reference = DDIMInverseScheduler.from_config({**scheduler.config, "clip_sample": False})
    reference.set_timesteps(100)  # of 10 timesteps each
    latents = torch.randn(2, 4, 6, 5)
    expected = latents
    for timestep in inversion_timesteps(300, 30):
        expected = reference.step(output(expected, timestep), timestep, expected).prev_sample
    found = ddim_inverted(latents, output, scheduler, timestep=300, steps=30)
    assert torch.allclose(found, expected, atol=1e-5)


@given(st.integers(1, 999), st.data())
def test_timesteps_rise_to_the_last(timestep: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, timestep))
    path = inversion_timesteps(timestep, steps)
    assert path[-1] == timestep
    assert len(path) == steps
    assert path == sorted(set(path))
    assert path[0] > 0


@pytest.mark.parametrize(
    ("timestep", "steps", "said"),
    [
        (10, 11, "inversion_steps=11: allowed is a whole number, 1 to 10"),
        (100, 0, "inversion_steps=0"),
        (0, 1, "timestep=0: allowed is 1 or more with noise=ddim_inversion"),
    ],
)
def test_impossible_steps_are_refused(timestep: int, steps: int, said: str, checkpoint: Path) -> None:
    with pytest.raises(OptionError, match=said):
        inversion_timesteps(timestep, steps)
    options = {"timestep": timestep, "inversion_steps": steps, "noise": "ddim_inversion"}
    with pytest.raises(OptionError, match=said):
        load_latent_diffusion(str(checkpoint), layers=LAYERS, **options)


def test_the_backbone_reads_inverted_latents(checkpoint: Path) -> None:
    inverting, plain = (
        load_latent_diffusion(str(checkpoint), layers=LAYERS, timestep=40, inversion_steps=4, noise=noise)
        for noise in ("ddim_inversion", "none")
    )
    latents = torch.randn(2, 4, 8, 8)
    noisy = ddim_inverted(latents, plain.predict, plain.scheduler, timestep=40, steps=4)
    (expected,), (found,), (other,) = (
        backbone.read(z, torch.Generator().manual_seed(seed))
        for backbone, z, seed in ((plain, noisy, 0), (inverting, latents, 0), (inverting, latents, 1))
    )
    assert torch.allclose(found.queries, expected.queries, atol=1e-5)
    assert torch.equal(found.queries, other.queries), "no noise is drawn"


@pytest.fixture(scope="module")
def embedded() -> tuple:
    """The embedded model's prediction under no prompt, and latents of two crops of the sample clip."""
    backbone = load_latent_diffusion("embedded:tiny", layers=LAYERS, timestep=20)
    frame = torch.from_numpy(read_frame(min(SAMPLE.rglob("*.jpg")))).permute(2, 0, 1).float() / 255
    crops = torch.stack([frame[:, 100:164, 200:264], frame[:, 300:364, 500:564]])
    return backbone, backbone.encode(crops)


def there_and_back(embedded: tuple, steps: int, prediction_type: str = "v_prediction") -> float:
    """PSNR in dB: inverted with the output taken for `prediction_type`, sampled by diffusers with what it is."""
    backbone, latents = embedded
    taken_for = schedule(prediction_type)
    noisy = ddim_inverted(latents, backbone.predict, taken_for, timestep=500, steps=steps)
    own = backbone.scheduler
    own.set_timesteps(1000 * steps // 500)
    for timestep in inversion_timesteps(500, steps)[::-1]:
        noisy = own.step(backbone.predict(noisy, timestep), timestep, noisy).prev_sample
    span = float(latents.max() - latents.min())
    return float(peak_signal_noise_ratio(noisy, latents, data_range=span))


def test_sampling_back_returns_the_latents(embedded: tuple) -> None:
    few, more, most = (there_and_back(embedded, steps) for steps in (5, 10, 50))
    assert few < more < most
    assert most > 30


def test_a_velocity_taken_for_noise_does_not_come_back(embedded: tuple) -> None:
    assert embedded[0].scheduler.config["prediction_type"] == "v_prediction"
    assert there_and_back(embedded, 50, "epsilon") < 30


def test_frames_are_inverted_as_if_alone(embedded: tuple) -> None:
    backbone, latents = embedded
    both, first = (
        ddim_inverted(z, backbone.predict, backbone.scheduler, timestep=200, steps=4)
        for z in (latents, latents[:1])
    )
    assert torch.allclose(both[:1], first, atol=1e-4)
