"""Textual inversion beside the plain loop: `python -m benchmarks.adaptation --json FILE`.

Plain: every step encodes the views anew and runs the whole UNet forwards and backwards, as public code for textual
inversion does. Ours keeps what does not change, ends the pass at the last map that the loss reads, and takes
gradients through the keys alone. Both optimise the same loss, from the same start, with the same optimiser, on the
first frame of the clip that ships with drift, read under the learned prompt: the time is that to the same loss
(within 1 %). Then one step of each on a UNet of Stable Diffusion 2.1's size with random weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks.measuring import arguments, paired_seconds, report
from datamodules.sample import Sample
from drift.adaptation.prompts import first_embeddings
from drift.adaptation.textual_inversion import PromptInversion, chosen_cross_layers
from drift.adaptation.views import View, augmented_views
from drift.backbone import LatentDiffusion, load_latent_diffusion
from drift.command_line import keep_freed_memory
from drift.pretrain.text import build_tokenizer

LAYERS = ["up_blocks.1.attentions.0", "up_blocks.1.attentions.1"]


def inversion(
    backbone: LatentDiffusion, views: list[View], *, tokens: int, conditioned: bool = True, refresh: int = 1
) -> tuple[PromptInversion, Tensor]:
    """One object's and the background's slots on these views, and the embeddings to start from."""
    cross, spreading = chosen_cross_layers(backbone, None, None)
    task = PromptInversion(
        backbone,
        views,
        [1],
        known=None,
        tokens=tokens,
        cross_layers=cross,
        self_layer=spreading,
        self_weight=1.0,
        diffusion_weight=0.0,
        conditioned=conditioned,
        refresh=refresh,
        generator=torch.Generator().manual_seed(0),
    )
    base = backbone.condition().float()
    return task, first_embeddings(base, 2, tokens, torch.Generator().manual_seed(0))


def plain_step(task: PromptInversion, views: list[View]) -> Callable[[Tensor], Tensor]:
    """The loss of one step of the plain loop."""

    def loss(embeddings: Tensor) -> Tensor:
        for view in views:
            task.backbone.encode(view.image[None].to(task.backbone.device))
        return task.plain_loss(embeddings)

    return loss


def optimise(
    loss_of: Callable[[Tensor], Tensor], start: Tensor, *, steps: int, rate: float, until: float | None = None
) -> tuple[float, int, Tensor]:
    """Seconds, steps and the embeddings they led to: of all steps, or of those until a loss is as low as `until`."""
    embeddings = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([embeddings], lr=rate)
    lowest, began, done = float("inf"), time.perf_counter(), 0
    while done < steps and not (until is not None and lowest <= until):
        loss = loss_of(embeddings)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lowest, done = min(lowest, float(loss.detach())), done + 1
    return time.perf_counter() - began, done, embeddings.detach()


def stable_diffusion_21() -> LatentDiffusion:
    """A backbone of Stable Diffusion 2.1's size with random weights; its text encoder has two layers only."""
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
    tokenizer = build_tokenizer(["a photo"])
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=1024,
        intermediate_size=1024,
        num_hidden_layers=2,
        num_attention_heads=8,
    )
    return LatentDiffusion(
        vae=vae,
        unet=unet,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(prediction_type="v_prediction", clip_sample=False),
        layers=["up_blocks.2.attentions.1", "up_blocks.2.attentions.2"],
        timestep=51,
        precision="auto",
    )


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, default=60, help="of ours; the plain loop gets as many as it needs"
    )
    parser.add_argument("--most", type=int, default=200, help="steps after which the plain loop is given up")
    parser.add_argument("--refresh", type=int, default=3, help="our steps between two passes of the UNet")
    parser.add_argument("--tokens", type=int, default=36, help="of each slot")
    parser.add_argument("--rate", type=float, default=0.3, help="Adam's learning rate")
    parser.add_argument("--checkpoint", default="embedded:tiny")
    parser.add_argument("--layers", type=lambda text: text.split(","), default=LAYERS)
    parser.add_argument("--side", type=int, help="reduce the picture's longer side to so many pixels")
    parser.add_argument(
        "--sd-side", type=int, default=256, help="pixels of the large UNet's picture; 0: leave it out"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    backbone = load_latent_diffusion(options.checkpoint, layers=options.layers, timestep=20, precision="auto")
    (clip,) = Sample(max_side=options.side).predict_dataloader()
    mask = clip.reduced_mask((clip.given[0] == 1).astype("uint8"))
    picture = clip.reduced_frame(clip.frames[0])
    views = augmented_views(picture, mask, count=1, reach=40, stride=backbone.stride, seed=0)
    figures: dict[str, float | int | str] = {"threads": options.threads}
    for name, conditioned in (("", True), ("_unconditioned", False)):
        task, start = inversion(
            backbone, views, tokens=options.tokens, conditioned=conditioned, refresh=options.refresh
        )
        ours = optimise(task.loss, start, steps=options.steps, rate=options.rate)
        with torch.no_grad():  # what we end with, from the whole UNet: kept queries may be some steps old
            reached = float(task.plain_loss(ours[2]))
        plain = optimise(
            plain_step(task, views), start, steps=options.most, rate=options.rate, until=1.01 * reached
        )
        with torch.no_grad():
            theirs = float(task.plain_loss(plain[2]))
        figures |= {
            f"seconds_ours{name}": ours[0],
            f"steps_ours{name}": ours[1],
            f"loss_ours{name}": reached,
            f"seconds_plain{name}": plain[0],
            f"steps_plain{name}": plain[1],
            f"loss_plain{name}": theirs,
            f"gave_up{name}": str(plain[1] == options.most).lower(),
            f"speedup{name}": plain[0] / ours[0],
        }
    if options.sd_side:
        figures |= _one_step_each(stable_diffusion_21(), options.sd_side, options.runs)
    report("Textual inversion, ours beside the plain loop", figures, options.json)


def _one_step_each(backbone: LatentDiffusion, side: int, runs: int) -> dict[str, float | int | str]:
    picture = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8).numpy()
    mask = torch.zeros(side, side, dtype=torch.uint8)
    mask[side // 4 : side // 2, side // 4 : side // 2] = 1
    views = augmented_views(picture, mask.numpy(), count=0, reach=40, stride=backbone.stride, seed=0)
    task, start = inversion(backbone, views, tokens=1)
    plain = plain_step(task, views)
    calls = {
        "ours": lambda: optimise(task.loss, start, steps=1, rate=0.1),
        "plain": lambda: optimise(plain, start, steps=1, rate=0.1),
    }
    seconds = paired_seconds(calls, runs=runs)
    return {
        "sd21_pixels": side,
        "sd21_step_seconds_ours": seconds["ours"],
        "sd21_step_seconds_plain": seconds["plain"],
        "sd21_step_speedup": seconds["plain"] / seconds["ours"],
    }


if __name__ == "__main__":
    main()
