"""Training of the embedded Segment Anything model.

`python -m pretraining.refinement --pictures ROOT --output FOLDER`
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import lightning as L
import torch

from drift.errors import DriftError
from drift.refinement.architectures import build_tiny
from pretraining.fitting import fit
from pretraining.masked_scenes import MaskedSceneDataset
from pretraining.pictures import PACKAGES, load_pictures
from pretraining.segmenting import SegmentingTraining, save_half, start_from_imagenet

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Trains the model, resuming from the newest checkpoint, and writes its weights."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        pictures = load_pictures(options.pictures)
        L.seed_everything(options.seed, verbose=False)
        sam = build_tiny()
        start_from_imagenet(sam.image_encoder)
        fit(
            SegmentingTraining(sam, max_steps=options.steps),
            pictures,
            dataset=MaskedSceneDataset,
            folder=options.output / "sam",
            max_steps=options.steps,
            side=sam.image_encoder.img_size,
            batch_size=4,
            seed=options.seed,
            save_every=200,
        )
    except DriftError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    save_half(sam, options.output / "sam_tiny.safetensors")
    print(f"wrote {options.output / 'sam_tiny.safetensors'}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pretraining.refinement",
        description="Train the embedded Segment Anything model. Killed at any moment, the same command goes on.",
        epilog="The pictures are in scikit-image and in the Debian packages " + ", ".join(PACKAGES) + ".",
    )
    parser.add_argument(
        "--pictures", type=Path, default=Path("/"), help="where the packages are installed or unpacked"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of checkpoints, logs and weights")
    parser.add_argument(
        "--steps", type=int, default=2800, help="of 4 scenes with 4 prompts each, at 640 pixels"
    )
    parser.add_argument("--threads", type=int, default=1, help="beside the one that draws the scenes")
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
