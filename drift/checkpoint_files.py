"""Checkpoint files: finding them locally or on the Hugging Face Hub, and loading models from them strictly."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from drift.errors import InputError

__all__ = [
    "PARTS",
    "check_memory",
    "configuration_files",
    "embedded_checkpoints",
    "find_checkpoint",
    "free_memory",
    "load_part",
    "load_weights",
    "needed_files",
    "quiet",
    "read_json",
    "weights_fingerprint",
    "weights_size",
    "weights_variant",
]

PARTS = (
    *("vae", "unet", "transformer", "scheduler"),
    *("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3"),
)
"""Folders of a checkpoint in diffusers' layout from which a backbone is made, as far as the checkpoint has them."""

_ASSETS = Path(__file__).parent / "assets"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WEIGHTS = re.compile(r"(?:diffusion_pytorch_)?model(\.fp16)?(?:-\d+-of-\d+)?\.safetensors")
_TEXT_FILES = (".json", ".txt", ".model")  # .model: of sentencepiece, T5's tokenizer
_LONGEST_HEADER = 10**8  # bytes, as in safetensors
_HUB_TIMEOUT = 10.0  # seconds
_IGNORABLE = "position_ids"  # a buffer that older text encoders stored as a weight

_Loaded = TypeVar("_Loaded")


def find_checkpoint(
    checkpoint: str,
    needed: Callable[[list[str]], list[str]],
    *,
    revision: str | None = None,
    option: str = "checkpoint",
    group: str = "backbone",
) -> Path:
    """The local folder or file of a checkpoint; downloads a Hub id.

    Where the Hub cannot be reached or does not provide the repository, a cached snapshot of it is used.

    Args:
        checkpoint: a local folder or file, `embedded:NAME`, or a Hub id (owner/name).
        needed: the files to download, given the names of all files of a repository; see `needed_files`.
        revision: branch, tag or commit of a Hub id; None for `main`.
        option: the option that names the checkpoint, for error messages.
        group: the configuration group of that option.

    Raises:
        InputError: there is no such file or folder, and no such repository on the Hub or in its cache.
    """
    if checkpoint.startswith("embedded:"):
        path = _ASSETS / checkpoint.removeprefix("embedded:")
    else:
        path = Path(checkpoint).expanduser()
        if not path.exists() and _HUB_ID.fullmatch(checkpoint):
            return _from_hub(checkpoint, needed, revision, f"{group}.{option}")
    if not path.exists():
        raise InputError(
            f"{group}.{option}={checkpoint}: no such file or folder; give a local folder, a single .safetensors "
            f"file, a Hub id (owner/name), or {' or '.join(embedded_checkpoints())}"
        )
    return path


def needed_files(names: Iterable[str], dtype: torch.dtype) -> list[str]:
    """The files of a Hub repository from which a backbone is made: configurations, and one variant of the weights.

    Args:
        names: all files of the repository.
        dtype: data type that the weights are loaded in; see `weights_variant`.

    Raises:
        InputError: the repository holds weights of a part only as `.bin`.
    """
    names = list(names)
    wanted = [name for name in names if name == "model_index.json"]
    for folder in PARTS if wanted else (".",):
        files = [name for name in names if str(PurePosixPath(name).parent) == folder]
        variant = weights_variant([PurePosixPath(name).name for name in files], dtype, folder)
        for name in files:
            match = _WEIGHTS.fullmatch(PurePosixPath(name).name)
            if name.endswith(_TEXT_FILES) or (match and bool(match[1]) == (variant is not None)):
                wanted.append(name)
    return list(dict.fromkeys(wanted))


def configuration_files(names: Iterable[str]) -> list[str]:
    """The files of a Hub repository that describe its models and their vocabulary, without weights."""
    folders = (*PARTS, ".")
    return [
        name for name in names if name.endswith(_TEXT_FILES) and str(PurePosixPath(name).parent) in folders
    ]


def weights_variant(names: Iterable[str], dtype: torch.dtype, folder: str | Path) -> str | None:
    """The variant of the weights to load, as diffusers and transformers name it: "fp16", or None for the full weights.

    Half-precision weights are taken where there are no others, or where they are loaded in float16.

    Args:
        names: files of the folder.
        dtype: data type that the weights are loaded in.
        folder: the folder, for error messages.

    Raises:
        InputError: there are only `.bin` weights.

    Example:
        >>> files = ["model.safetensors", "model.fp16.safetensors"]
        >>> weights_variant(files, torch.float32, "unet"), weights_variant(files, torch.float16, "unet")
        (None, 'fp16')
        >>> weights_variant(files[1:], torch.float32, "unet")
        'fp16'
    """
    names = list(names)
    halves = {bool(match[1]) for name in names if (match := _WEIGHTS.fullmatch(name))}
    if not halves and any(name.endswith(".bin") for name in names):
        raise InputError(
            f"backbone.checkpoint: {folder} holds only .bin weights, which can run code when loaded; "
            "save them as .safetensors with save_pretrained of diffusers or transformers"
        )
    return "fp16" if True in halves and (False not in halves or dtype == torch.float16) else None


def read_json(file: Path) -> dict[str, Any]:
    """The content of a JSON file.

    Raises:
        InputError: it is missing or no JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read ({_one_line(error)})") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: not a JSON object")
    return content


def load_part(path: Path, load: Callable[[Path], _Loaded]) -> _Loaded:
    """`load(path)`, silenced.

    Raises:
        InputError: any error of the loading library, as one line that names `path`.
    """
    try:
        with quiet():
            return load(path)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: incomplete or corrupt checkpoint ({_one_line(error)})") from None


def load_weights(
    kind: type[nn.Module],
    folder: Path,
    dtype: torch.dtype,
    *,
    preferred: torch.dtype | None = None,
    unused: tuple[str, ...] = (),
    **options: Any,
) -> Any:
    """A diffusers or transformers model in `dtype`; within `torch.device("meta")` from its configuration alone.

    Args:
        kind: its class.
        folder: holds its configuration and weights.
        dtype: data type of the loaded weights.
        preferred: data type that chooses among variants of the weights, see `weights_variant`; None for `dtype`.
        unused: prefixes of weights that the model may do without, as those of a classifier on top.
        options: further arguments of `from_pretrained`.

    Raises:
        InputError: a weight is missing, unexpected or of another shape, there are only `.bin` weights, or the machine
            has too little free memory.
    """
    variant = weights_variant([file.name for file in folder.iterdir()], preferred or dtype, folder)
    if torch.get_default_device().type == "meta":
        return _without_weights(kind, folder).to(dtype)
    check_memory([folder], dtype)
    options |= {"use_safetensors": True, "output_loading_info": True, "variant": variant}
    options |= {"dtype": dtype} if issubclass(kind, PreTrainedModel) else {"torch_dtype": dtype}
    if not issubclass(kind, PreTrainedModel):
        options["low_cpu_mem_usage"] = False  # missing weights would stay without values
    model, info = kind.from_pretrained(folder, **options)  # type: ignore[attr-defined]
    for trouble in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        keys = [str(key) for key in info.get(trouble) or ()]
        keys = [
            key for key in keys if not key.endswith(_IGNORABLE) and not (unused and key.startswith(unused))
        ]
        if keys:
            raise InputError(
                f"{folder}: {len(keys)} {trouble.replace('_', ' ')} in the weights, first {keys[0]}"
            )
    return model


def _without_weights(kind: Any, folder: Path) -> Any:
    if issubclass(kind, PreTrainedModel):
        return kind(kind.config_class.from_pretrained(folder))
    return kind.from_config(kind.load_config(folder))


def weights_size(folder: Path, dtype: torch.dtype) -> int:
    """Bytes that the weights of a model's folder take in `dtype`, from the headers of its `.safetensors` files."""
    files = {file.name: file for file in folder.iterdir()}
    variant = weights_variant(files, dtype, folder)
    chosen = [
        name
        for name in files
        if (match := _WEIGHTS.fullmatch(name)) and bool(match[1]) == (variant is not None)
    ]
    return sum(_numbers(files[name]) for name in chosen) * dtype.itemsize


def _numbers(file: Path) -> int:
    """How many numbers a `.safetensors` file holds; 0 where its header is damaged, which loading reports."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length)) if length <= _LONGEST_HEADER else {}
        return sum(math.prod(map(int, header[name]["shape"])) for name in header if name != "__metadata__")
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return 0


def check_memory(folders: Sequence[Path], dtype: torch.dtype) -> None:
    """Raises InputError where the weights of the models in `folders` together take more memory than is free."""
    needed = sum(weights_size(folder, dtype) for folder in folders)
    free = free_memory()
    if free is not None and needed > free:
        names = " and ".join(folder.name for folder in folders)
        raise InputError(
            f"{folders[0].parent}: the weights of {names} take {needed / 1e9:.1f} GB in "
            f"{str(dtype).removeprefix('torch.')}, {free / 1e9:.1f} GB of memory are free; use "
            "backbone.precision=bfloat16, a smaller checkpoint or another machine"
        )


def free_memory() -> int | None:
    """Bytes of memory that new weights can take without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def weights_fingerprint(model: nn.Module) -> str:
    """A hash of the first numbers of every weight: distinguishes models without reading all of them."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(name.encode() + str(tuple(weight.shape)).encode())
        digest.update(weight.flatten()[:8].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences progress bars and warnings of the loading libraries: what matters is raised as an error."""
    before = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before[0])
        transformers_logging.set_verbosity(before[1])
        if bars:
            transformers_logging.enable_progress_bar()


def _from_hub(
    hub_id: str, needed: Callable[[list[str]], list[str]], revision: str | None, option: str
) -> Path:
    try:
        info = HfApi().model_info(hub_id, revision=revision, timeout=_HUB_TIMEOUT)
        files = needed([file.rfilename for file in info.siblings or ()])
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=files))
    except InputError:
        raise
    except Exception as error:  # the Hub's client raises a dozen kinds: offline, gated, gone
        # `snapshot_download(local_files_only=True)` refuses a snapshot that lacks files which are not needed here
        for name in ("model_index.json", "config.json"):
            cached = try_to_load_from_cache(hub_id, name, revision=revision)
            if isinstance(cached, str):
                return Path(cached).parent
        if isinstance(error, GatedRepoError):
            raise InputError(
                f"{option}={hub_id}: gated; accept its licence at https://huggingface.co/{hub_id} and set "
                f"HF_TOKEN to a token of your account, or pass a local folder: {option}=FOLDER"
            ) from None
        raise InputError(
            f"{option}={hub_id}: not a local folder, not in the Hub's cache, and the Hub cannot provide it "
            f"({type(error).__name__}); pass a local folder: {option}=FOLDER"
        ) from None


def embedded_checkpoints() -> list[str]:
    """The checkpoints that ship with drift, as "embedded:tiny"."""
    return sorted(f"embedded:{index.parent.name}" for index in _ASSETS.glob("*/model_index.json"))


def _one_line(error: Exception) -> str:
    """The message of an error as one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
