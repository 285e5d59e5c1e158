"""Background threads that load items ahead of the model and write its results."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Generic, TypeVar

__all__ = ["BackgroundConsumer", "prefetched"]

Item = TypeVar("Item")
_END = object()


def prefetched(items: Iterable[Item], depth: int = 2) -> Generator[Item, None, None]:
    """Iterates over `items` in a background thread, at most `depth` items ahead.

    An exception raised by `items` is raised after the items that precede it.
    """
    buffer: queue.Queue = queue.Queue(depth)
    closed = threading.Event()

    def put(entry: object) -> bool:
        while not closed.is_set():
            try:
                buffer.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((_END, None))
        except BaseException as error:
            put((_END, error))

    thread = threading.Thread(target=produce, name="drift-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = buffer.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        closed.set()
        thread.join()


class BackgroundConsumer(Generic[Item]):
    """Calls `consume` with each item, in order, in a background thread; at most `depth` items are queued.

    An exception raised by `consume` is raised again by the next `put` or `close`; all later items are dropped.
    """

    def __init__(self, consume: Callable[[Item], object], depth: int = 4) -> None:
        self._consume = consume
        self._queue: queue.Queue = queue.Queue(depth)
        self._error: BaseException | None = None
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="drift-writer", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Queues an item; blocks while `depth` items are queued."""
        self._raise_error()
        self._queue.put(item)

    def close(self) -> None:
        """Waits until all queued items are consumed, and ends the thread."""
        if self._thread.is_alive():
            self._queue.put(_END)
            self._thread.join()
        self._raise_error()

    def _run(self) -> None:
        while (item := self._queue.get()) is not _END:
            if not self._failed:
                try:
                    self._consume(item)
                except BaseException as error:
                    self._error, self._failed = error, True

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
