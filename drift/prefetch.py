"""Work done ahead of, or behind, the model's: one thread each way."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

__all__ = ["BackgroundConsumer", "prefetched"]

Item = TypeVar("Item")
_END = object()


def prefetched(items: Iterable[Item], depth: int = 2) -> Iterator[Item]:
    """The items, made by a thread that stays at most `depth` ahead.

    An error of `items` is raised here, after all items before it.
    """
    ready: queue.Queue = queue.Queue(depth)
    stopped = threading.Event()

    def offer(entry: object) -> bool:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            for item in items:
                if not offer((item, None)):
                    return
            offer((_END, None))
        except BaseException as error:
            offer((_END, error))

    thread = threading.Thread(target=produce, name="drift-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stopped.set()
        thread.join()


class BackgroundConsumer(Generic[Item]):
    """Hands items to `consume` in a thread, in order, with at most `depth` waiting.

    An error of `consume` is raised by the next `put` or by `close`; items after it are dropped.
    """

    def __init__(self, consume: Callable[[Item], object], depth: int = 4) -> None:
        self._consume = consume
        self._waiting: queue.Queue = queue.Queue(depth)
        self._error: BaseException | None = None
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="drift-writer", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Queues an item; waits where `depth` are queued."""
        self._raise()
        self._waiting.put(item)

    def close(self) -> None:
        """Waits until all queued items are consumed."""
        if self._thread.is_alive():
            self._waiting.put(_END)
            self._thread.join()
        self._raise()

    def _run(self) -> None:
        while (item := self._waiting.get()) is not _END:
            if not self._failed:
                try:
                    self._consume(item)
                except BaseException as error:
                    self._error, self._failed = error, True

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
