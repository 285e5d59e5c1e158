"""The model card's pictures: `python -m pretraining.report --training FOLDER --output FOLDER`.

Draws the losses of a training and the decoder's PSNR over its steps, whatever number of times it was
resumed, and what the model makes: frames of the sample clip through the autoencoder, and samples for a
few captions.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio

import drift
import drift.backbones.feature_autoencoder
from drift.image_files import read_frame

__all__ = ["losses", "main", "reconstructed", "smoothed"]

_CAPTIONS = (
    "a photo of a strawberry",
    "a photo of two apples",
    "a photo of a tiger and a pumpkin",
    "a photo of a landscape",
)
_SAMPLE = Path(drift.__file__).parent / "assets" / "sample"


def losses(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a logged metric over all resumed runs; later runs override earlier ones.

    Args:
        folder: of the training, which holds `log/from_STEP/metrics.csv`.
        name: the figure's column.

    Returns:
        Both `(logged,)`, steps rising; empty where the figure was never logged.
    """
    starts = sorted(folder.glob("log/from_*/metrics.csv"), key=lambda path: int(path.parent.name[5:]))
    values: dict[int, float] = {}
    for place, path in enumerate(starts):
        until = int(starts[place + 1].parent.name[5:]) if place + 1 < len(starts) else None
        with path.open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                step = int(row["step"])
                if row.get(name) and (until is None or step < until):
                    values[step] = float(row[name])
    steps = np.array(sorted(values))
    return steps, np.array([values[step] for step in steps])


def smoothed(values: np.ndarray, width: int = 9) -> np.ndarray:
    """Running mean over `width` values, truncated at the ends."""
    ones = np.ones(width)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


@torch.no_grad()
def reconstructed(pipeline: StableDiffusionPipeline, rgb: np.ndarray) -> np.ndarray:
    """Autoencoded RGB uint8 image, `(height, width, 3)`, cropped to multiples of 8."""
    rgb = rgb[: len(rgb) // 8 * 8, : rgb.shape[1] // 8 * 8]
    image = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    decoded = pipeline.vae.decode(pipeline.vae.encode(image).latent_dist.mode()).sample
    return ((decoded[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


def _draw_losses(training: Path, path: Path) -> None:
    figure, axes = plt.subplots(1, 4, figsize=(13, 3), layout="constrained")
    curves = (
        ("denoising", losses(training / "diffusion", "loss")),
        ("alignment: cosine distance", losses(training / "diffusion", "cosine")),
        ("grounding", losses(training / "diffusion", "grounding")),
        ("decoder: PSNR in dB", losses(training / "decoder", "psnr")),
    )
    for axis, (title, (steps, values)) in zip(axes, curves, strict=True):
        axis.plot(steps, values, color="0.85", linewidth=0.8)
        axis.plot(steps, smoothed(values, 15), color="tab:blue")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_samples(pipeline: StableDiffusionPipeline, path: Path) -> None:
    frame = read_frame(min(_SAMPLE.rglob("*.jpg")))
    back = reconstructed(pipeline, frame)
    whole, again = (
        torch.from_numpy(rgb.astype(np.float32)) for rgb in (frame[: len(back), : back.shape[1]], back)
    )
    psnr = peak_signal_noise_ratio(again, whole, data_range=255.0)
    figure, axes = plt.subplots(2, 4, figsize=(11, 5.6), layout="constrained")
    pictures: list[tuple[str, np.ndarray | Image.Image]] = [
        ("frame of the sample clip", frame),
        (f"decoded, {float(psnr):.1f} dB", back),
    ]
    crop = (slice(100, 220), slice(300, 460))
    pictures += [("detail", frame[crop]), ("detail, decoded", back[crop])]
    pictures += zip(_CAPTIONS, _samples(pipeline, _CAPTIONS), strict=True)
    for axis, (title, picture) in zip(axes.flat, pictures, strict=True):
        axis.imshow(picture)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _samples(pipeline: StableDiffusionPipeline, captions: Iterable[str]) -> list[Image.Image]:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline(
        list(captions), height=224, width=224, num_inference_steps=40, guidance_scale=3.0, generator=generator
    ).images


def main() -> None:
    """Writes `embedded-losses.png` and `embedded-samples.jpg`."""
    parser = argparse.ArgumentParser(
        prog="python -m pretraining.report", description=str(__doc__).split(":")[0] + "."
    )
    parser.add_argument("--training", type=Path, required=True, help="--output of python -m pretraining")
    parser.add_argument("--output", type=Path, required=True, help="folder of the pictures")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    _draw_losses(options.training, options.output / "embedded-losses.png")
    pipeline = StableDiffusionPipeline.from_pretrained(options.training / "model", low_cpu_mem_usage=False)
    _draw_samples(pipeline.to(torch.float32), options.output / "embedded-samples.jpg")


if __name__ == "__main__":
    main()
