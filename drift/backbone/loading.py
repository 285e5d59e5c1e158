"""Loading a latent diffusion checkpoint in diffusers' folder layout, from disk or from the Hub."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import snapshot_download
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from drift.backbone.latent_diffusion import LatentDiffusion
from drift.backbone.reading_cache import ReadingCache
from drift.errors import InputError, OptionError

__all__ = ["load_latent_diffusion"]

_PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
_PREDICTION_TYPES = ("epsilon", "v_prediction")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_EMBEDDED = Path(__file__).parents[1] / "assets"
_IGNORABLE = ("position_ids",)  # a buffer that older text encoders stored as a weight


def load_latent_diffusion(
    checkpoint: str,
    *,
    layers: Sequence[str],
    timestep: int,
    revision: str | None = None,
    prediction_type: str | None = None,
    noise: str = "gaussian",
    ensemble: int = 1,
    inversion_steps: int = 10,
    prompt: str = "",
    precision: str = "float32",
    cache: str | None = None,
    cache_gigabytes: float = 20.0,
) -> LatentDiffusion:
    """A frozen backbone from a Stable Diffusion 1.x or 2.x checkpoint, or an embedded one.

    Args:
        checkpoint: a local folder, `embedded:NAME` for a model that ships with drift, or a Hub id.
        revision: of the Hub id; None for its newest.
        prediction_type: overrides the checkpoint's own (`epsilon` or `v_prediction`); None trusts it.
        layers, timestep, noise, ensemble, inversion_steps, prompt, precision: see `LatentDiffusion`.
        cache, cache_gigabytes: a folder for what is read of frames, and the most that it takes; see
            `ReadingCache`. None for no cache.

    Raises:
        InputError: the checkpoint is missing, incomplete or corrupt, or the Hub is out of reach.
        OptionError: an option is out of range.
    """
    if cache is not None and (not isinstance(cache, str) or not cache):
        raise OptionError("cache", cache, "a folder, or null")
    folder = _find(checkpoint, revision)
    scheduler = _load(folder, "scheduler", _load_scheduler)
    if prediction_type is not None:
        if prediction_type not in _PREDICTION_TYPES:
            raise OptionError("prediction_type", prediction_type, ", ".join(_PREDICTION_TYPES) + ", or null")
        scheduler.register_to_config(prediction_type=prediction_type)
    elif (found := scheduler.config["prediction_type"]) not in _PREDICTION_TYPES:
        raise InputError(
            f"{folder / 'scheduler'}: prediction_type {found} is not supported; it must be "
            + " or ".join(_PREDICTION_TYPES)
        )
    return LatentDiffusion(
        vae=_load(folder, "vae", lambda part: _load_weights(AutoencoderKL, part)),
        unet=_load(folder, "unet", lambda part: _load_weights(UNet2DConditionModel, part)),
        text_encoder=_load(folder, "text_encoder", lambda part: _load_weights(CLIPTextModel, part)),
        tokenizer=_load(folder, "tokenizer", CLIPTokenizer.from_pretrained),
        scheduler=scheduler,
        layers=layers,
        timestep=timestep,
        noise=noise,
        ensemble=ensemble,
        inversion_steps=inversion_steps,
        prompt=prompt,
        source=checkpoint if revision is None else f"{checkpoint}@{revision}",
        precision=precision,
        cache=None if cache is None else ReadingCache(Path(cache), cache_gigabytes),
    )


def _find(checkpoint: str, revision: str | None) -> Path:
    """The local folder of a checkpoint; downloads a Hub id's."""
    if checkpoint.startswith("embedded:"):
        folder = _EMBEDDED / checkpoint.removeprefix("embedded:")
    else:
        folder = Path(checkpoint).expanduser()
        if not folder.exists() and _HUB_ID.fullmatch(checkpoint):
            folder = _download(checkpoint, revision)
    if not folder.is_dir():
        raise InputError(
            f"backbone.checkpoint={checkpoint}: no such folder; "
            "give the folder of a checkpoint in diffusers' layout, or a Hub id (owner/name)"
        )
    missing = [part for part in ("model_index.json", *_PARTS) if not (folder / part).exists()]
    if missing:
        raise InputError(f"{folder}: incomplete checkpoint, lacks {', '.join(missing)} of diffusers' layout")
    return folder


def _download(hub_id: str, revision: str | None) -> Path:
    patterns = ["model_index.json", *(f"{part}/*" for part in _PARTS)]
    unwanted = ["*.bin", "*.ckpt", "*.fp16.*", "*.non_ema.*", "*.msgpack", "*.onnx*"]
    try:
        found = snapshot_download(
            hub_id, revision=revision, allow_patterns=patterns, ignore_patterns=unwanted
        )
    except Exception as error:  # the Hub's client raises a dozen kinds, all meaning: not to be had
        raise InputError(
            f"backbone.checkpoint={hub_id}: no such folder here, and the Hub did not give it "
            f"({type(error).__name__}); pass a local folder: backbone.checkpoint=FOLDER"
        ) from None
    return Path(found)


def _load(folder: Path, part: str, load: Callable[[Path], Any]) -> Any:
    """One part of a checkpoint; whatever its library raises becomes one line that names the folder."""
    try:
        with _quiet():
            return load(folder / part)
    except InputError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{folder / part}: incomplete or corrupt checkpoint ({reason[:200]})") from None


def _load_scheduler(folder: Path) -> DDIMScheduler:
    """DDIM on the checkpoint's own noise schedule, whichever scheduler it was published with."""
    config = json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8"))
    return DDIMScheduler.from_config(config)


def _load_weights(kind: type, folder: Path) -> Any:
    """A model in float32; a weight that is missing, left over or of another shape is an error."""
    options: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True}
    if kind is CLIPTextModel:
        options["dtype"] = torch.float32
    else:
        options |= {"torch_dtype": torch.float32, "low_cpu_mem_usage": False}
    model, info = kind.from_pretrained(folder, **options)  # type: ignore[attr-defined]
    for trouble in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        keys = [str(key) for key in info.get(trouble) or () if not str(key).endswith(_IGNORABLE)]
        if keys:
            raise InputError(
                f"{folder}: {len(keys)} {trouble.replace('_', ' ')} in the weights, first {keys[0]}"
            )
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences progress bars and warnings of the loading libraries: errors are told by drift."""
    before = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before[0])
        transformers_logging.set_verbosity(before[1])
        if bars:
            transformers_logging.enable_progress_bar()
