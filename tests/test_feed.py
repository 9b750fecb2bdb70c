"""The queue between who makes chunks and who takes them."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from clipper_backup.feed import Feed, FeedAbortedError, Sink, Source, converted

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


def doubled(source: Source, sink: Sink) -> None:
    while data := source.read(1000):
        sink.write(data)
        sink.write(data)


def test_what_is_converted_comes_as_it_is_made() -> None:
    chunks = [bytes([n % 251]) * (n % 3000) for n in range(500)]
    made = b"".join(converted(chunks, doubled))
    assert len(made) == 2 * sum(map(len, chunks))
    assert set(made) == set(b"".join(chunks))


def test_who_stops_asking_ends_the_conversion() -> None:
    endless = converted(iter(lambda: bytes(1 << 20), b""), doubled)
    assert next(endless)
    endless.close()  # type: ignore[attr-defined]  # a generator
    assert not [thread for thread in threading.enumerate() if thread.name == "converter"]


@pytest.mark.parametrize("after_bytes", [0, 5000])
def test_what_the_converter_raises_is_raised_and_the_rest_is_not_asked_for(after_bytes: int) -> None:
    def fail(source: Source, sink: Sink) -> None:
        sink.write(source.read(after_bytes))
        raise ValueError("broken")

    asked = iter([bytes(1000)] * 100_000)
    with pytest.raises(ValueError, match="broken"):
        for _ in converted(asked, fail):
            pass
    assert next(asked, None) is not None


def test_what_the_chunks_raise_is_raised() -> None:
    def broken() -> Iterator[bytes]:
        yield bytes(10)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        b"".join(converted(broken(), doubled))
    assert not [thread for thread in threading.enumerate() if thread.name == "converter"]
