"""The sample clip shipped with drift; it is rendered, so its masks are exact (see ATTRIBUTION.md beside it)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import drift
from datamodules.davis import Davis2017

__all__ = ["Sample"]


class Sample(Davis2017):
    """One clip with three objects, in the layout of DAVIS-2017.

    Args:
        root: folder of the clip; None for the folder in the package.
        sequences, max_side: see `ClipDataModule`.
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
