"""Training of the embedded Segment Anything model.

`python -m pretraining.refinement --pictures ROOT --output FOLDER`
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import lightning as L
import torch

from drift.command_line import keep_freed_memory
from drift.errors import DriftError
from drift.refinement.tiny_sam import TinySam
from pretraining.encoded_scenes import SCENES, EncodedScenes, encode_scenes
from pretraining.fitting import fit
from pretraining.pictures import PACKAGES
from pretraining.segmenting import SegmentingTraining, save_half, start_from_imagenet

__all__ = ["main"]

_SIDE = 384  # pixels of the scenes' longer side


def main(arguments: list[str] | None = None) -> int:
    """Trains the model, resuming from the newest checkpoint, and writes its weights."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    torch.set_flush_denormal(True)  # losses of good masks contain many denormals, which are slow
    L.seed_everything(options.seed, verbose=False)
    sam, scenes = TinySam(), options.output / "scenes"
    try:
        start_from_imagenet(sam.image_encoder)
        encode_scenes(
            sam.image_encoder, options.pictures, scenes, count=options.batches, side=_SIDE, seed=options.seed
        )
        fit(
            SegmentingTraining(sam, max_steps=options.steps),
            (scenes, options.batches),
            dataset=EncodedScenes,
            folder=options.output / "sam",
            max_steps=options.steps,
            side=_SIDE,
            batch_size=SCENES,
            seed=options.seed,
            precision="32-true",
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
        "--steps", type=int, default=3400, help="steps of 4 scenes with 4 objects each, at 384 pixels"
    )
    parser.add_argument(
        "--batches", type=int, default=477, help="number of batches of 4 scenes that are drawn and encoded"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads in addition to that of the data loader"
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
