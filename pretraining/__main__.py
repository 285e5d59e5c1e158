"""Training of the embedded latent diffusion model: `python -m pretraining --pictures ROOT --output FOLDER`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from drift.backbones.feature_autoencoder import FeatureAutoencoder
from drift.errors import DriftError
from pretraining.alignment import Teacher
from pretraining.autoencoder import AutoencoderTraining, load_imagenet, set_principal_projection
from pretraining.diffusion import DiffusionTraining, save_pipeline
from pretraining.fitting import fit
from pretraining.pictures import PACKAGES, Cutout, load_pictures
from pretraining.scenes import SceneDataset, vocabulary_captions
from pretraining.text import build_tokenizer

__all__ = ["main"]

Pictures = tuple[list[Cutout], list[np.ndarray]]


def main(arguments: list[str] | None = None) -> int:
    """Trains UNet and decoder, each resumed from its newest checkpoint, and writes the model."""
    options = _parser().parse_args(arguments)
    if options.processes > 1:  # forked later, which a pool of threads does not survive
        torch.set_num_threads(1)
    try:
        pictures = load_pictures(options.pictures)
        L.seed_everything(options.seed, verbose=False)
        module = _model(pictures, options)
        _train_diffusion(module, pictures, options)
        _train_decoder(module.vae, pictures, options)
    except DriftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    save_pipeline(module, options.output / "model")
    print(f"wrote {options.output / 'model'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pretraining",
        description="Train the embedded latent diffusion model. Killed at any moment, the same command goes on.",
        epilog="The pictures are in scikit-image and in the Debian packages " + ", ".join(PACKAGES) + ".",
    )
    parser.add_argument(
        "--pictures", type=Path, default=Path("/"), help="where the packages are installed or unpacked"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of checkpoints, logs and the model"
    )
    parser.add_argument(
        "--diffusion-steps", type=int, default=8000, help="steps of 4 scenes with two views each"
    )
    parser.add_argument("--side", type=int, default=224, help="side in pixels of the views in those steps")
    parser.add_argument(
        "--decoder-steps", type=int, default=1000, help="steps of 6 scenes, each seen twice, at 128 x 128"
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="processes that share every batch; 2 is faster on 2 cores"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _some_views(pictures: Pictures, seed: int) -> Tensor:
    """Both views of 64 scenes, `(128, 3, 224, 224)`: what the encoder is computed from."""
    return SceneDataset(*pictures, side=224, length=1, batch_size=64, seed=seed)[0].views.flatten(0, 1)


def _model(pictures: Pictures, options: argparse.Namespace) -> DiffusionTraining:
    """Latents are features of a pretrained network; one layer is aligned to a stronger teacher."""
    views = _some_views(pictures, options.seed + 1)
    vae, teacher = FeatureAutoencoder(), Teacher()
    load_imagenet(vae.encoder)
    set_principal_projection(vae, views)
    teacher.calibrate(views[::2])
    module = DiffusionTraining(
        vae,
        teacher,
        _tokenizer(pictures, options.output / "tokenizer"),
        names=_names(pictures),
        max_steps=options.diffusion_steps,
    )
    module.start_from(views[1:64:2])
    return module


def _tokenizer(pictures: Pictures, folder: Path) -> CLIPTokenizer:
    """The tokenizer of the captions. It is kept in `folder`: a resumed training may see other pictures."""
    if not folder.exists():
        build_tokenizer(vocabulary_captions(pictures[0])).save_pretrained(folder)
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer


def _names(pictures: Pictures) -> list[str]:
    return sorted({cutout.name for cutout in pictures[0]})


def _train_diffusion(module: DiffusionTraining, pictures: Pictures, options: argparse.Namespace) -> None:
    fit(
        module,
        pictures,
        folder=options.output / "diffusion",
        max_steps=options.diffusion_steps,
        side=options.side,
        batch_size=4,
        seed=options.seed + 2,
        save_every=200,
        processes=options.processes,
    )


def _train_decoder(vae: Any, pictures: Pictures, options: argparse.Namespace) -> None:
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
