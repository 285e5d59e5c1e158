"""Turns errors of optional outputs, such as figures and dashboards, into warnings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["never_fatal", "warn"]


@contextmanager
def never_fatal(what: str, then: str = "the run continues") -> Iterator[None]:
    """Context manager that prints an exception as a one-line warning and suppresses it.

    Args:
        what: what failed or is missing, e.g. "no report.html".
        then: consequence for the run.
    """
    try:
        yield
    except Exception as error:  # e.g. a full disk, a drawing error or an unreachable service
        warn(what, error, then)


def warn(what: str, error: Exception, then: str = "the run continues") -> None:
    """Prints one line to stderr: what failed, the reason in parentheses, and the consequence."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    print(f"warning: {what} ({reason}); {then}", file=sys.stderr)
