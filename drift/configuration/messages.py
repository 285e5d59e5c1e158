"""What Hydra refuses, in one line that names the key, the value and what is allowed."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig

from drift.configuration.groups import GROUPS

__all__ = ["blamed", "explain", "first_line"]


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type if there is none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def explain(error: Exception, config_dir: Path, config_name: str) -> str:
    """One line that names the key, the value and the allowed values, or the corrupt configuration file."""
    if isinstance(error, yaml.YAMLError):
        return _explain_file(error)
    if isinstance(error, UnicodeDecodeError):
        return f"{_not_text(config_dir)}: not a text file in UTF-8"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _explain_choice(str(error.missing_cfg_file), error.options or (), config_dir)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be read as key=value ({first_line(error)}); names with other characters than "
            """letters, digits and _ - . / need quotes, as in "data.sequences=['clip (1)',other]\""""
        )
    if isinstance(error, ConfigCompositionException):
        unknown = re.search(r"Could not override '([^'@]+)", str(error))
        if unknown:
            return _explain_unknown(unknown.group(1), config_dir, config_name)
    if ambiguous := re.search(r"Ambiguous value for argument '([^=']+)=(.*)'", str(error)):
        key, value = ambiguous.groups()
        return f"{key}={value}: a list is written {key}=[{value}]; the values of a sweep need -m"
    if "'${output.dir}'" in str(error):  # hydra.run.dir, which is never null
        return "output.dir=null: allowed is a folder"
    if "node `output`" in str(error):
        return "output: has options, such as output.dir=FOLDER, and no value of its own"
    return " ".join(line.strip() for line in str(error).splitlines()[:2])


def _explain_file(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark or error.context_mark):
        return f"{mark.name}, line {mark.line + 1}: not valid YAML ({error.problem})"
    return f"{getattr(error, 'name', 'a configuration file')}: not valid YAML ({first_line(error)})"


def _not_text(config_dir: Path) -> str:
    """Path of the first configuration file that is not UTF-8, in `--config-dir` or in `config_dir`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path, default=config_dir)
    given = parser.parse_known_args(sys.argv[1:])[0].config_dir
    for folder in (given, config_dir):
        for path in sorted(folder.rglob("*.yaml")):
            try:
                path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                return str(path)
    return "a configuration file"


def blamed(group: str, options: Mapping[str, Any], message: str) -> str:
    """The option that an error of a library is about, as `trainer.accelerator=gpu`; the group if it is not clear.

    Args:
        group: name of the group.
        options: its options.
        message: the error's message.
    """
    words = set(re.findall(r"[\w.+-]+", message))
    named = {
        name: (str(value) in words and not isinstance(value, bool)) + (name in words)
        for name, value in options.items()
        if not name.startswith("_")
    }
    name = max(named, key=lambda one: named[one], default="")
    return f"{group}.{name}={options[name]}" if name and named[name] else group


def _explain_choice(chosen: str, options: Sequence[str], config_dir: Path) -> str:
    """For a choice that does not exist, as `data/coco` or `experiment/grid/head`: the choices of its group."""
    group, slash, name = chosen.partition("/")
    if not slash:
        names = ", ".join(sorted(path.stem for path in config_dir.glob("*.yaml")))
        return f"--config-name {chosen}: allowed is {names}"
    if (config_dir / chosen).parent.is_dir() and group not in (
        "hydra",
        "experiment",
    ):  # a group within a group
        group, _, name = chosen.rpartition("/")
    if group == "hydra":  # plugins add choices
        part, _, name = name.partition("/")
        hint = "needs pip install -e '.[sweep]'; " if part == "launcher" else ""
        return f"hydra/{part}={name}: {hint}allowed is {', '.join(options)}"
    paths = sorted((config_dir / group).glob("**/*.yaml" if group == "experiment" else "*.yaml"))
    allowed = [path.relative_to(config_dir / group).with_suffix("").as_posix() for path in paths]
    return f"{group}={name}: allowed is {', '.join(allowed)}"


def _explain_unknown(key: str, config_dir: Path, config_name: str) -> str:
    GlobalHydra.instance().clear()
    groups = {path.relative_to(config_dir).as_posix() for path in config_dir.rglob("*") if path.is_dir()}
    choices = [word for word in sys.argv[1:] if word.split("=")[0] in groups and "," not in word]
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        config = compose(config_name, overrides=choices)
    node: Any = config
    *parents, last = key.split(".")
    for depth, parent in enumerate(parents):
        if not isinstance(node, DictConfig) or parent not in node:
            return f"{key}: no such key; {'.'.join(parents[:depth]) or 'the configuration'} has {_keys(node)}"
        node = node._get_node(parent)
    keys = [str(k) for k in node] if isinstance(node, DictConfig) else []
    if last in keys:
        return f"{key}: no such key with every one of the choices given for its group"
    where = ".".join(parents)
    if isinstance(node, DictConfig) and last in _options(where, node):
        return f"{key}: has no value to replace; add it as +{key}=VALUE"
    if others := _choices_with(last, where, config_dir):
        return f"{key}: no such key; it is an option of {' or '.join(others)}"
    hint = _hint(key, keys, config)
    return f"{key}: no such key; {hint}{where or 'the configuration'} has {_keys(node)}"


def _options(group: str, node: DictConfig) -> Collection[str]:
    """Names of the options that the `_target_` of a group has, also those that its YAML file does not set."""
    kind = GROUPS.get(group, {}).get(str(node.get("_target_")))
    return () if kind is None else get_type_hints(kind)


def _choices_with(option: str, group: str, config_dir: Path) -> list[str]:
    """The choices of a group that have an option, as `data=video`."""
    targets = [
        f"_target_: {target}\n"
        for target, kind in GROUPS.get(group, {}).items()
        if option in get_type_hints(kind)
    ]
    folder = group.replace(".", "/")
    texts = {
        path.stem: path.read_text(encoding="utf-8") for path in sorted((config_dir / folder).glob("*.yaml"))
    }
    return [f"{folder}={name}" for name, text in texts.items() if any(target in text for target in targets)]


def _hint(key: str, keys: Sequence[str], config: DictConfig) -> str:
    """A question about a key of a similar name, or of the same name in another group; empty if there is none."""
    *parents, last = key.split(".")
    found = [".".join([*parents, name]) for name in difflib.get_close_matches(last, keys, n=1)]
    found = found or sorted(
        _places(last, config), key=lambda place: not place.startswith(f"{key.split('.')[0]}.")
    )
    return f"did you mean {' or '.join(found[:2])}? " if found else ""


def _places(name: str, node: DictConfig, above: str = "") -> list[str]:
    """Keys of a configuration that end with `name`."""
    found = []
    for key in map(str, node):
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            found += _places(name, child, f"{above}{key}.")
        elif key == name:
            found.append(f"{above}{key}")
    return found


def _keys(node: Any) -> str:
    if not isinstance(node, DictConfig):
        return "no keys of its own"
    return ", ".join(str(key) for key in node if not str(key).startswith("_")) or "no options"
