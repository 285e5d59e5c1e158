"""Background loading and writing."""

from __future__ import annotations

import threading
import time

import pytest

from drift.prefetch import BackgroundConsumer, prefetched


def test_prefetched_items_are_in_order():
    assert list(prefetched(range(50))) == list(range(50))


def test_prefetching_is_limited_to_depth():
    produced = []

    def items():
        for i in range(20):
            produced.append(i)
            yield i

    for item in prefetched(items(), depth=2):
        time.sleep(0.002)
        assert len(produced) <= item + 5  # items up to this one, two in the buffer, one being put, one spare


def test_an_exception_follows_the_items_before_it():
    def items():
        yield 1
        yield 2
        raise ValueError("broken")

    items_before = []
    with pytest.raises(ValueError, match="broken"):
        for item in prefetched(items()):
            items_before.append(item)
    assert items_before == [1, 2]


def test_closing_the_iterator_ends_the_thread():
    before = threading.active_count()
    stream = prefetched(iter(range(10**9)))
    assert next(stream) == 0
    stream.close()
    assert threading.active_count() == before


def test_a_consumer_gets_all_items_in_order():
    consumed = []
    consumer = BackgroundConsumer(consumed.append, depth=2)
    for i in range(30):
        consumer.put(i)
    consumer.close()
    assert consumed == list(range(30))


def test_an_exception_of_a_consumer_is_raised_once():
    consumed = []

    def consume(item):
        if item == 2:
            raise OSError("disk full")
        consumed.append(item)

    consumer = BackgroundConsumer(consume)

    def put_all():
        for i in range(10):
            consumer.put(i)
            time.sleep(0.005)
        consumer.close()

    with pytest.raises(OSError, match="disk full"):
        put_all()
    consumer.close()
    assert consumed == [0, 1], "items after the failure are dropped"
