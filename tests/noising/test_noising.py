"""Noising: the forward process, and DDIM inversion step by step as diffusers does it, there and back."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.image import peak_signal_noise_ratio

import drift
from drift import Gaussian, LatentInversion, NoNoise, invert_latents, load_backbone
from drift.errors import OptionError
from drift.image_files import read_frame
from drift.noising.inversion import inversion_timesteps

LAYERS = ["up_blocks.1.attentions.0"]
SAMPLE = Path(drift.__file__).parent / "assets" / "sample"


def schedule(prediction_type: str = "v_prediction") -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


class Denoiser:
    """A smooth function of latents, timestep and prompt."""

    scheduler, timestep = schedule(), 300

    def denoise(self, latents, timestep, prompt):
        return torch.tanh(latents.roll(1, -1)) + timestep / 1000 + prompt.mean((1, 2))[:, None, None, None]


def test_gaussian_noise_follows_the_forward_process():
    latents, prompts = torch.full((1, 4, 64, 64), 3.0), torch.zeros(2, 5, 3)
    noisy = Gaussian(4)(latents, Denoiser(), prompts, torch.Generator().manual_seed(0))
    alpha = Denoiser.scheduler.alphas_cumprod[300]
    assert noisy.shape == (4, 1, 1, 4, 64, 64)
    assert noisy.mean().item() == pytest.approx(3.0 * alpha.sqrt().item(), abs=0.03)
    assert noisy.std().item() == pytest.approx((1 - alpha).sqrt().item(), abs=0.03)
    assert not torch.equal(noisy[0], noisy[1])


def test_without_noise_latents_are_unchanged():
    latents, generator = torch.randn(2, 4, 5, 6), torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert torch.equal(NoNoise()(latents, Denoiser(), torch.zeros(2, 5, 3), generator)[0, 0], latents)
    assert torch.equal(generator.get_state(), before)


def test_every_prompt_and_frame_is_inverted_on_its_own():
    latents, prompts = torch.randn(2, 4, 6, 5), torch.randn(3, 5, 3)
    denoiser = Denoiser()
    inverted = LatentInversion(7)(latents, denoiser, prompts, torch.Generator())
    assert inverted.shape == (1, 3, 2, 4, 6, 5)
    for place, prompt in enumerate(prompts):
        for frame in range(2):
            predict = partial(denoiser.denoise, prompt=prompt[None])
            alone = invert_latents(
                latents[frame, None], lambda z, t, p=predict: p(z, t), schedule(), timestep=300, steps=7
            )
            assert torch.allclose(inverted[0, place, frame], alone[0], atol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_every_step_is_that_of_diffusers(prediction_type: str) -> None:
    scheduler = schedule(prediction_type)
    reference = DDIMInverseScheduler.from_config({**scheduler.config, "clip_sample": False})
    reference.set_timesteps(100)  # of 10 timesteps each
    latents = expected = torch.randn(2, 4, 6, 5)
    predict = partial(Denoiser().denoise, prompt=torch.zeros(1, 5, 3))
    for timestep in inversion_timesteps(300, 30):
        expected = reference.step(predict(expected, timestep), timestep, expected).prev_sample
    found = invert_latents(latents, predict, scheduler, timestep=300, steps=30)
    assert torch.allclose(found, expected, atol=1e-5)


@given(st.integers(1, 999), st.data())
def test_timesteps_increase_to_the_last(timestep: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, timestep))
    path = inversion_timesteps(timestep, steps)
    assert path[-1] == timestep
    assert len(path) == steps
    assert path == sorted(set(path))
    assert path[0] > 0


@pytest.mark.parametrize(
    ("timestep", "steps", "message"),
    [
        (10, 11, "steps=11: allowed is a whole number, 1 to 10"),
        (100, 0, "steps=0"),
        (0, 1, "timestep=0: allowed is 1 or more with noise=inversion"),
    ],
)
def test_impossible_steps_are_refused(timestep: int, steps: int, message: str, checkpoint: Path) -> None:
    with pytest.raises(OptionError, match=message):
        inversion_timesteps(timestep, steps)
    with pytest.raises(OptionError, match=message):
        load_backbone(str(checkpoint), layers=LAYERS, timestep=timestep, noise=LatentInversion(steps))


def test_an_ensemble_needs_a_draw():
    with pytest.raises(OptionError, match="ensemble=0"):
        Gaussian(0)


@pytest.fixture(scope="module")
def embedded() -> tuple:
    """The embedded model under its own prompt, and latents of two crops of the sample clip."""
    backbone = load_backbone(precision="float32")
    frame = torch.from_numpy(read_frame(min(SAMPLE.rglob("*.jpg")))).permute(2, 0, 1).float() / 255
    crops = torch.stack([frame[:, 100:164, 200:264], frame[:, 300:364, 500:564]])
    return backbone, partial(backbone.denoise, prompt=backbone.prompt), backbone.encode(crops)


def there_and_back(embedded: tuple, steps: int, prediction_type: str = "v_prediction") -> float:
    """PSNR in dB after inversion, which takes the output for `prediction_type`, and sampling by diffusers."""
    backbone, predict, latents = embedded
    noisy = invert_latents(latents, predict, schedule(prediction_type), timestep=500, steps=steps)
    own = backbone.scheduler
    own.set_timesteps(1000 * steps // 500)
    for timestep in inversion_timesteps(500, steps)[::-1]:
        noisy = own.step(predict(noisy, timestep), timestep, noisy).prev_sample
    span = float(latents.max() - latents.min())
    return float(peak_signal_noise_ratio(noisy, latents, data_range=span))


def test_sampling_back_returns_the_latents(embedded: tuple) -> None:
    few, more, most = (there_and_back(embedded, steps) for steps in (5, 10, 50))
    assert few < more < most
    assert most > 30


def test_a_velocity_taken_for_noise_does_not_come_back(embedded: tuple) -> None:
    assert embedded[0].scheduler.config["prediction_type"] == "v_prediction"
    assert there_and_back(embedded, 50, "epsilon") < 30
