"""The output folder of a run: its paths, options and the progress it resumes from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from drift.clip import Clip
from drift.resuming import ProgressFolder, settings_that_count

__all__ = ["OutputFolder", "output_folder"]


@dataclass(frozen=True)
class OutputFolder:
    """Paths and output options of a run.

    Attributes:
        root: `output.dir`.
        formats: output formats per clip, from `FORMATS`.
        progress: progress files of the clips, for resuming.
        attention_shown: whether attention figures and maps are saved.
        attention_points: x and y of the queries in the attention figure; None for the default queries.
        sampled_frames: number of frames per clip whose overlay and errors are saved as images.
        pictured_clips: maximum number of clips with images (attention and sampled frames).
        pictured: names of those clips; None for all.
    """

    root: Path
    formats: Sequence[str]
    progress: ProgressFolder
    attention_shown: bool = True
    attention_points: Sequence[Sequence[float]] | None = None
    sampled_frames: int = 8
    pictured_clips: int = 20
    pictured: Collection[str] | None = None

    def of(self, sequences: Sequence[str]) -> OutputFolder:
        """Returns a copy in which `pictured_clips` evenly spaced sequences are pictured."""
        indices = np.linspace(0, len(sequences) - 1, min(self.pictured_clips, len(sequences)))
        return replace(self, pictured=frozenset(sequences[index] for index in indices.round().astype(int)))

    def pictures(self, clip: Clip) -> bool:
        """Whether images of a clip are saved."""
        return self.pictured is None or clip.name in self.pictured

    def samples(self, clip: Clip) -> Path:
        """Folder of a clip's sampled frames."""
        return self.root / "samples" / clip.name

    def masks(self, clip: Clip) -> Path:
        """Folder of a clip's masks."""
        return self.root / "masks" / clip.name

    def overlay(self, clip: Clip) -> Path | None:
        """Overlay video of a clip; None if `formats` does not include it."""
        return self.root / "overlays" / f"{clip.name}.mp4" if "overlay" in self.formats else None

    def attention(self, clip: Clip) -> Path:
        """Attention figure of a clip."""
        return self.root / "attention" / f"{clip.name}.png"

    def shown(self, clip: Clip) -> Path:
        """Image of a clip's box and click prompts and the masks predicted from them."""
        return self.root / "shown" / f"{clip.name}.png"

    def forget_pictures(self, clip: Clip) -> None:
        """Deletes the images of an earlier run for a clip that is tracked from the start."""
        attention = self.attention(clip)
        for path in (*self.samples(clip).glob("*.jpg"), attention, attention.with_suffix(".npz")):
            with suppress(OSError):
                path.unlink()

    def keypoints(self, clip: Clip) -> Path:
        """Keypoint table of a clip."""
        return self.root / "keypoints" / f"{clip.name}.csv"


def output_folder(settings: Mapping[str, Any]) -> OutputFolder:
    """The output folder of a resolved configuration; neither creates nor changes files.

    Raises:
        InputError: `output.resume` is set, but the folder comes from another configuration.
    """
    output = settings["output"]
    folder = Path(output["dir"])
    progress = ProgressFolder(folder, settings_that_count(settings), resume=output["resume"])
    progress.check()
    return OutputFolder(
        folder,
        tuple(output["formats"]),
        progress,
        attention_shown=output["attention"],
        attention_points=output["attention_points"],
        sampled_frames=output["sampled_frames"],
        pictured_clips=output["pictured_clips"],
    )
