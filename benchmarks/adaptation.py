"""Textual inversion beside the plain loop: `python -m benchmarks.adaptation --json FILE`.

Plain loop: every step encodes and noises the views anew and runs the whole model forwards and backwards, as public code
for textual inversion does. Ours computes latents once, keeps queries for some steps, ends a pass at the last layer that
the loss needs, and backpropagates through the keys only. Both fit the same loss from the same initial embeddings with
the same optimiser, on the first frame of the sample clip. Measured is the time to the same loss (within 1 %), under the
learned and under the backbone's own prompt; then the time per step with a UNet of Stable Diffusion 2.1's size and
random weights.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from benchmarks.measuring import arguments, paired_seconds, report
from datamodules.sample import Sample
from drift.adaptation import PromptOptions, TextualInversion, fit
from drift.backbones import Backbone, StableDiffusion, load_backbone
from drift.command_line import keep_freed_memory
from drift.precision import resolved_precision

LAYERS = ["up_blocks.1.attentions.0", "up_blocks.1.attentions.1"]
Figures = dict[str, float | int | str]


class PlainLoop(TextualInversion):
    """Textual inversion that computes everything in every step.

    Attributes:
        target_loss: the fit ends at the first step whose loss is this low.
    """

    target_loss: float = float("-inf")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """The loss on all views."""
        return self.logged(self.exact_loss())

    def exact_loss(self) -> torch.Tensor:
        """The loss by a pass of the whole model over views that are encoded and noised anew."""
        self.on_fit_start()
        assert self._batch is not None
        return self.loss(self._batch, self.attend(self._batch, output=True))

    def on_train_epoch_end(self) -> None:
        """Ends the fit at the target."""
        super().on_train_epoch_end()
        self.trainer.should_stop = self.trainer.should_stop or self.losses[-1] <= self.target_loss


def fitted_seconds(module: TextualInversion, steps: int) -> float:
    """Seconds to fit a module for at most `steps` steps."""
    start = time.perf_counter()
    fit(module, steps=steps, patience=steps, tolerance=0.0)
    return time.perf_counter() - start


def compare_to_same_loss(
    backbone: Backbone,
    frame: np.ndarray,
    mask: np.ndarray,
    options: PromptOptions,
    *,
    steps: int,
    most: int,
) -> Figures:
    """Seconds, steps and final loss of ours, and of the plain loop until it reaches that loss.

    Args:
        backbone: a backbone with a prompt.
        frame, mask: the given frame.
        options: options of textual inversion.
        steps: steps of ours.
        most: upper bound of the plain loop's steps.
    """
    ours = TextualInversion(backbone, frame, mask, options)
    seconds = fitted_seconds(ours, steps)
    exact = PlainLoop(backbone, frame, mask, options)
    with torch.no_grad():  # queries kept by ours may be some steps old
        exact.embeddings.copy_(ours.embeddings)
        reached = float(exact.exact_loss())
    plain = PlainLoop(backbone, frame, mask, options)
    plain.target_loss = 1.01 * reached
    plain_seconds = fitted_seconds(plain, most)
    return {
        "seconds_ours": seconds,
        "steps_ours": len(ours.losses),
        "loss_ours": reached,
        "seconds_plain": plain_seconds,
        "steps_plain": len(plain.losses),
        "loss_plain": plain.losses[-1],
        "target_reached_plain": str(plain.losses[-1] <= plain.target_loss).lower(),
        "speedup": plain_seconds / seconds,
    }


def stable_diffusion_21() -> StableDiffusion:
    """A backbone of Stable Diffusion 2.1's size with random weights."""
    unet = UNet2DConditionModel(
        sample_size=96,
        cross_attention_dim=1024,
        attention_head_dim=[5, 10, 20, 20],
        use_linear_projection=True,
        upcast_attention=True,
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    dtype = resolved_precision("auto", "cpu")
    return StableDiffusion(
        vae=vae.to(dtype),
        unet=unet.to(dtype),
        scheduler=DDIMScheduler(prediction_type="v_prediction", clip_sample=False),
        prompt=torch.randn(1, 77, 1024, generator=torch.Generator().manual_seed(0)),
        layers=["up_blocks.2.attentions.1", "up_blocks.2.attentions.2"],
        timestep=51,
    )


def compare_steps(backbone: Backbone, side: int, options: PromptOptions, *, runs: int) -> Figures:
    """Seconds per step on a random image, over as many steps as ours has between two passes of the model."""
    frame = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8).numpy()
    mask = np.zeros((side, side), np.uint8)
    mask[side // 4 : side // 2, side // 4 : side // 2] = 1
    steps = max(1, options.refresh)
    seconds = paired_seconds(
        {
            kind.__name__: lambda kind=kind: fitted_seconds(kind(backbone, frame, mask, options), steps)  # type: ignore[misc]
            for kind in (TextualInversion, PlainLoop)
        },
        runs=runs,
    )
    ours, plain = seconds["TextualInversion"] / steps, seconds["PlainLoop"] / steps
    return {
        "sd21_pixels": side,
        "sd21_step_seconds_ours": ours,
        "sd21_step_seconds_plain": plain,
        "sd21_step_speedup": plain / ours,
    }


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="number of our steps")
    parser.add_argument("--most", type=int, default=200, help="upper bound of the plain loop's steps")
    parser.add_argument("--refresh", type=int, default=PromptOptions.refresh, help="our steps between passes")
    parser.add_argument("--tokens", type=int, default=36, help="tokens of a slot")
    parser.add_argument("--rate", type=float, default=0.3, help="learning rate of Adam")
    parser.add_argument("--prompts", nargs="+", choices=("learned", "own"), default=["learned", "own"])
    parser.add_argument("--checkpoint", default="embedded:tiny")
    parser.add_argument("--layers", type=lambda text: text.split(","), default=LAYERS)
    parser.add_argument("--side", type=int, help="longer side of the frame in pixels; default: full size")
    parser.add_argument("--sd-side", type=int, default=256, help="side of the large UNet's image; 0: skip it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    backbone = load_backbone(options.checkpoint, layers=options.layers, timestep=20)
    (clip,) = Sample(max_side=options.side).predict_dataloader()
    frame, mask = clip.given_frames()[0]
    mask = (mask == 1).astype(np.uint8)
    figures: Figures = {"threads": options.threads, "refresh": options.refresh}
    for prompt in options.prompts:
        prompt_options = PromptOptions(
            tokens=options.tokens,
            conditioned=prompt == "learned",
            refresh=options.refresh,
            learning_rate=options.rate,
        )
        compared = compare_to_same_loss(
            backbone, frame, mask, prompt_options, steps=options.steps, most=options.most
        )
        figures |= {f"{name}_{prompt}_prompt": value for name, value in compared.items()}
    if options.sd_side:
        large = PromptOptions(tokens=1, refresh=options.refresh, learning_rate=0.1)
        figures |= compare_steps(stable_diffusion_21(), options.sd_side, large, runs=options.runs)
    report("Textual inversion, ours beside the plain loop", figures, options.json)


if __name__ == "__main__":
    main()
