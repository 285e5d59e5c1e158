"""Trains the embedded latent diffusion model: `python -m drift.pretrain --pictures ROOT --output FOLDER`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import lightning as L
import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from drift.errors import DriftError
from drift.pretrain.autoencoder import AutoencoderTraining
from drift.pretrain.diffusion import DiffusionTraining, save_pipeline
from drift.pretrain.fitting import fit
from drift.pretrain.pictures import SOURCES, Cutout, load_pictures
from drift.pretrain.scenes import SceneDataset, caption
from drift.pretrain.text import build_tokenizer

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Runs both trainings, each going on from its last checkpoint, and writes the model."""
    options = _parser().parse_args(arguments)
    try:
        pictures = load_pictures(options.pictures)
    except DriftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    L.seed_everything(options.seed, verbose=False)
    vae = _train_autoencoder(pictures, options)
    diffusion = _train_diffusion(vae, pictures, options)
    save_pipeline(diffusion, options.output / "model")
    print(f"wrote {options.output / 'model'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m drift.pretrain",
        description="Train the embedded latent diffusion model. Killed at any moment, the same command goes on.",
        epilog="The pictures are in the Debian packages " + ", ".join(SOURCES) + ".",
    )
    parser.add_argument(
        "--pictures", type=Path, default=Path("/"), help="where the packages are installed or unpacked"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of checkpoints, logs and the model"
    )
    parser.add_argument("--autoencoder-steps", type=int, default=900, help="steps of batch 12 at 128 x 128")
    parser.add_argument("--diffusion-steps", type=int, default=2600, help="steps of batch 8 at 224 x 224")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _train_autoencoder(
    pictures: tuple[list[Cutout], list[np.ndarray]], options: argparse.Namespace
) -> AutoencoderKL:
    final = options.output / "autoencoder" / "final"
    if (final / "config.json").is_file():
        return AutoencoderKL.from_pretrained(final, low_cpu_mem_usage=False)
    module = AutoencoderTraining(max_steps=options.autoencoder_steps)
    fit(
        module,
        pictures,
        folder=options.output / "autoencoder",
        max_steps=options.autoencoder_steps,
        side=128,
        batch_size=12,
        seed=options.seed,
    )
    scenes = SceneDataset(*pictures, side=128, length=64, seed=options.seed + 1)
    images = torch.stack([scenes[index][0] for index in range(len(scenes))])
    module.vae.register_to_config(scaling_factor=_unit_scale(module.vae, images))
    module.vae.save_pretrained(final)
    return module.vae


@torch.no_grad()
def _unit_scale(vae: AutoencoderKL, images: Tensor) -> float:
    """The factor that gives the latents of `images` a standard deviation of 1."""
    return round(1 / float(vae.encode(images).latent_dist.mode().std()), 4)


def _train_diffusion(
    vae: AutoencoderKL, pictures: tuple[list[Cutout], list[np.ndarray]], options: argparse.Namespace
) -> DiffusionTraining:
    names = sorted({cutout.name for cutout in pictures[0]})
    captions = [caption([name] * count) for name in names for count in (1, 2)] + [
        caption([]),
        caption(names[:3]),
    ]
    module = DiffusionTraining(vae, build_tokenizer(captions), max_steps=options.diffusion_steps)
    fit(
        module,
        pictures,
        folder=options.output / "diffusion",
        max_steps=options.diffusion_steps,
        side=224,
        batch_size=8,
        seed=options.seed + 2,
        save_every=200,
    )
    return module


if __name__ == "__main__":
    sys.exit(main())
