"""Fixtures of the tests that run whole commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from examples import write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller version of the checkpoint in `tests/conftest.py`, because every run loads it; read-only."""
    return write_checkpoint(tmp_path_factory.mktemp("sd21-shallow"), layers_per_block=1)
