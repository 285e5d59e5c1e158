"""Fixtures that the tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerator import pretended_accelerator
from examples import write_checkpoint
from small_models import write_checkpoint_of

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # in the processes that tests start: threads would wait for other tests


@pytest.fixture(scope="session")
def davis_root() -> Path:
    """The ten real clips in DAVIS-2016's layout."""
    folder = os.environ.get("DRIFT_DATA")
    if not folder:
        pytest.skip("DRIFT_DATA is not set: it names the folder of the real clips")
    return Path(folder) / "davis2016"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random checkpoint in Stable Diffusion 2.1's layout; read-only."""
    return write_checkpoint(tmp_path_factory.mktemp("sd21-small"))


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Small random checkpoints of the other families by the choice of `backbone=`; read-only."""
    written: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in written:
            written[name] = write_checkpoint_of(name, tmp_path_factory.mktemp(name))
        return written[name]

    return folder


@pytest.fixture(params=["pretended", pytest.param("cuda", marks=pytest.mark.gpu)])
def accelerator(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """A device other than the CPU: pretended, see `pretended_accelerator`, and the first GPU where there is one."""
    if request.param == "pretended":
        with pretended_accelerator() as device:
            yield device
    elif torch.cuda.is_available():
        yield torch.device("cuda", 0)
    else:
        pytest.skip("no GPU: torch.cuda.is_available() is False")
