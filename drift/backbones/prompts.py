"""Embeddings of a text prompt by CLIP and T5 encoders of transformers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoTokenizer

from drift.checkpoint_files import load_part
from drift.errors import InputError

__all__ = ["clip_embeddings", "load_t5_tokenizer", "padded_to", "t5_dtype", "t5_embeddings"]


@torch.no_grad()
def clip_embeddings(prompt: str, tokenizer: Any, encoder: Any) -> Any:
    """The output of a CLIP text encoder, with all hidden states, for a prompt padded to its full length."""
    length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
    tokens = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return encoder.eval()(tokens.input_ids.to(encoder.device), output_hidden_states=True)


def load_t5_tokenizer(folder: Path) -> Any:
    """The tokenizer of a T5 encoder.

    Raises:
        InputError: it is damaged, or only in the format of sentencepiece, which is not installed.
    """
    if not (folder / "tokenizer.json").exists() and find_spec("sentencepiece") is None:
        raise InputError(
            f"{folder}: has no tokenizer.json and needs the package sentencepiece; pip install sentencepiece"
        )
    return load_part(folder, AutoTokenizer.from_pretrained)


@torch.no_grad()
def t5_embeddings(
    prompt: str, tokenizer: Any, encoder: Any, length: int, *, masked: bool = False
) -> tuple[Float[Tensor, "1 tokens dim"], Int[Tensor, "1 tokens"]]:
    """The last hidden state of a T5 encoder for a prompt padded to `length` tokens, and the mask of its own tokens.

    Args:
        prompt: the text.
        tokenizer, encoder: of transformers.
        length: number of tokens.
        masked: whether tokens do not attend to padding in the encoder, as the model was trained.
    """
    tokens = tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    ids, mask = tokens.input_ids.to(encoder.device), tokens.attention_mask.to(encoder.device)
    if encoder.device.type == "meta":  # where transformers cannot look at the mask
        return ids.new_zeros((1, length, encoder.config.d_model), dtype=encoder.dtype), mask
    return encoder.eval()(ids, attention_mask=mask if masked else None).last_hidden_state, mask


def padded_to(embeddings: Float[Tensor, "1 tokens dim"], width: int) -> Float[Tensor, "1 tokens width"]:
    """Embeddings with zeros behind them, for a model whose prompts are wider."""
    return torch.nn.functional.pad(embeddings, (0, width - embeddings.shape[-1]))


def t5_dtype(dtype: torch.dtype) -> torch.dtype:
    """The data type of a T5 encoder beside a model in `dtype`: not float16, which its activations overflow."""
    return torch.bfloat16 if dtype == torch.float16 else dtype
