"""Errors for the user: each message is one line that names the file or the option."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["DriftError", "InputError", "OptionError", "shown"]


class DriftError(Exception):
    """Base class of errors that are shown to the user without a traceback."""


class InputError(DriftError):
    """A file or folder cannot be used. The message names it and says what to do."""


class OptionError(DriftError):
    """An option has an invalid value.

    Args:
        name: of the option, without its configuration group (`top_k`, not `propagation.top_k`).
        value: the invalid value.
        allowed: description of the allowed values.
    """

    def __init__(self, name: str, value: object, allowed: str) -> None:
        super().__init__(f"{name}={shown(value)}: allowed is {allowed}")
        self.name = name
        self.value = value
        self.allowed = allowed


def shown(value: object) -> str:
    """A value as it is written on the command line.

    Example:
        >>> shown({"a": [1, None, True]})
        '{a: [1,null,true]}'
    """
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case list() | tuple():
            return "[" + ",".join(map(shown, value)) + "]"
        case Mapping():
            return "{" + ", ".join(f"{key}: {shown(one)}" for key, one in value.items()) + "}"
        case _:
            return " ".join(str(value).split("\n"))
