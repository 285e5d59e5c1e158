"""Sessions on a moving square that is tracked and segmented by colour, without a model."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from examples import COLOUR_OPTIONS, ColourBackbone, moving_square
from PIL import Image

from drift.adaptation import Adaptation
from drift.adaptation.adapter_files import AdapterFolder
from drift.demo.session import Session
from drift.demo.tracking import TrackingModels
from drift.frame_sources import open_frames
from drift.propagation.heads import PropagationOptions
from drift.propagation.tracker import Tracker

CLIP = moving_square(10)


class BrightSegmenter:
    """Bright pixels in the box, or in the whole frame."""

    def __init__(self) -> None:
        self.prompts: list = []

    def segment(self, frame, prompt):
        self.prompts.append(prompt)
        bright = frame[..., 0] > 200
        if prompt.box is not None:
            left, top, right, bottom = map(round, prompt.box)
            inside = torch.zeros_like(bright)
            inside[top:bottom, left:right] = True
            bright = bright & inside
        return bright


def models(**options) -> TrackingModels:
    return TrackingModels(
        backbone=ColourBackbone(layers=2),
        make_tracker=partial(Tracker, **{**COLOUR_OPTIONS, **options}),
        refiner=SimpleNamespace(proposer=BrightSegmenter(), feedback=False, refine=unrefined),
        adapters=lambda folder: AdapterFolder(Adaptation(), PropagationOptions(), folder),
        learns=False,
        lock=threading.Lock(),
    )


def unrefined(frame, labels):
    from drift.propagation.refiner import Refined

    return Refined(labels.upsampled(), ("refined",) * len(labels.object_ids))


def frames_folder(folder: Path, frames=CLIP.frames) -> Path:
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index:05d}.png")
    return folder


def new_session(folder: Path, *, frames=CLIP.frames, max_side=None, **options) -> Session:
    source = open_frames(frames_folder(folder / "frames", frames))
    return Session(
        source, "clip", folder / "session", models(**options), path="my clip.mp4", max_side=max_side
    )
