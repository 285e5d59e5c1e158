"""Tokenizer and text encoder of the embedded model: small versions of CLIP's."""

from __future__ import annotations

import json
import string
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

__all__ = ["build_text_encoder", "build_tokenizer", "token_places"]

_START, _END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(captions: Iterable[str], *, vocabulary: int = 1200, length: int = 77) -> CLIPTokenizer:
    """CLIP tokenizer with byte-pair merges learned from `captions`."""
    trained = Tokenizer(models.BPE(unk_token=_END, end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_START, _END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    letters = " ".join(string.ascii_lowercase + string.digits + string.punctuation)
    trained.train_from_iterator([*captions, letters], trainer)  # the letters: any word can be spelled
    bpe = json.loads(trained.to_str())["model"]
    merges: Any = [tuple(merge) for merge in bpe["merges"]]  # typed as text, taken as pairs
    return CLIPTokenizer(vocab=bpe["vocab"], merges=merges, model_max_length=length)


def token_places(tokenizer: CLIPTokenizer, caption: str, name: str) -> list[int]:
    """Token positions of the first occurrence of a name in a caption; empty if there is none or it is truncated."""
    whole = tokenizer(caption, truncation=True).input_ids
    part = tokenizer(name, add_special_tokens=False).input_ids
    for start in range(len(whole) - len(part) + 1):
        if whole[start : start + len(part)] == part:
            return list(range(start, start + len(part)))
    return []


def build_text_encoder(
    tokenizer: CLIPTokenizer, *, width: int = 128, layers: int = 2, heads: int = 4
) -> CLIPTextModel:
    """CLIP text model with random weights; maps token ids `(batch, 77)` to `(batch, 77, width)`."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=tokenizer.model_max_length,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
