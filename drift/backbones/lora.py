"""LoRA weights, fused into the models that they were trained for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin as LoraLoader
from diffusers.utils import is_peft_available

from drift.checkpoint_files import quiet
from drift.errors import InputError

__all__ = ["fuse_lora"]


@torch.no_grad()
def fuse_lora(file: Path, unet: Any, text_encoder: Any) -> None:
    """Adds LoRA weights to those of a UNet and, where the file holds some for it, of its text encoder, in place.

    Args:
        file: `.safetensors`, as diffusers, peft or kohya-ss write it.
        unet: a diffusers `UNet2DConditionModel`.
        text_encoder: a transformers `CLIPTextModel`.

    Raises:
        InputError: the file is missing, is no LoRA or was trained for another model, or peft is not installed.
    """
    if not file.is_file() or file.suffix != ".safetensors":
        raise InputError(f"backbone.lora={file}: no such .safetensors file")
    if not is_peft_available():
        raise InputError(f"backbone.lora={file}: needs the package peft; pip install 'drift[lora]'")
    try:
        with quiet():
            _fuse(file, unet, text_encoder)
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"backbone.lora={file}: does not fit backbone.checkpoint ({reason})") from None


def _fuse(file: Path, unet: Any, text_encoder: Any) -> None:
    weights, alphas, metadata = LoraLoader.lora_state_dict(
        str(file), use_safetensors=True, local_files_only=True, return_lora_metadata=True
    )
    of_unet = [name for name in weights if name.startswith("unet.")]
    if not of_unet or not all("lora" in name for name in weights):
        raise InputError(f"backbone.lora={file}: holds no LoRA weights of a UNet")
    modules = dict(unet.named_modules())
    for name in of_unet:
        module = name.removeprefix("unet.").split(".lora")[0].replace(".processor", "")
        if module not in modules and "attn" not in module:  # oldest files name attention by its processor
            raise InputError(f"backbone.lora={file}: does not fit backbone.checkpoint, which has no {module}")
    LoraLoader.load_lora_into_unet(weights, alphas, unet, metadata=metadata)
    unet.fuse_lora()
    unet.unload_lora()
    if any(name.startswith("text_encoder.") for name in weights):
        LoraLoader.load_lora_into_text_encoder(weights, alphas, text_encoder, metadata=metadata)
        for module in list(text_encoder.modules()):
            if hasattr(module, "base_layer") and hasattr(module, "merge"):
                module.merge()
