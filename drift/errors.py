"""The errors that a user of drift meets, each one line that names the file or the option."""

from __future__ import annotations

__all__ = ["DriftError", "InputError", "OptionError"]


class DriftError(Exception):
    """Base of every error whose message is meant for the user, without a traceback."""


class InputError(DriftError):
    """A file, a folder or its content cannot be used. The message names it and what to do."""


class OptionError(DriftError):
    """An option holds a value that is not allowed.

    Args:
        name: the option, without its configuration group (`top_k`, not `propagation.top_k`).
        value: what was given.
        allowed: what may be given, in words.
    """

    def __init__(self, name: str, value: object, allowed: str) -> None:
        super().__init__(f"{name}={value}: allowed is {allowed}")
        self.name = name
        self.value = value
        self.allowed = allowed
