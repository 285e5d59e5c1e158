"""Shared by the entry points: objects built from the configuration, and errors in one line."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from drift.configuration.messages import blamed, explain, first_line
from drift.configuration.words import prepared_words
from drift.errors import DriftError, InputError, OptionError
from drift.interrupts import interruptible
from drift.processes import claim_gpu, end_with_parent, fitting_devices, held, workers
from drift.reporting.summary import ERROR_FILE, SweepSummary

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from drift.adaptation import Adaptation
    from drift.backbones import Backbone
    from drift.propagation import PropagationOptions, Tracker
    from drift.reporting.progress import ProgressBars

__all__ = [
    "Models",
    "Run",
    "build",
    "claimed_folder",
    "keep_freed_memory",
    "load_models",
    "options_of",
    "run",
    "start_run",
]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


@contextmanager
def options_of(group: str) -> Iterator[None]:
    """Within it, errors about an option name its configuration group."""
    try:
        yield
    except OptionError as error:
        raise DriftError(f"{group}.{error}") from None


def build(config: DictConfig, key: str, **arguments: Any) -> Any:
    """Instantiates the `_target_` of the group `key`.

    Raises:
        DriftError: an option of the group is not allowed; the message names it with its group.
    """
    if config.get(key) is None:
        raise DriftError(f"{key}: has no choice; give one, as {key}=NAME")
    with options_of(key):
        try:
            return instantiate(config[key], **arguments)
        except InstantiationException as error:
            cause = error.__cause__
            if isinstance(cause, DriftError):
                raise cause from None
            message = first_line(cause or error)
            raise DriftError(f"{blamed(key, config[key], message)}: {message}") from None


def _folders_would_differ() -> bool:
    """Whether torchrun or SLURM started several processes without a common output folder."""
    several = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1) > 1
    named = any(word.startswith(("output.dir=", "hydra.run.dir=")) for word in sys.argv)
    return several and "trainer=ddp" in sys.argv and not named


@contextmanager
def claimed_folder(config: DictConfig, *, is_global_zero: bool) -> Iterator[None]:
    """Within it, the run may write into `output.dir`: it has the folder for itself, with its `config.yaml`.

    Enter it once everything that can be refused has been checked, so that the folder of a finished run stays as it is
    where a command fails.

    Args:
        config: the configuration.
        is_global_zero: whether this is the process of rank 0, the only one that claims the folder.

    Raises:
        InputError: another run writes into the folder, or it cannot be written.
    """
    folder = Path(config.output.dir)
    if not is_global_zero:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "config.yaml").open("a", encoding="utf-8")
    except OSError as error:
        raise InputError(f"output.dir={folder}: cannot be written ({error.strerror})") from None
    with file:
        if not held(file):
            raise InputError(
                f"output.dir={folder}: another run writes into it; wait for it, or give another folder"
            )
        file.truncate(0)
        file.write(OmegaConf.to_yaml(config, resolve=True))
        file.flush()
        (folder / ERROR_FILE).unlink(missing_ok=True)
        yield


@dataclass(frozen=True)
class Run:
    """What every entry point makes of its configuration before it loads a model.

    Attributes:
        folder: `output.dir`; see `claimed_folder`.
        console: where to print.
        progress: progress bars.
        data: the data module, whose files have been found.
        devices: `trainer.devices`, or fewer where there are fewer clips or cores.
    """

    folder: Path
    console: Console
    progress: ProgressBars
    data: Any
    devices: Any


@dataclass(frozen=True)
class Models:
    """The models of a run.

    Attributes:
        backbone: the backbone.
        refiner: the refiner, or None.
        make_tracker: returns a new tracker for a clip.
        propagation: how trackers propagate labels.
        adaptation: what is learned for each clip.
    """

    backbone: Backbone
    refiner: Any
    make_tracker: Callable[..., Tracker]
    propagation: PropagationOptions
    adaptation: Adaptation


def start_run(config: DictConfig) -> Run:
    """Seeds all generators and finds the data.

    Raises:
        DriftError: an option is not allowed, or a file cannot be used; one line that names it.
    """
    import lightning as L
    from rich.console import Console

    from drift.reporting.progress import ProgressBars

    if not gc.get_freeze_count():  # the first run of the process; nothing of a run exists yet
        gc.freeze()  # what was imported, so that later collections do not visit it
    _quieten_lightning()
    if _folders_would_differ():
        allowed = "a given folder: the processes of torchrun and SLURM share it"
        raise OptionError("output.dir", config.output.dir, allowed)
    L.seed_everything(config.seed, workers=True, verbose=False)
    console = Console()
    data = build(config, "data")
    with options_of("data"):
        data.setup()
        if config.backbone.get("cache"):
            data.turn = _number_in_sweep()
    progress = ProgressBars(console, enabled=_shows_bars(config) and console.is_terminal)
    devices = fitting_devices(config.trainer.get("devices", 1), clips=len(data.sequences))
    return Run(Path(config.output.dir), console, progress, data, devices)


def load_models(config: DictConfig, device: torch.device) -> Models:
    """Loads backbone and refiner on `device`, and checks the options of propagation and adaptation against them.

    Raises:
        DriftError: an option is not allowed, or a checkpoint cannot be used; one line that names it.
    """
    backbone: Backbone = build(config, "backbone", device=device)
    make_tracker = build(config, "propagation")
    with options_of("propagation"):
        propagation = make_tracker(backbone).options
    adaptation: Adaptation = build(config, "adaptation")
    with options_of("adaptation"):
        adaptation.check(backbone)
    refiner = build(config, "refinement", device=device)
    gc.enable()  # see `_prepare_process`
    return Models(backbone, refiner, make_tracker, propagation, adaptation)


def _number_in_sweep() -> int:
    """Number of the run in a sweep, from 0."""
    return int(HydraConfig.get().job.num) if _in_sweep() else 0


def _in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _shows_bars(config: DictConfig) -> bool:
    return config.output.progress and not config.output.get("json_logs", False)


def run(task: Callable[[DictConfig], Any], *, config_dir: Path, config_name: str) -> int:
    """Composes the configuration from the command line and runs `task` on it, with -m for each run of a sweep.

    Errors that the user can correct become one line on standard error. In a sweep the other runs continue.

    Returns:
        The exit status: 0, or 2 after such an error, or 130 after an interrupt.
    """
    try:
        return interruptible(lambda: _run(task, config_dir, config_name))
    finally:
        gc.enable()


def _run(task: Callable[[DictConfig], Any], config_dir: Path, config_name: str) -> int:
    try:
        sys.argv[1:] = prepared_words(sys.argv[1:], config_dir)
    except DriftError as error:
        return _fail(str(error))
    start = time.time()
    end_with_parent()
    OmegaConf.register_new_resolver("workers", workers, replace=True)
    _prepare_process()
    status = SweepSummary.failed = 0

    @hydra.main(version_base="1.3", config_path=str(config_dir), config_name=config_name)
    def main(config: DictConfig) -> Any:
        from drift.configuration.checking import check  # pydantic: --help does without

        nonlocal status
        _prepare_process()  # a launcher of sweeps may start new processes
        hydra_config = HydraConfig.get()
        folder = Path(hydra_config.runtime.output_dir)
        if _in_sweep():
            with suppress(OSError):
                (folder / ERROR_FILE).unlink()
        try:
            settings: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
            check(settings)
            # The runs of a sweep have different folders; all processes of a run must have the same.
            config.output.dir = str(folder)
            if _in_sweep() and "joblib" in str(hydra_config.launcher.get("_target_")):
                claim_gpu(Path(hydra_config.sweep.dir))
            return task(config)
        except (DriftError, OmegaConfBaseException) as error:
            line = " ".join(str(error).splitlines())
        except OSError as error:
            where = error.filename or f"output.dir={config.output.dir}"
            line = f"{where}: {error.strerror or error}"
        except Exception as error:  # the other runs of a sweep continue: they may need less GPU memory
            if not _in_sweep():
                raise
            traceback.print_exc()
            line = f"{type(error).__name__}: {first_line(error)}"
        finally:
            gc.enable()
        status = _fail(line)
        with suppress(OSError):
            if _in_sweep():
                (folder / ERROR_FILE).write_text(f"{line}\n", encoding="utf-8")
            elif folder.stat().st_ctime >= start:
                folder.rmdir()  # that Hydra made, if it is empty

    try:
        main()
        if SweepSummary.failed:  # runs in other processes
            status = 2
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        status = _fail(explain(error, config_dir, config_name))
    except OSError as error:  # the output folder, which Hydra creates, or a launcher without its cluster
        if error.filename is None:
            raise
        status = _fail(f"output.dir={error.filename}: cannot be written ({error.strerror})")
    except (ValueError, RuntimeError) as error:
        if not any(word.startswith("hydra/launcher=") for word in sys.argv):
            raise
        status = _fail(f"hydra.launcher: {first_line(error)}")  # runs report their own errors
    return status


def _prepare_process() -> None:
    """Settings of every process of a run, including those that a launcher of sweeps starts."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors instead of printing them
    gc.disable()  # until the models are loaded: imports create many objects, which all stay
    # joblib takes memory that `keep_freed_memory` keeps for a leak, and starts a new worker.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given")
    keep_freed_memory()


def _quieten_lightning() -> None:
    """Hides Lightning's hints; call it after Lightning is imported, which sets the level of its loggers."""
    for noisy in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", module="PIL")  # about damaged files, which are refused
    warnings.filterwarnings("ignore", message="The ``compute`` method of metric DavisScore was called before")


def keep_freed_memory() -> None:
    """Lets glibc reuse large blocks instead of returning them to the system.

    Otherwise every activation of a 480p frame takes fresh pages, which the kernel clears one by one: half of the
    encoder's time on two CPU cores.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # not glibc
        return
    mallopt(_MMAP_THRESHOLD, 2**30)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def _fail(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return 2
