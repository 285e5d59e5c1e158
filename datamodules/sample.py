"""The clip that ships with drift: rendered, so its masks are exact; see its ATTRIBUTION.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import drift
from datamodules.davis import Davis2017

__all__ = ["Sample"]


class Sample(Davis2017):
    """One clip of three objects in DAVIS-2017's layout.

    Args:
        root: None for the folder in the package.
        sequences: names to take instead of all.
        max_side: see `ClipDataModule`.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        sequences: Sequence[str] | None = None,
        max_side: int | None = None,
    ) -> None:
        folder = root or Path(drift.__file__).parent / "assets" / "sample"
        super().__init__(folder, sequences=sequences, max_side=max_side)
