"""Where a run writes what, and what it goes on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drift.clip import Clip
from drift.errors import OptionError
from drift.formats.choosing import check_formats
from drift.options import choice
from drift.resuming import ProgressFolder, settings_that_count

__all__ = ["OutputFolder", "output_folder"]


@dataclass(frozen=True)
class OutputFolder:
    """Where a run writes.

    Attributes:
        root: `output.dir`.
        formats: what is written of each clip, from `FORMATS`.
        progress: how far earlier runs came.
    """

    root: Path
    formats: Sequence[str]
    progress: ProgressFolder

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
    folder = Path(output["dir"])
    progress = ProgressFolder(folder, settings_that_count(settings), resume=output["resume"])
    progress.check()
    return OutputFolder(folder, tuple(output["formats"]), progress)
