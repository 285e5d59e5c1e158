"""What is only there to be looked at never ends a run, nor changes its results."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["never_fatal", "warn"]


@contextmanager
def never_fatal(what: str, then: str = "the run goes on") -> Iterator[None]:
    """Within it, an error becomes a warning of one line; the rest of the block is left out.

    Args:
        what: is missing then: "no report.html".
        then: what becomes of the run.
    """
    try:
        yield
    except Exception as error:  # a full disk, a library that cannot draw it, a service that is out of reach
        warn(what, error, then)


def warn(what: str, error: Exception, then: str = "the run goes on") -> None:
    """Prints one line on standard error: what failed, why, and what becomes of the run."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    print(f"warning: {what} ({reason}); {then}", file=sys.stderr)
