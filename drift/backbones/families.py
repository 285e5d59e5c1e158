"""Which module of this package loads a checkpoint, found without importing the others.

A family of models is a module with a function `from_checkpoint(path, *, source, dtype, **options)` that returns a
`Backbone`, itself a `torch.nn.Module`; its further keyword arguments are the family's options. The module states as
`CHECKPOINTS` what it loads, a dictionary of literals: from a class name that `model_index.json` or `config.json` of a
checkpoint holds, or "model_type NAME" of a `config.json` of transformers, to the choice of `backbone=` for it. Without
`CHECKPOINTS` it loads the `model_type` that it is named after. `CHECKPOINTS` is read from the source, as setuptools
does with `attr:`, because importing a family imports its part of diffusers or transformers.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from drift.checkpoint_files import read_json
from drift.errors import InputError, OptionError

__all__ = ["Family", "families", "family_of"]

_PACKAGE = "drift.backbones"
_SINGLE_FILE = "single file"


@dataclass(frozen=True)
class Family:
    """A module that loads checkpoints.

    Attributes:
        module: name of the module in this package.
        checkpoints: what it loads, and the choice of `backbone=` for it; see above.
    """

    module: str
    checkpoints: dict[str, str]

    @property
    def name(self) -> str:
        """The family's name: that of its module."""
        return self.module.removesuffix("_checkpoints")

    def choice_for(self, path: Path) -> str:
        """The choice of `backbone=` for a folder that the family loads."""
        return next(self.checkpoints[kind] for kind in _kinds(path) if kind in self.checkpoints)

    def load(self) -> ModuleType:
        """The module, imported."""
        return importlib.import_module(f"{_PACKAGE}.{self.module}")


@cache
def families() -> tuple[Family, ...]:
    """All families."""
    package = importlib.import_module(_PACKAGE)
    found = (_declared(module.name) for module in pkgutil.iter_modules(package.__path__))
    return tuple(family for family in found if family is not None)


def family_of(path: Path, source: str, expected: str | None = None) -> Family:
    """The family of a checkpoint.

    Args:
        path: a folder in the layout of diffusers or transformers, or a single file.
        source: the checkpoint as the user named it, for error messages.
        expected: name of the family that it must be of; None for any.

    Raises:
        InputError: no family loads it, or it is of another family than `expected`.
        OptionError: there is no family called `expected`.
    """
    if expected is not None and expected not in (names := [family.name for family in families()]):
        raise OptionError("family", expected, ", ".join(names) + ", or null for that of the checkpoint")
    kinds = [_SINGLE_FILE] if path.is_file() else list(dict.fromkeys(_kinds(path)))
    loads = {kind: family for family in families() for kind in family.checkpoints}
    known = next((kind for kind in kinds if kind in loads), None)
    if known is None:
        found = kinds[0] if kinds else "neither model_index.json nor config.json"
        raise InputError(f"backbone.checkpoint={source}: {found}; supported are {', '.join(sorted(loads))}")
    family = loads[known]
    if expected not in (None, family.name):
        choice = family.checkpoints[known]
        raise InputError(f"backbone.checkpoint={source}: is a {known}, not {expected}; use backbone={choice}")
    return family


def _kinds(path: Path) -> Iterator[str]:
    """What a checkpoint says it is, most specific first: its pipeline, its denoiser, or its model."""
    if (path / "model_index.json").exists():
        yield str(read_json(path / "model_index.json").get("_class_name"))
        for part in ("unet", "transformer"):
            if (path / part / "config.json").exists():
                yield str(read_json(path / part / "config.json").get("_class_name"))
    if (path / "config.json").exists():
        config = read_json(path / "config.json")
        yield str(
            config["_class_name"] if "_class_name" in config else f"model_type {config.get('model_type')}"
        )


def _declared(module: str) -> Family | None:
    """What the source of a module states; None where it has no `from_checkpoint`."""
    spec = find_spec(f"{_PACKAGE}.{module}")
    source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
    checkpoints = {f"model_type {module}": module}
    loads = False
    for statement in ast.parse(source).body:
        match statement:
            case ast.FunctionDef(name="from_checkpoint"):
                loads = True
            case ast.Assign(targets=[ast.Name(id="CHECKPOINTS")], value=value):
                checkpoints = ast.literal_eval(value)
    return Family(module, checkpoints) if loads else None
