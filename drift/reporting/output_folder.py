"""Where a run writes what, and what it goes on from."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from drift.clip import Clip
from drift.errors import OptionError
from drift.formats.choosing import check_formats
from drift.options import choice, whole_number
from drift.resuming import ProgressFolder, settings_that_count

__all__ = ["OutputFolder", "output_folder"]

_MOST_POINTS = 8  # whose attention is shown: a figure of more rows cannot be read


@dataclass(frozen=True)
class OutputFolder:
    """Where a run writes.

    Attributes:
        root: `output.dir`.
        formats: what is written of each clip, from `FORMATS`.
        progress: how far earlier runs came.
        attention_shown: whether the attention of pictured clips is shown.
        attention_points: x and y of the queries whose attention is shown; None for those of objects and background.
        sampled_frames: of how many frames of a pictured clip overlay and errors are kept for report and dashboard.
        pictured_clips: of how many clips pictures are made.
        pictured: the names of those clips; None for all.
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
        """The same for a data set's clips, evenly chosen ones of which are pictured."""
        places = np.linspace(0, len(sequences) - 1, min(self.pictured_clips, len(sequences)))
        return replace(self, pictured=frozenset(sequences[place] for place in places.round().astype(int)))

    def pictures(self, clip: Clip) -> bool:
        """Whether pictures of a clip are made."""
        return self.pictured is None or clip.name in self.pictured

    def samples(self, clip: Clip) -> Path:
        """The folder of a clip's sampled frames."""
        return self.root / "samples" / clip.name

    def masks(self, clip: Clip) -> Path:
        """The folder of a clip's indexed PNGs."""
        return self.root / "masks" / clip.name

    def overlay(self, clip: Clip) -> Path | None:
        """The overlay video of a clip, where one is made."""
        return self.root / "overlays" / f"{clip.name}.mp4" if "overlay" in self.formats else None

    def attention(self, clip: Clip) -> Path:
        """The attention figure of a clip."""
        return self.root / "attention" / f"{clip.name}.png"

    def shown(self, clip: Clip) -> Path:
        """The picture of what was made of a clip's boxes and clicks."""
        return self.root / "shown" / f"{clip.name}.png"

    def forget_pictures(self, clip: Clip) -> None:
        """Removes what an earlier run left to be looked at of a clip that is begun anew."""
        attention = self.attention(clip)
        for path in (*self.samples(clip).glob("*.jpg"), attention, attention.with_suffix(".npz")):
            with suppress(OSError):
                path.unlink()

    def keypoints(self, clip: Clip) -> Path:
        """The table of a clip's keypoints."""
        return self.root / "keypoints" / f"{clip.name}.csv"


def output_folder(settings: Mapping[str, Any]) -> OutputFolder:
    """The folder of a resolved configuration, nothing of which is touched yet.

    Raises:
        OptionError: an option of `output` is not allowed.
        InputError: what is there is to be gone on from, but comes from another configuration.
    """
    output = settings["output"]
    check_formats(output["formats"])
    choice("resume", output["resume"], (True, False))
    if output["resume"] and "masks" not in output["formats"]:
        raise OptionError("formats", output["formats"], "with output.resume=true a list that has masks in it")
    whole_number("sampled_frames", output["sampled_frames"], minimum=0)
    whole_number("pictured_clips", output["pictured_clips"], minimum=0)
    _check_points(output["attention_points"])
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


def _check_points(points: object) -> None:
    allowed = f"null, or a list of at most {_MOST_POINTS} pixels [[x,y],...]"
    if points is None:
        return
    if not isinstance(points, list) or not 0 < len(points) <= _MOST_POINTS:
        raise OptionError("attention_points", points, allowed)
    for point in points:
        if not isinstance(point, list) or len(point) != 2 or not all(map(_is_finite, point)):
            raise OptionError("attention_points", points, allowed)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
