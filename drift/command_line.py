"""What the entry points share: building classes from the configuration, and errors in one line."""

from __future__ import annotations

import ctypes
import difflib
import logging
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import lightning as L
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from drift.errors import DriftError, InputError, OptionError
from drift.options import choice, whole_number
from drift.processes import claim_gpu, workers
from drift.reporting.progress import ProgressBars
from drift.reporting.summary import ERROR_FILE, SweepSummary

__all__ = ["build", "keep_freed_memory", "options_of", "prepared", "run"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


@contextmanager
def options_of(group: str) -> Iterator[None]:
    """Within it, an option that is not allowed is named with its configuration group."""
    try:
        yield
    except OptionError as error:
        raise DriftError(f"{group}.{error}") from None


def build(config: DictConfig, key: str, **arguments: Any) -> Any:
    """Instantiates the `_target_` of the group `key`.

    Raises:
        DriftError: an option of the group is not allowed; the message names it with its group.
    """
    with options_of(key):
        try:
            return instantiate(config[key], **arguments)
        except InstantiationException as error:
            cause = error.__cause__
            if isinstance(cause, DriftError):
                raise cause from None
            values = {str(name): value for name, value in config[key].items()}
            given = ", ".join(f"{key}.{name}={value}" for name, value in values.items() if name[0] != "_")
            raise DriftError(f"{given}: {_first_line(cause or error)}") from None


def _each_would_make_its_own_folder() -> bool:
    """Whether torchrun or SLURM started several processes, and the folder is named after each one's time."""
    several = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1) > 1
    named = any(word.startswith(("output.dir=", "hydra.run.dir=")) for word in sys.argv)
    return several and "trainer=ddp" in sys.argv and not named


def prepare_output(config: DictConfig) -> Path:
    """Makes `output.dir` and saves the resolved configuration in it, as `config.yaml`.

    Raises:
        OptionError: the seed or a switch of `output` is not allowed, or the folder is not the same for all processes.
        InputError: the folder cannot be written.
    """
    whole_number("seed", config.seed, minimum=0, maximum=2**32 - 1)
    with options_of("output"):
        for name in {"attention", "progress", "report", "verbose", "json_logs"} & config.output.keys():
            choice(name, config.output[name], (True, False))
    if _each_would_make_its_own_folder():
        raise OptionError(
            "output.dir",
            config.output.dir,
            "a folder that is given: torchrun's and SLURM's processes share it",
        )
    folder = Path(config.output.dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, folder / "config.yaml", resolve=True)
    except OSError as error:
        raise InputError(f"output.dir={folder}: cannot be written ({error.strerror})") from None
    return folder


@dataclass(frozen=True)
class Prepared:
    """What every entry point makes of its configuration before it does its own work.

    Attributes:
        folder: `output.dir`, with the configuration in it.
        console, progress: where to print, and to show progress.
        data: the data module, whose files have been found.
        backbone: the model.
        make_tracker: gives a fresh tracker for each clip.
        tracker: one that tells what the options come to; it tracks nothing.
    """

    folder: Path
    console: Console
    progress: ProgressBars
    data: L.LightningDataModule
    backbone: Any
    make_tracker: Callable[..., Any]
    tracker: Any


def prepared(config: DictConfig) -> Prepared:
    """Prepares the output folder, seeds, and builds data, backbone and tracker.

    Raises:
        DriftError: an option is not allowed, or a file cannot be used; one line that names it.
    """
    folder = prepare_output(config)
    L.seed_everything(config.seed, workers=True, verbose=False)
    console = Console()
    data = build(config, "data")
    with options_of("data"):
        data.setup()
        if config.backbone.get("cache"):
            data.turn = _number_in_sweep()
    backbone, make_tracker = build(config, "backbone"), build(config, "propagation")
    with options_of("propagation"):
        tracker = make_tracker(backbone)
    progress = ProgressBars(console, enabled=_shows_bars(config) and console.is_terminal)
    return Prepared(folder, console, progress, data, backbone, make_tracker, tracker)


def _number_in_sweep() -> int:
    """Which run of a sweep this is, from 0; 0 where there is one run."""
    return int(HydraConfig.get().job.num) if _in_sweep() else 0


def _in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _shows_bars(config: DictConfig) -> bool:
    return config.output.progress and not config.output.get("json_logs", False)


def run(task: Callable[[DictConfig], Any], *, config_dir: Path, config_name: str) -> int:
    """Composes the configuration from the command line and runs `task` on it, once or, with -m, for each of a sweep.

    Errors that are the user's to mend become one line on standard error. In a sweep the other runs go on.

    Returns:
        The exit status: 0, or 2 after such an error, or 130 after an interrupt.
    """
    OmegaConf.register_new_resolver("workers", workers, replace=True)
    _prepare_process()
    sys.argv[1:] = [_with_choices_below(word, config_dir) for word in sys.argv[1:]]
    if config_name == "evaluate":
        sys.argv[1:] = [
            "output.verbose=true" if word in ("-v", "--verbose") else word for word in sys.argv[1:]
        ]
    status = SweepSummary.failed = 0

    @hydra.main(version_base="1.3", config_path=str(config_dir), config_name=config_name)
    def main(config: DictConfig) -> Any:
        nonlocal status
        _prepare_process()  # of a sweep, this may be another one
        hydra_config = HydraConfig.get()
        # In a sweep each run has a folder of its own; and all processes of a run must have the same.
        config.output.dir = hydra_config.runtime.output_dir
        told = Path(config.output.dir) / ERROR_FILE
        with suppress(OSError):
            told.unlink()
        try:
            if _in_sweep() and "joblib" in str(hydra_config.launcher.get("_target_")):
                claim_gpu(Path(hydra_config.sweep.dir))
            return task(config)
        except (DriftError, OmegaConfBaseException) as error:
            line = " ".join(str(error).splitlines())
        except OSError as error:
            where = error.filename or f"output.dir={config.output.dir}"
            line = f"{where}: {error.strerror or error}"
        except Exception as error:  # of a sweep, the other runs go on: a GPU's memory may do for them
            if not _in_sweep():
                raise
            traceback.print_exc()
            line = f"{type(error).__name__}: {_first_line(error)}"
        status = _fail(line)
        with suppress(OSError):
            told.write_text(f"{line}\n", encoding="utf-8")

    try:
        with _ended_by_sigterm():
            main()
        if SweepSummary.failed:  # in processes of their own
            status = 2
    except (HydraException, OmegaConfBaseException) as error:
        status = _fail(_explain(error, config_dir, config_name))
    except OSError as error:  # the output folder, which Hydra makes, or a launcher without its cluster
        if error.filename is None:
            raise
        status = _fail(f"output.dir={error.filename}: cannot be written ({error.strerror})")
    except (ValueError, RuntimeError) as error:
        if not any(word.startswith("hydra/launcher=") for word in sys.argv):
            raise
        status = _fail(f"hydra.launcher: {_first_line(error)}")  # runs tell their own errors
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning turns an interrupt into an exit of its own.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        print("interrupted; what was written is whole", file=sys.stderr)
        return 130
    return status


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Within it, SIGTERM ends the run as an interrupt does: Lightning's own handler would not end a prediction."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _prepare_process() -> None:
    """What every process of a run needs, those that a sweep's launcher starts included."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on instead of printing them
    for noisy in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", message="The ``compute`` method of metric DavisScore was called before")
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Lets glibc reuse large blocks instead of handing each back to the system, where it can be told.

    Every activation of a 480p frame is otherwise fresh pages, cleared by the kernel one by one: on two CPU
    cores that took half of the encoder's time.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # not glibc
        return
    mallopt(_MMAP_THRESHOLD, 2**30)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def _with_choices_below(word: str, config_dir: Path) -> str:
    """`experiment=glob(ablation/*)` as a list of choices: Hydra's own glob does not look into folders of a group."""
    found = re.fullmatch(r"(\w+)=glob\(([\w/*?-]+/[\w*?-]+)\)", word)
    if not found:
        return word
    group, pattern = found.groups()
    choices = sorted(
        path.relative_to(config_dir / group) for path in (config_dir / group).glob(f"{pattern}.yaml")
    )
    return f"{group}=" + ",".join(path.with_suffix("").as_posix() for path in choices) if choices else word


def _fail(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return 2


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _explain(error: Exception, config_dir: Path, config_name: str) -> str:
    """One line that names the key, the value and what is allowed."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _explain_choice(str(error.missing_cfg_file), error.options or (), config_dir)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read as key=value ({_first_line(error)})"
    if isinstance(error, ConfigCompositionException):
        unknown = re.search(r"Could not override '([^'@]+)", str(error))
        if unknown:
            return _explain_unknown(unknown.group(1), config_dir, config_name)
    return " ".join(line.strip() for line in str(error).splitlines()[:2])


def _explain_choice(chosen: str, options: Sequence[str], config_dir: Path) -> str:
    """Of a group's choice that there is not, as `data/coco` or `experiment/grid/head`: what there is."""
    group, _, name = chosen.partition("/")
    if group == "hydra":  # plugins bring choices of their own
        part, _, name = name.partition("/")
        hint = "takes pip install -e '.[sweep]'; " if part == "launcher" else ""
        return f"hydra/{part}={name}: {hint}allowed is {', '.join(options)}"
    paths = sorted((config_dir / group).rglob("*.yaml"))
    allowed = [path.relative_to(config_dir / group).with_suffix("").as_posix() for path in paths]
    return f"{group}={name}: allowed is {', '.join(allowed)}"


def _explain_unknown(key: str, config_dir: Path, config_name: str) -> str:
    GlobalHydra.instance().clear()
    groups = {path.name for path in config_dir.iterdir() if path.is_dir()}
    choices = [word for word in sys.argv[1:] if word.split("=")[0] in groups and "," not in word]
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        node: Any = compose(config_name, overrides=choices)
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents):
        if not isinstance(node, DictConfig) or parent not in node:
            return f"{key}: no such key; {'.'.join(parents[:depth]) or 'the configuration'} has {_keys(node)}"
        node = node._get_node(parent)
    keys = [str(k) for k in node] if isinstance(node, DictConfig) else []
    close = difflib.get_close_matches(last, keys, n=1)
    hint = f"did you mean {'.'.join([*parents, close[0]])}? " if close else ""
    return f"{key}: no such key; {hint}{'.'.join(parents) or 'the configuration'} has {_keys(node)}"


def _keys(node: Any) -> str:
    if not isinstance(node, DictConfig):
        return "no keys of its own"
    return ", ".join(str(key) for key in node if not str(key).startswith("_"))
