"""Loads Segment Anything checkpoints: the official files, other files of their layout, and embedded ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from drift.download import download, sha256_of
from drift.errors import InputError, OptionError
from drift.options import choice
from drift.refinement.architectures import OFFICIAL_SIZES, build_official
from drift.refinement.tiny_sam import TinySam

__all__ = ["OFFICIAL_FILES", "OfficialFile", "load_sam"]

_EMBEDDED = Path(__file__).parents[1] / "assets"
_TINY = "tiny"
_SERVER = "https://dl.fbaipublicfiles.com/segment_anything"
_WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}  # of the ViT's embedding


@dataclass(frozen=True)
class OfficialFile:
    """A checkpoint published by Segment Anything's authors."""

    url: str
    sha256: str


OFFICIAL_FILES = {
    name: OfficialFile(f"{_SERVER}/{name}", sha256)
    for name, sha256 in {
        "sam_vit_b_01ec64.pth": "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        "sam_vit_l_0b3195.pth": "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        "sam_vit_h_4b8939.pth": "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    }.items()
}
"""By file name. The SHA-256 of files with these names is checked."""


def load_sam(checkpoint: str, *, size: str | None = None, download: bool = False) -> Any:
    """Loads a `segment_anything.modeling.Sam`, or a `TinySam`, in float32 on the CPU.

    Args:
        checkpoint: a `.pth` or `.safetensors` file, or `embedded:NAME` for a checkpoint that ships with drift.
        size: expected size, `vit_b`, `vit_l`, `vit_h` or `tiny`; None infers it from the weights.
        download: whether to download an official file that does not exist.

    Raises:
        InputError: the file is missing, corrupt, fails the SHA-256 check, or has another layout.
        OptionError: an option is not allowed.
    """
    choice("size", size, (None, *OFFICIAL_SIZES, _TINY))
    choice("download", download, (True, False))
    path = _find(checkpoint, download=download)
    weights = _read(path)
    found = _size_of(weights)
    if found is None:
        raise InputError(
            f"{path}: not a Segment Anything checkpoint: it contains {_summary(weights)}, expected image_encoder.*, "
            "prompt_encoder.* and mask_decoder.*"
        )
    if size not in (None, found):
        raise OptionError("size", size, f"{found}, the size of {path.name}, or null")
    with torch.device("meta"):  # skips random initialization
        sam = TinySam() if found == _TINY else build_official(found)
    _fill(sam, weights, path)
    return sam


def _find(checkpoint: str, *, download: bool) -> Path:
    if not isinstance(checkpoint, str) or not checkpoint:
        raise OptionError("checkpoint", checkpoint, "a file, or embedded:sam_tiny")
    if checkpoint.startswith("embedded:"):
        path = _EMBEDDED / checkpoint.removeprefix("embedded:") / "model.safetensors"
        if not path.is_file():
            names = ", ".join(f"embedded:{p.parent.name}" for p in _EMBEDDED.glob("*/model.safetensors"))
            raise OptionError("checkpoint", checkpoint, f"a file, or {names}")
        return path
    path = Path(checkpoint).expanduser()
    official = OFFICIAL_FILES.get(path.name)
    if path.is_dir():
        raise InputError(
            f"{path}: a folder; folders in transformers' layout need refinement=sam_hq, sam2 or edgetam"
        )
    if not path.is_file():
        _fetch(path, official, allowed=download)
    elif official is not None and sha256_of(path) != official.sha256:
        raise InputError(
            f"{path}: not the official file of this name: its SHA-256 differs; download it again, or rename "
            "the file if it is your own"
        )
    return path


def _fetch(path: Path, official: OfficialFile | None, *, allowed: bool) -> None:
    if official is None:
        raise InputError(
            f"{path}: no such file; refinement.checkpoint expects a Segment Anything checkpoint, such as "
            f"{', '.join(OFFICIAL_FILES)}"
        )
    if not allowed:
        raise InputError(
            f"{path}: no such file; download it from {official.url}, or set refinement.download=true"
        )
    download(official.url, path, sha256=official.sha256)


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # damaged files raise errors of any kind
        raise InputError(f"{path}: cannot be read: the file is truncated or not a checkpoint") from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(f"{path}: contains {_summary(weights)}, expected a state_dict: tensors by name")
    return weights


def _summary(weights: object) -> str:
    """The first three keys of a mapping, or the type of anything else."""
    if not isinstance(weights, Mapping):
        return f"a {type(weights).__name__}"
    names = [str(name) for name in weights]
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "") if names else "nothing"


def _size_of(weights: Mapping[str, Tensor]) -> str | None:
    if "image_encoder.stem.weight" in weights:
        return _TINY
    patches = weights.get("image_encoder.patch_embed.proj.weight")
    return _WIDTHS.get(patches.shape[0]) if patches is not None and patches.ndim else None


def _fill(sam: torch.nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    try:
        sam.load_state_dict({n: value.float() for n, value in weights.items()}, strict=True, assign=True)
    except RuntimeError as error:
        expected = sam.state_dict()
        shared = sorted(expected.keys() & weights.keys())
        differences = {
            "missing": sorted(expected.keys() - weights.keys()),
            "unexpected": sorted(weights.keys() - expected.keys()),
            "of another shape": [n for n in shared if expected[n].shape != weights[n].shape],
        }
        listed = [
            names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "") + f" {difference}"
            for difference, names in differences.items()
            if names
        ]
        raise InputError(f"{path}: not Segment Anything's layout: {', '.join(listed)}") from error
