"""Checks of option values; each raises OptionError with the allowed values."""

from __future__ import annotations

import math
from collections.abc import Collection

from drift.errors import OptionError

__all__ = ["choice", "non_negative", "positive", "share", "whole_number"]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def whole_number(
    name: str, value: object, *, minimum: int, maximum: int | None = None, none_allowed: bool = False
) -> None:
    """Raises OptionError unless `value` is an integer in [`minimum`, `maximum`], or None if `none_allowed`."""
    if value is None and none_allowed:
        return
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or value < minimum or (maximum is not None and value > maximum):  # type: ignore[operator]
        upper = "or more" if maximum is None else f"to {maximum}"
        raise OptionError(
            name, value, f"a whole number, {minimum} {upper}" + (", or null" if none_allowed else "")
        )


def positive(name: str, value: object) -> None:
    """Raises OptionError unless `value` is a finite number above 0."""
    if not _is_number(value) or value <= 0:  # type: ignore[operator]
        raise OptionError(name, value, "a number above 0")


def non_negative(name: str, value: object) -> None:
    """Raises OptionError unless `value` is a finite number of at least 0."""
    if not _is_number(value) or value < 0:  # type: ignore[operator]
        raise OptionError(name, value, "a number, 0 or more")


def choice(name: str, value: object, allowed: Collection[object]) -> None:
    """Raises OptionError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise OptionError(name, value, ", ".join(map(str, allowed)))


def share(name: str, value: object) -> None:
    """Raises OptionError unless `value` is a number in [0, 1]."""
    if not _is_number(value) or not 0 <= value <= 1:  # type: ignore[operator]
        raise OptionError(name, value, "a number from 0 to 1")
