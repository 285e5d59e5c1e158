"""The words of the command line, prepared for Hydra."""

from __future__ import annotations

import re
from argparse import Action
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from drift.errors import DriftError, OptionError

__all__ = ["prepared_words"]

_SHORT = {"-v": "output.verbose=true", "--verbose": "output.verbose=true"}
_PLAIN = re.compile(r"[A-Za-z_./][\w./:-]*", re.ASCII)
_NO_TEXTS = ("true", "false", "inf", "nan")
_MASK_FILES = re.compile(r"\{\s*\d+\s*:.*\}", re.DOTALL)
_MASK_FILE = re.compile(r"(\d+)\s*:\s*(.*?)\s*(?:,\s*(?=\d+\s*:)|$)", re.DOTALL)


def prepared_words(words: Sequence[str], config_dir: Path) -> list[str]:
    """The words with flags first, file names in quotes, and choices of `glob(FOLDER/*)` spelled out.

    Args:
        words: of the command line, without the program.
        config_dir: folder of the configuration groups.

    Raises:
        DriftError: a flag is unknown, a word is no override, or a group is chosen twice; one line.
    """
    words = [_SHORT.get(word, word) for word in words]
    flags, rest = _split(words)
    groups = {path.relative_to(config_dir).as_posix() for path in config_dir.rglob("*") if path.is_dir()}
    _refuse_second_choices(rest, groups)
    for word in rest:
        _check(word, groups, config_dir)
    multirun = bool({"-m", "--multirun"} & set(flags))
    rest = [_quoted(_with_choices_below(word, config_dir), multirun=multirun) for word in rest]
    return [*flags, *rest]


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags with their values, and all other words: Hydra takes no flag after an override."""
    known = get_args_parser()._option_string_actions
    flags: list[str] = []
    rest: list[str] = []
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        name = word.split("=")[0]
        if not word.startswith("-"):
            rest.append(word)
        elif name not in known:
            raise DriftError(
                f"{name}: no such option; options are written key=value, as data.box=[0,0,99,99]; --help lists them"
            )
        else:
            flags.append(word)
            if name == word and remaining and _takes(known[name], remaining[0]):
                flags.append(remaining.pop(0))
            _check_flag(name, known[name], flags[-1].removeprefix(f"{name}="))
    return flags, rest


def _takes(flag: Action, word: str) -> bool:
    """Whether the word after a flag is its value."""
    return flag.nargs is None or (flag.nargs == "?" and word in (flag.choices or ()))


def _check_flag(name: str, action: Action, value: str) -> None:
    """Raises DriftError if the value of a flag is missing or not allowed."""
    if action.nargs is None and value == name:
        raise DriftError(f"{name}: needs a value")
    if action.nargs is None and action.choices and value not in action.choices:
        raise DriftError(f"{name} {value}: allowed is {', '.join(action.choices)}")


def _refuse_second_choices(words: Sequence[str], groups: set[str]) -> None:
    chosen: dict[str, str] = {}
    for word in words:
        group, equals, choice = word.partition("=")
        if equals and group in groups and chosen.setdefault(group, choice) != choice:
            raise DriftError(
                f"{group}={choice}: given twice, as {group}={chosen[group]} before; give it once"
            )


def _check(word: str, groups: set[str], config_dir: Path) -> None:
    """Raises DriftError for words that Hydra takes or refuses without a message for users."""
    key, equals, value = word.partition("=")
    if not key or not word.strip():
        raise DriftError(f"{word!r}: cannot be read as key=value")
    if equals and not value and key in ("hydra.run.dir", "hydra.sweep.dir"):
        raise OptionError(key, value, "a folder")
    is_open = value[:1] in ("{", "[") and not value.endswith(("}", "]"))
    if is_open and not _is_text(key) and _parsed(word) is None:
        raise DriftError(
            f'{word}: incomplete; put all of it in quotes, as "data.masks={{0: a.png, 5: b.png}}"'
        )
    if not equals and word[0] != "~":
        raise DriftError(
            f"{word}: cannot be read as key=value; --help lists the keys; values with spaces need quotes"
        )
    override = _parsed(word) if equals and key in groups else None
    if override and not override.is_sweep_override() and not isinstance(override.value(), (str, list)):
        choices = sorted(path.stem for path in (config_dir / key).glob("*.yaml"))
        raise OptionError(key, value, ", ".join(choices))


def _with_choices_below(word: str, config_dir: Path) -> str:
    """Expands `experiment=glob(ablation/*)` to a list: Hydra's own glob does not search folders of a group."""
    found = re.fullmatch(r"(\w+)=glob\(([\w/*?-]+/[\w*?-]+)\)", word)
    if not found:
        return word
    group, pattern = found.groups()
    choices = sorted(
        path.relative_to(config_dir / group) for path in (config_dir / group).glob(f"{pattern}.yaml")
    )
    return f"{group}=" + ",".join(path.with_suffix("").as_posix() for path in choices) if choices else word


def _quoted(word: str, *, multirun: bool) -> str:
    """The word with its value in quotes, if it is a text that Hydra's grammar would refuse or take for another type."""
    found = re.fullmatch(r"(\+{0,2}([\w.]+)=)(.*)", word, re.DOTALL)
    if not found:
        return word
    start, key, value = found.groups()
    if value == "" or (_PLAIN.fullmatch(value) and value.lower() not in _NO_TEXTS):
        return word
    if key == "data.masks":
        return word if _parsed(word) or not _MASK_FILES.fullmatch(value) else start + _masks(value)
    if not _is_text(key):
        return word
    override = _parsed(word)
    if override is None:
        return start + _in_quotes(value)
    is_text = override.value() is None or isinstance(override._value, (str, QuotedString))
    return word if is_text or (multirun and override.is_sweep_override()) else start + _in_quotes(value)


def _parsed(word: str) -> Any:
    """Hydra's reading of a word; None if its grammar refuses it."""
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _in_quotes(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()


def _masks(value: str) -> str:
    """`{FRAME: FILE, ...}` with the files in quotes."""
    files = _MASK_FILE.findall(value.strip()[1:-1].strip())
    return "{" + ", ".join(f"{frame}: {_in_quotes(file.strip(chr(39)))}" for frame, file in files) + "}"


def _is_text(key: str) -> bool:
    """Whether the option takes a text and nothing else, or null."""
    from drift.configuration.groups import GROUPS, Output  # pydantic, which most command lines do without

    group, _, option = key.rpartition(".")
    options = {"output": [Output]}.get(group) or [*GROUPS.get(group, {}).values()]
    kinds = [get_type_hints(one, include_extras=True).get(option) for one in options]
    return any(set(_members(kind)) - {NoneType} == {str} for kind in kinds if kind is not None)


def _members(kind: Any) -> Iterator[Any]:
    """The types of a union, without their metadata."""
    if get_origin(kind) is Annotated:
        yield from _members(get_args(kind)[0])
    elif get_origin(kind) in (Union, UnionType):
        for member in get_args(kind):
            yield from _members(member)
    else:
        yield kind
