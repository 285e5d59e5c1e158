"""Checks a composed configuration: types and ranges of all options, then options that contradict each other."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from drift.configuration.contradictions import CONTRADICTIONS, group_at
from drift.configuration.groups import GROUPS, Configuration
from drift.configuration.types import allowed_values
from drift.errors import DriftError, OptionError

__all__ = ["check", "check_fields"]

_adapter = cache(TypeAdapter)


def check(settings: Mapping[str, Any]) -> None:
    """Checks a resolved configuration, of which groups with a `_target_` of their own are left to it.

    Raises:
        DriftError: an option is not allowed, or there is no such option; names its key and what is allowed.
    """
    _check_node("", settings, Configuration)
    for group, targets in GROUPS.items():
        node = group_at(settings, group)
        if options := targets.get(str(node.get("_target_"))):
            _check_node(f"{group}.", node, options)
    for contradiction in CONTRADICTIONS:
        contradiction(settings)


def check_fields(options: Any, kind: Any, group: str = "") -> None:
    """Checks the attributes of an object that is made without a configuration, in the constructor of its class.

    Args:
        options: the object.
        kind: its options, from `groups`.
        group: where they are in the configuration, with a dot at the end.

    Raises:
        OptionError: an option is not allowed.
    """
    names = [name for name in get_type_hints(kind) if hasattr(options, name)]
    _check_node(group, {name: getattr(options, name) for name in names}, kind)


def _check_node(path: str, node: Mapping[str, Any], options: Any) -> None:
    values = {key: value for key, value in node.items() if not str(key).startswith("_")}
    try:
        _adapter(options).validate_python(values)
    except ValidationError as error:
        location = [str(part) for part in error.errors()[0]["loc"]]
        raise _explained(path, values, location, _adapter(options).json_schema()) from None


def _explained(
    path: str, values: Mapping[str, Any], location: list[str], schema: Mapping[str, Any]
) -> DriftError:
    """The error of the option at `location`, of which only the first keys are names of options."""
    definitions = schema.get("$defs", {})
    key, *deeper = location
    properties = schema["properties"]
    if key not in properties:
        close = difflib.get_close_matches(key, properties, n=1)
        hint = f"did you mean {path}{close[0]}? " if close else ""
        known = ", ".join(properties) or "no options"
        return DriftError(f"{path}{key}: no such key; {hint}{path[:-1] or 'the configuration'} has {known}")
    of_key, value = properties[key], values[key]
    if "$ref" in of_key and isinstance(value, Mapping):
        return _explained(f"{path}{key}.", value, deeper, definitions[of_key["$ref"].rpartition("/")[2]])
    return OptionError(path + key, value, allowed_values(of_key))
