"""Fixtures that the tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from examples import write_checkpoint

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def davis_root() -> Path:
    """The ten real clips in DAVIS-2016's layout."""
    folder = os.environ.get("DRIFT_DATA")
    if not folder:
        pytest.skip("DRIFT_DATA is not set: it names the folder of the real clips")
    return Path(folder) / "davis2016"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint in Stable Diffusion 2.1's layout; not to be changed."""
    return write_checkpoint(tmp_path_factory.mktemp("sd21-small"))
