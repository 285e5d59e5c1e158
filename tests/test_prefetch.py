"""Threads that run ahead of the model and behind it."""

from __future__ import annotations

import threading
import time

import pytest

from drift.prefetch import BackgroundConsumer, prefetched


def test_items_come_in_order():
    assert list(prefetched(range(50))) == list(range(50))


def test_it_stays_at_most_depth_ahead():
    made = []

    def items():
        for i in range(20):
            made.append(i)
            yield i

    for taken in prefetched(items(), depth=2):
        time.sleep(0.002)
        assert len(made) <= taken + 5  # the one taken, two waiting, one being offered


def test_an_error_comes_after_the_items_before_it():
    def items():
        yield 1
        yield 2
        raise ValueError("broken")

    taken = []
    with pytest.raises(ValueError, match="broken"):
        for item in prefetched(items()):
            taken.append(item)
    assert taken == [1, 2]


def test_leaving_early_ends_the_thread():
    before = threading.active_count()
    stream = prefetched(iter(range(10**9)))
    assert next(stream) == 0
    stream.close()
    assert threading.active_count() == before


def test_a_consumer_takes_all_items_in_order():
    seen = []
    consumer = BackgroundConsumer(seen.append, depth=2)
    for i in range(30):
        consumer.put(i)
    consumer.close()
    assert seen == list(range(30))


def test_a_consumers_error_is_raised_once_and_stops_the_rest():
    seen = []

    def consume(item):
        if item == 2:
            raise OSError("disk full")
        seen.append(item)

    consumer = BackgroundConsumer(consume)

    def put_all():
        for i in range(10):
            consumer.put(i)
            time.sleep(0.005)
        consumer.close()

    with pytest.raises(OSError, match="disk full"):
        put_all()
    consumer.close()
    assert seen == [0, 1], "nothing after the failure is taken, also once the error was raised"
