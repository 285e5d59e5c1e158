"""`describe`: the layers of a checkpoint and what it can do, without its weights."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from drift.backbones.families import Family, family_of
from drift.backbones.interface import Features
from drift.backbones.loading import check_options
from drift.checkpoint_files import configuration_files, find_checkpoint
from drift.errors import InputError, OptionError
from drift.noising import NoNoise
from drift.noising.schedule import last_timestep

__all__ = ["LayerSummary", "Summary", "describe"]

_NOISES = ("none", "gaussian", "inversion")


@dataclass(frozen=True)
class LayerSummary:
    """A layer whose features can be computed.

    Attributes:
        name: as `backbone.layers` takes it.
        grid: rows and columns of tokens.
        heads: number of heads; 1 for a block, whose output serves as queries and keys.
        width: numbers of a query or key of a head.
        tokens: numbers of a token, which cosine similarity compares.
        cross: whether cross-attention to a prompt follows, as textual inversion needs it.
    """

    name: str
    grid: tuple[int, int]
    heads: int
    width: int
    tokens: int
    cross: bool


@dataclass(frozen=True)
class Summary:
    """What a checkpoint is and can do.

    Attributes:
        checkpoint: as it was given.
        family: name of its family; see `families.py`.
        choice: the choice of `backbone=` for it.
        model: class of the backbone.
        size: height and width of the frames that `layers` are described for, padded to multiples of `stride`.
        stride: pixels per token of the finest grid.
        prompt: "cross-attention" (textual inversion is possible), "joint attention" or "none".
        noises: kinds of noise.
        last_timestep: the largest `backbone.timestep`; None without noise.
        parameters: number of parameters that stay in memory.
        gigabytes: size of these in `float32`.
        layers: all layers in the order of the forward pass.
    """

    checkpoint: str
    family: str
    choice: str
    model: str
    size: tuple[int, int]
    stride: int
    prompt: str
    noises: tuple[str, ...]
    last_timestep: int | None
    parameters: int
    gigabytes: float
    layers: tuple[LayerSummary, ...]

    def as_dict(self) -> dict[str, Any]:
        """The summary as a dictionary of JSON values."""
        return asdict(self)


def describe(
    checkpoint: str | Path = "embedded:tiny",
    *,
    size: tuple[int, int] = (480, 854),
    revision: str | None = None,
    **options: Any,
) -> Summary:
    """Describes a checkpoint by running its model on the meta device, which takes neither weights nor time.

    Args:
        checkpoint: see `load_backbone`; a folder needs no weights, and of a Hub id only configurations are downloaded.
        size: height and width of a frame.
        revision: see `load_backbone`.
        options: options of the family; `layers` is ignored.

    Raises:
        InputError, OptionError: see `load_backbone`.

    Example:
        >>> summary = describe(size=(64, 96))
        >>> summary.choice, summary.stride, summary.prompt
        ('tiny', 8, 'cross-attention')
        >>> summary.layers[-1].name, summary.layers[-1].grid
        ('up_blocks.1', (8, 12))
    """
    if len(size) != 2 or min(size) < 1:
        raise OptionError("size", "x".join(map(str, size)), "HEIGHTxWIDTH in pixels")
    source = str(checkpoint)
    path = find_checkpoint(source, configuration_files, revision=revision)
    if path.is_file():
        raise InputError(
            f"backbone.checkpoint={source}: a file without configuration; give backbone.config's"
        )
    family = family_of(path, source)
    module = family.load()
    known = inspect.signature(module.from_checkpoint).parameters
    check_options(module.from_checkpoint, options)
    if "noise" in known:
        options["noise"] = NoNoise()

    def build(**chosen: Any) -> Any:
        return module.from_checkpoint(path, source=source, dtype=torch.float32, **(options | chosen))

    with torch.device("meta"), torch.no_grad():
        backbone = build(layers=None)
        names = getattr(backbone, "available_layers", tuple(backbone.layers))
        if set(names) != set(backbone.layers):
            backbone = build(layers=names)
        frame = torch.zeros(1, 3, *size)
        frame = F.pad(frame, (0, -size[1] % backbone.stride, 0, -size[0] % backbone.stride))
        features = backbone.features(frame, torch.Generator("cpu"))
    parameters = sum(weight.numel() for weight in backbone.parameters())
    return Summary(
        checkpoint=source,
        family=family.name,
        choice=_choice(family, path, source),
        model=type(backbone).__name__,
        size=(int(size[0]), int(size[1])),
        stride=backbone.stride,
        prompt=getattr(backbone, "conditioning", "none"),
        noises=_NOISES if "noise" in known else ("none",),
        last_timestep=last_timestep(backbone.scheduler) if "noise" in known else None,
        parameters=parameters,
        gigabytes=parameters * 4 / 1e9,
        layers=tuple(_layer(backbone, layer) for layer in features),
    )


def _choice(family: Family, path: Path, source: str) -> str:
    """The choice of `backbone=` for a checkpoint."""
    embedded = source.removeprefix("embedded:")
    return embedded if embedded != source else family.choice_for(path)


def _layer(backbone: Any, features: Features) -> LayerSummary:
    has_attention = features.layer in getattr(backbone, "attention_layers", ())
    return LayerSummary(
        name=features.layer,
        grid=features.grid,
        heads=features.queries.shape[1],
        width=features.queries.shape[-1],
        tokens=features.tokens.shape[-1],
        cross=has_attention and hasattr(backbone, "prompt_keys"),
    )
