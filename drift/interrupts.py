"""Ctrl-C and SIGTERM at any moment of a command: one line, and exit status 130."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["interruptible"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def interruptible(command: Callable[[], int]) -> int:
    """Runs a command, which SIGTERM stops as Ctrl-C does.

    An interrupt need not arrive as KeyboardInterrupt: Lightning ends the process, and an interrupted import may raise
    any error.

    Returns:
        The exit status of the command; 130 after an interrupt, about which one line is printed to standard error.
    """
    received: list[int] = []
    try:
        with _recorded(received):
            return command()
    except KeyboardInterrupt:
        pass
    except BaseException as error:
        if not received and not isinstance(error.__context__, KeyboardInterrupt):
            raise
    print("interrupted; the files written so far are complete", file=sys.stderr)
    return 130


@contextmanager
def _recorded(received: list[int]) -> Iterator[None]:
    """Within it, SIGINT and SIGTERM are noted in `received` and raise KeyboardInterrupt."""

    def interrupt(number: int, frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
