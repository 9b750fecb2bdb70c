"""The queue between who makes chunks and who takes them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from clipper_backup.feed import Feed, FeedAbortedError

DEADLINE_SECONDS = 30


def test_all_chunks_arrive_in_their_order_and_never_many_wait() -> None:
    feed = Feed(100)
    chunks = [bytes([n % 251]) * (1 + n % 90) for n in range(3000)]
    waiting = []

    def make() -> None:
        for chunk in chunks:
            assert feed.send(chunk)
            waiting.append(feed.waiting_bytes)
        feed.finish()

    with ThreadPoolExecutor(1) as pool:
        made = pool.submit(make)
        assert list(feed) == chunks
        made.result(DEADLINE_SECONDS)
    assert max(waiting) < 100 + 90


def test_a_maker_waits_until_there_is_room() -> None:
    feed = Feed(10)
    assert feed.send(b"x" * 10)
    begun = threading.Event()

    def send_another() -> int:
        begun.set()
        assert feed.send(b"y")
        return feed.waiting_bytes

    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(send_another)
        assert begun.wait(DEADLINE_SECONDS)
        assert feed.waiting_bytes == 10
        assert next(feed) == b"x" * 10
        assert second.result(DEADLINE_SECONDS) <= 1
    assert next(feed) == b"y"


def test_a_taker_learns_that_the_maker_gave_up_also_while_chunks_wait() -> None:
    feed = Feed(10)
    feed.send(b"half of it")
    feed.abort()
    with pytest.raises(FeedAbortedError):
        next(feed)


def test_a_taker_that_waits_learns_that_the_maker_gave_up() -> None:
    feed = Feed(10)
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(lambda: next(feed))
        feed.abort()
        with pytest.raises(FeedAbortedError):
            taken.result(DEADLINE_SECONDS)


def test_what_nobody_takes_is_refused_and_not_kept() -> None:
    feed = Feed(10)
    feed.send(b"x" * 10)
    with ThreadPoolExecutor(1) as pool:
        refused = pool.submit(lambda: feed.send(b"y"))
        feed.close()
        assert not refused.result(DEADLINE_SECONDS)
    assert not feed.send(b"z")
    assert feed.waiting_bytes == 10
