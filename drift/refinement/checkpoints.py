"""Segment Anything's weights: the official files, anyone's of their layout, and those that ship with drift."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from drift.download import download, sha256_of
from drift.errors import InputError, OptionError
from drift.options import choice
from drift.refinement.architectures import OFFICIAL_SIZES, build_official, build_tiny

__all__ = ["OFFICIAL_FILES", "OfficialFile", "load_sam"]

_EMBEDDED = Path(__file__).parents[1] / "assets"
_TINY = "tiny"
_SERVER = "https://dl.fbaipublicfiles.com/segment_anything"
_WIDTHS = {768: "vit_b", 1024: "vit_l", 1280: "vit_h"}  # of the image encoder's patches


@dataclass(frozen=True)
class OfficialFile:
    """A file that Segment Anything's authors publish."""

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
"""By name. A file of such a name must be that file; one of any other name is trusted."""


def load_sam(checkpoint: str, *, size: str | None = None, download: bool = False) -> Any:
    """A `segment_anything` `Sam` with these weights.

    Args:
        checkpoint: a file, `.pth` or `.safetensors`, or `embedded:NAME` for one that ships with drift.
        size: `vit_b`, `vit_l`, `vit_h` or `tiny`, which it must then be; None: read off the weights.
        download: whether an official file that is not there is fetched.

    Raises:
        InputError: the file is missing, truncated, not the official one of its name, or of another layout.
        OptionError: an option is not allowed.
    """
    choice("size", size, (None, *OFFICIAL_SIZES, _TINY))
    choice("download", download, (True, False))
    path = _find(checkpoint, download=download)
    weights = _read(path)
    found = _size_of(weights)
    if found is None:
        raise InputError(
            f"{path}: no checkpoint of Segment Anything: it holds {_some(weights)}, where image_encoder.*, "
            "prompt_encoder.* and mask_decoder.* are expected"
        )
    if size not in (None, found):
        raise OptionError("size", size, f"{found}, which {path.name} is, or null")
    with torch.device("meta"):  # no random weights are drawn only to be replaced
        sam = build_tiny() if found == _TINY else build_official(found)
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
    if not path.is_file():
        _fetch(path, official, allowed=download)
    elif official is not None and sha256_of(path) != official.sha256:
        raise InputError(
            f"{path}: not the official file of this name, as its SHA-256 is another: it is truncated or changed; "
            "fetch it again, or give your own file another name"
        )
    return path


def _fetch(path: Path, official: OfficialFile | None, *, allowed: bool) -> None:
    if official is None:
        raise InputError(
            f"{path}: no such file; refinement.checkpoint names Segment Anything's weights, such as "
            f"{', '.join(OFFICIAL_FILES)}"
        )
    if not allowed:
        raise InputError(
            f"{path}: no such file; put {official.url} there, or give refinement.download=true to have it fetched"
        )
    download(official.url, path, sha256=official.sha256)


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: cannot be read as weights: it is truncated, or no checkpoint") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(
            f"{path}: holds {_some(weights)}, where a dictionary of weights alone is expected; save the model's "
            "state_dict()"
        )
    return weights


def _some(weights: object) -> str:
    """The first few keys of what a file holds, or what it is."""
    if not isinstance(weights, Mapping):
        return f"a {type(weights).__name__}"
    names = [str(name) for name in weights]
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "") if names else "nothing"


def _size_of(weights: Mapping[str, Tensor]) -> str | None:
    if "image_encoder.stem.weight" in weights:
        return _TINY
    patches = weights.get("image_encoder.patch_embed.proj.weight")
    return None if patches is None else _WIDTHS.get(patches.shape[0])


def _fill(sam: torch.nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    try:
        sam.load_state_dict({n: value.float() for n, value in weights.items()}, strict=True, assign=True)
    except RuntimeError as error:
        expected = sam.state_dict()
        missing, unknown = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
        shapes = [n for n in expected.keys() & weights.keys() if expected[n].shape != weights[n].shape]
        named = [
            f"{what} {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            for what, names in (
                ("lacks", missing),
                ("holds the unknown", unknown),
                ("has another shape of", shapes),
            )
            if names
        ]
        raise InputError(
            f"{path}: of another layout than Segment Anything's: it {', '.join(named)}"
        ) from error
