"""Seconds and memory of one pass of every model: `python -m benchmarks.model_cost --models tiny,dinov2,sd15`.

Each model has the configuration of its published checkpoint, text encoders included, and random weights in bfloat16. It
is saved to a temporary folder, loaded with the layers and options of its YAML, and computes the features of one frame
of 480 x 854 pixels with one draw of noise on one CPU thread. The figures are written to `model_costs.json`, which
`benchmarks.model_table` reads.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
import transformers

from benchmarks.model_table import COSTS, LICENCES, write_configurations
from benchmarks.quality import composed
from drift.checkpoint_files import free_memory, read_json
from drift.command_line import build
from drift.errors import InputError
from drift.peak_memory import peak_memory
from drift.propagation.labels import pad_to_stride

__all__ = ["main", "measured", "write_random_weights"]

_Result = TypeVar("_Result")

_SIZE = (480, 854)
_CLIP_L = {"num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_CLIP_H = {"num_hidden_layers": 23, "num_attention_heads": 16, "intermediate_size": 4096}
_CLIP_G = {"num_hidden_layers": 32, "num_attention_heads": 20, "intermediate_size": 5120}
_T5_XXL = {"num_layers": 24, "num_heads": 64, "d_kv": 64, "d_ff": 10240, "vocab_size": 32128}

TEXT_ENCODERS: Mapping[str, Mapping[str, Mapping[str, int]]] = {
    "sd15": {"text_encoder": {**_CLIP_L, "vocab_size": 49408}},
    "sd21": {"text_encoder": {**_CLIP_H, "vocab_size": 49408}},
    "pixart": {"text_encoder": _T5_XXL},
    "sd35": {
        "text_encoder": {**_CLIP_L, "vocab_size": 49408},
        "text_encoder_2": {**_CLIP_G, "vocab_size": 49408},
    },
}
"""Options with which the text encoders of `tests/published_models.py` have their published size. SDXL needs no text
encoder for an empty prompt; the T5 encoder of Stable Diffusion 3.5 is optional and left out."""


def write_checkpoint(name: str, folder: Path) -> None:
    """Writes a checkpoint of the published configuration of `backbone=name` with random weights to `folder`."""
    write_configurations(name, folder)
    for part, values in TEXT_ENCODERS.get(name, {}).items():
        file = folder / part / "config.json"
        file.write_text(json.dumps({**read_json(file), **values}))
        (folder / part / "model.safetensors").unlink()
    write_random_weights(folder)


def write_random_weights(folder: Path) -> None:
    """Saves random weights in bfloat16 beside every `config.json` without weights.

    Raises:
        InputError: one and a half times the size of a model exceeds the free memory; saving needs as much.
    """
    for file in sorted(folder.rglob("config.json")):
        if any(file.parent.glob("*.safetensors")):
            continue
        with torch.device("meta"):
            size = 2 * sum(weight.numel() for weight in _model(file.parent).parameters())
        free = free_memory()
        if free is not None and 1.5 * size > free:
            raise InputError(
                f"the weights of its {file.parent.name} take {size / 1e9:.1f} GB in bfloat16 and half as much "
                f"again to be saved, {free / 1e9:.1f} GB of memory are free"
            )
        torch.set_default_dtype(torch.bfloat16)
        try:
            _model(file.parent).save_pretrained(file.parent)
        finally:
            torch.set_default_dtype(torch.float32)


def _model(folder: Path) -> Any:
    """A diffusers or transformers model with random weights, from the configuration in `folder`."""
    config = read_json(folder / "config.json")
    if "_class_name" in config:
        kind: Any = getattr(diffusers, config["_class_name"])
        return kind.from_config(kind.load_config(folder))
    kind = getattr(transformers, config["architectures"][0])
    return kind(kind.config_class.from_pretrained(folder))


def measured(name: str, checkpoint: str) -> dict[str, float]:
    """Processor seconds of a pass and peak memory of this process, in GB.

    Raises:
        ArithmeticError: a feature is not finite.
    """
    torch.set_num_threads(1)
    config = composed(
        f"backbone={name}", f"backbone.checkpoint='{checkpoint}'", "backbone.precision=bfloat16"
    )
    if "ensemble" in config.noise:
        config.noise.ensemble = 1
    backbone = build(config, "backbone")
    random = torch.Generator().manual_seed(0)
    frame = pad_to_stride(torch.rand(1, 3, *_SIZE, generator=random), backbone.stride)
    backbone.features(frame[..., : 4 * backbone.stride, : 4 * backbone.stride], random)  # sets libraries up
    start = time.process_time()
    features = backbone.features(frame, random)
    seconds = time.process_time() - start
    if not all(tensor.isfinite().all() for layer in features for tensor in layer.tensors().values()):
        raise ArithmeticError(f"backbone={name}: features are not finite")
    return {"seconds": round(seconds, 2), "gigabytes": round(peak_memory(torch.device("cpu")) / 1e9, 2)}


def _cost(name: str) -> Mapping[str, float | str]:
    """Result of `measured` for `backbone=name`, or `refused`: why the model does not fit into memory."""
    with tempfile.TemporaryDirectory() as scratch:
        if name == "tiny":
            return _in_process(measured, name, "embedded:tiny")
        try:
            _in_process(write_checkpoint, name, Path(scratch))
        except InputError as error:
            return {"refused": str(error)}
        return _in_process(measured, name, scratch)


def _in_process(function: Callable[..., _Result], *arguments: object) -> _Result:
    """Result of a call in a new process, as the peak memory of a process never falls."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as fresh:
        return fresh.submit(function, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(LICENCES), help="a,b")
    for name in parser.parse_args().models:
        cost = _cost(name)
        print(name, *cost.values())
        costs = read_json(COSTS) if COSTS.exists() else {}
        COSTS.write_text(json.dumps({**costs, name: cost}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
