"""Shared by the entry points: objects built from the configuration, and errors in one line."""

from __future__ import annotations

import ctypes
import difflib
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
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
from drift.interrupts import interruptible
from drift.options import choice, whole_number
from drift.processes import claim_gpu, workers
from drift.reporting.progress import ProgressBars
from drift.reporting.summary import ERROR_FILE, SweepSummary

if TYPE_CHECKING:
    import torch

    from drift.adaptation import Adaptation
    from drift.backbones import Backbone
    from drift.propagation import PropagationOptions, Tracker

__all__ = ["Models", "Run", "build", "keep_freed_memory", "load_models", "options_of", "run", "start_run"]

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


def _folders_would_differ() -> bool:
    """Whether torchrun or SLURM started several processes without a common output folder."""
    several = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1) > 1
    named = any(word.startswith(("output.dir=", "hydra.run.dir=")) for word in sys.argv)
    return several and "trainer=ddp" in sys.argv and not named


def prepare_output(config: DictConfig) -> Path:
    """Creates `output.dir` and saves the resolved configuration in it as `config.yaml`.

    Raises:
        OptionError: the seed or a switch of `output` is not allowed, or the folder is not the same for all processes.
        InputError: the folder cannot be written.
    """
    whole_number("seed", config.seed, minimum=0, maximum=2**32 - 1)
    with options_of("output"):
        for name in {"attention", "progress", "report", "verbose", "json_logs"} & config.output.keys():
            choice(name, config.output[name], (True, False))
    if _folders_would_differ():
        raise OptionError(
            "output.dir",
            config.output.dir,
            "a given folder: the processes of torchrun and SLURM share it",
        )
    folder = Path(config.output.dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, folder / "config.yaml", resolve=True)
    except OSError as error:
        raise InputError(f"output.dir={folder}: cannot be written ({error.strerror})") from None
    return folder


@dataclass(frozen=True)
class Run:
    """What every entry point makes of its configuration before it loads a model.

    Attributes:
        folder: `output.dir`, which holds the configuration.
        console: where to print.
        progress: progress bars.
        data: the data module, whose files have been found.
    """

    folder: Path
    console: Console
    progress: ProgressBars
    data: Any


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
    """Prepares the output folder, seeds all generators, and finds the data.

    Raises:
        DriftError: an option is not allowed, or a file cannot be used; one line that names it.
    """
    import lightning as L

    _quieten_lightning()
    folder = prepare_output(config)
    L.seed_everything(config.seed, workers=True, verbose=False)
    console = Console()
    data = build(config, "data")
    with options_of("data"):
        data.setup()
        if config.backbone.get("cache"):
            data.turn = _number_in_sweep()
    progress = ProgressBars(console, enabled=_shows_bars(config) and console.is_terminal)
    return Run(folder, console, progress, data)


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
    return interruptible(lambda: _run(task, config_dir, config_name))


def _run(task: Callable[[DictConfig], Any], config_dir: Path, config_name: str) -> int:
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
        _prepare_process()  # a launcher of sweeps may start new processes
        hydra_config = HydraConfig.get()
        # The runs of a sweep have different folders; all processes of a run must have the same.
        config.output.dir = hydra_config.runtime.output_dir
        error_file = Path(config.output.dir) / ERROR_FILE
        with suppress(OSError):
            error_file.unlink()
        try:
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
            line = f"{type(error).__name__}: {_first_line(error)}"
        status = _fail(line)
        with suppress(OSError):
            error_file.write_text(f"{line}\n", encoding="utf-8")

    try:
        main()
        if SweepSummary.failed:  # runs in other processes
            status = 2
    except (HydraException, OmegaConfBaseException) as error:
        status = _fail(_explain(error, config_dir, config_name))
    except OSError as error:  # the output folder, which Hydra creates, or a launcher without its cluster
        if error.filename is None:
            raise
        status = _fail(f"output.dir={error.filename}: cannot be written ({error.strerror})")
    except (ValueError, RuntimeError) as error:
        if not any(word.startswith("hydra/launcher=") for word in sys.argv):
            raise
        status = _fail(f"hydra.launcher: {_first_line(error)}")  # runs report their own errors
    return status


def _prepare_process() -> None:
    """Settings of every process of a run, including those that a launcher of sweeps starts."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors instead of printing them
    keep_freed_memory()


def _quieten_lightning() -> None:
    """Hides Lightning's hints; call it after Lightning is imported, which sets the level of its loggers."""
    for noisy in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning.*")
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


def _with_choices_below(word: str, config_dir: Path) -> str:
    """Expands `experiment=glob(ablation/*)` to a list: Hydra's own glob does not search folders of a group."""
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
    """One line that names the key, the value and the allowed values."""
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
    """For a choice that does not exist, as `data/coco` or `experiment/grid/head`: the choices of its group."""
    group, _, name = chosen.partition("/")
    if (config_dir / chosen).parent.is_dir() and group not in (
        "hydra",
        "experiment",
    ):  # a group within a group
        group, _, name = chosen.rpartition("/")
    if group == "hydra":  # plugins add choices
        part, _, name = name.partition("/")
        hint = "needs pip install -e '.[sweep]'; " if part == "launcher" else ""
        return f"hydra/{part}={name}: {hint}allowed is {', '.join(options)}"
    paths = sorted((config_dir / group).glob("**/*.yaml" if group == "experiment" else "*.yaml"))
    allowed = [path.relative_to(config_dir / group).with_suffix("").as_posix() for path in paths]
    return f"{group}={name}: allowed is {', '.join(allowed)}"


def _explain_unknown(key: str, config_dir: Path, config_name: str) -> str:
    GlobalHydra.instance().clear()
    groups = {path.relative_to(config_dir).as_posix() for path in config_dir.rglob("*") if path.is_dir()}
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
