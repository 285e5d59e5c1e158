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
from drift.pretrain.autoencoder import AutoencoderTraining, build_autoencoder, set_principal_encoder
from drift.pretrain.diffusion import DiffusionTraining, save_pipeline
from drift.pretrain.fitting import fit
from drift.pretrain.pictures import SOURCES, Cutout, load_pictures
from drift.pretrain.scenes import SceneDataset, vocabulary_captions
from drift.pretrain.text import build_tokenizer

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Runs both trainings, each going on from its newest checkpoint, and writes the model."""
    options = _parser().parse_args(arguments)
    if options.processes > 1:  # forked later, which a pool of threads does not survive
        torch.set_num_threads(1)
    try:
        pictures = load_pictures(options.pictures)
        L.seed_everything(options.seed, verbose=False)
        vae = build_autoencoder()
        set_principal_encoder(vae, _some_views(pictures, options.seed + 1))
        diffusion = _train_diffusion(vae, pictures, options)
        _train_decoder(vae, pictures, options)
    except DriftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    save_pipeline(diffusion, options.output / "model")
    print(f"wrote {options.output / 'model'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m drift.pretrain",
        description="Train the embedded latent diffusion model. Killed at any moment, the same command goes on.",
        epilog="The pictures are in scikit-image and in the Debian packages " + ", ".join(SOURCES) + ".",
    )
    parser.add_argument(
        "--pictures", type=Path, default=Path("/"), help="where the packages are installed or unpacked"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of checkpoints, logs and the model"
    )
    parser.add_argument(
        "--diffusion-steps", type=int, default=2600, help="steps of 4 scenes, each seen twice, at 224 x 224"
    )
    parser.add_argument(
        "--decoder-steps", type=int, default=1000, help="steps of 6 scenes, each seen twice, at 128 x 128"
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="processes that share every batch; 2 is faster on 2 cores"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _some_views(pictures: tuple[list[Cutout], list[np.ndarray]], seed: int) -> Tensor:
    """Both views of 64 scenes, `(128, 3, 224, 224)`: what the encoder is computed from."""
    return SceneDataset(*pictures, side=224, length=1, batch_size=64, seed=seed)[0].views.flatten(0, 1)


def _train_diffusion(
    vae: AutoencoderKL, pictures: tuple[list[Cutout], list[np.ndarray]], options: argparse.Namespace
) -> DiffusionTraining:
    module = DiffusionTraining(
        vae,
        build_tokenizer(vocabulary_captions(pictures[0])),
        names=sorted({cutout.name for cutout in pictures[0]}),
        max_steps=options.diffusion_steps,
    )
    fit(
        module,
        pictures,
        folder=options.output / "diffusion",
        max_steps=options.diffusion_steps,
        side=224,
        batch_size=4,
        seed=options.seed + 2,
        save_every=200,
        processes=options.processes,
    )
    return module


def _train_decoder(
    vae: AutoencoderKL, pictures: tuple[list[Cutout], list[np.ndarray]], options: argparse.Namespace
) -> None:
    """Trains the decoder of `vae` in place; the UNet needs none, so it is trained last."""
    fit(
        AutoencoderTraining(vae, max_steps=options.decoder_steps),
        pictures,
        folder=options.output / "decoder",
        max_steps=options.decoder_steps,
        side=128,
        batch_size=6,
        seed=options.seed,
        processes=options.processes,
    )


if __name__ == "__main__":
    sys.exit(main())
