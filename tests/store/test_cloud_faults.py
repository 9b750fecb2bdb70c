"""Google Cloud Storage, Azure and S3 over bad networks and with bad answers: every call finishes or fails clearly."""

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import pytest

from clipper_backup.errors import AccessError, StoreUnavailableError
from clipper_backup.store.protocol import STREAM_CHUNK_BYTES, Store
from fixtures.azurite import AzureServer
from fixtures.fronts import Answer, HttpFront, Judge, Request
from fixtures.gcs import GcsServer
from fixtures.proxy import How, TcpProxy
from fixtures.store_calls import CALLS
from fixtures.stores import S3Server

MIB = 1 << 20
DENIED = Answer(403, b"<Error><Code>AccessDenied</Code><Message>Not any more.</Message></Error>")


@dataclass(frozen=True)
class Far:
    """A folder of a bucket, seen directly, and through whatever listens on a port of ours."""

    server: GcsServer | AzureServer | S3Server
    prefix: str

    @property
    def direct(self) -> Store:
        return self.server.open(self.prefix)

    def through(self, port: int, *, timeout_seconds: int = 5, retry_seconds: int = 20) -> Store:
        account = f"/{self.server.account}" if isinstance(self.server, AzureServer) else ""
        return self.server.open(
            self.prefix, endpoint=f"http://127.0.0.1:{port}{account}", timeout_seconds=timeout_seconds,
            retry_seconds=retry_seconds,
        )  # fmt: skip

    @property
    def completion(self) -> bytes:
        """What the request that ends an upload begins with; seen after its parts, it is the only one."""
        return b"comp=blocklist" if isinstance(self.server, AzureServer) else b"POST /"


@pytest.fixture(params=["gcs", "azure"])
def far(request: pytest.FixtureRequest, s3_prefix: str) -> Far:
    return Far(request.getfixturevalue(f"{request.param}_server"), s3_prefix)


@pytest.fixture(params=["gcs", "azure", "s3"])
def any_far(request: pytest.FixtureRequest, s3_prefix: str) -> Far:
    return Far(request.getfixturevalue(f"{request.param}_server"), s3_prefix)


@pytest.fixture
def proxy(far: Far) -> Iterator[TcpProxy]:
    with TcpProxy((far.server.host, far.server.port)) as proxy:
        yield proxy


def in_pieces(data: bytes) -> Iterator[bytes]:
    return (data[at : at + MIB] for at in range(0, len(data), MIB))


# -- connections that break (S3's are in test_remote.py)


@pytest.mark.soak(over=["far"])
@pytest.mark.parametrize("how", ["reset", "close", "stall"])
def test_a_stream_read_goes_on_where_it_broke(far: Far, proxy: TcpProxy, how: How) -> None:
    data = os.urandom(3 * STREAM_CHUNK_BYTES + 99)
    far.direct.put("k", data)
    proxy.break_after(STREAM_CHUNK_BYTES + 1_000_000, how=how, direction="answers", times=2)
    assert b"".join(far.through(proxy.port, timeout_seconds=2).get_stream("k")) == data
    assert proxy.struck == 2


@pytest.mark.soak(over=["far"])
@pytest.mark.parametrize("how", ["reset", "close", "stall"])
def test_the_parts_of_a_written_stream_are_sent_again(far: Far, proxy: TcpProxy, how: How) -> None:
    data = os.urandom(4 * STREAM_CHUNK_BYTES + 5)
    proxy.break_after(STREAM_CHUNK_BYTES + 1_000_000, how=how, direction="requests", times=2)
    assert far.through(proxy.port, timeout_seconds=2).put_stream("k", in_pieces(data)) == len(data)
    assert far.direct.get("k") == data
    assert proxy.struck == 2


@pytest.mark.soak(over=["far", "before"])
@pytest.mark.parametrize("how", ["reset", "stall"])
@pytest.mark.parametrize("before", [None, b"another"])
def test_an_upload_whose_last_answer_got_lost_is_found_complete(
    far: Far, proxy: TcpProxy, how: How, before: bytes | None
) -> None:
    if before is not None:
        far.direct.put("k", before)
    data = os.urandom(2 * STREAM_CHUNK_BYTES)

    def chunks() -> Iterator[bytes]:
        yield from (data, b"end")
        proxy.break_at(far.completion, how=how, direction="answers")

    assert far.through(proxy.port, timeout_seconds=2).put_stream("k", chunks()) == len(data) + 3
    assert far.direct.get("k") == data + b"end"
    assert proxy.struck == 1


def test_an_upload_that_was_not_completed_is_an_error(far: Far, proxy: TcpProxy) -> None:
    far.direct.put("k", b"before")

    def chunks() -> Iterator[bytes]:
        yield bytes(STREAM_CHUNK_BYTES + 1)
        proxy.break_at(far.completion, how="reset", direction="requests")

    with pytest.raises(StoreUnavailableError, match="the connection broke"):
        far.through(proxy.port, retry_seconds=0).put_stream("k", chunks())
    assert far.direct.get("k") == b"before"


@pytest.mark.soak(over=["far"])
@pytest.mark.parametrize("how", ["reset", "stall"])
def test_a_create_whose_answer_got_lost_is_ours(far: Far, proxy: TcpProxy, how: How) -> None:
    store = far.through(proxy.port, timeout_seconds=2)
    proxy.break_at(b"PUT /", how=how, direction="answers")
    store.put("holder", b"mine", create=True)
    assert store.get("holder") == b"mine"
    assert proxy.struck == 1


@pytest.mark.soak(over=["far", "name"])
@pytest.mark.parametrize("name", CALLS)
def test_every_call_outlives_an_outage(far: Far, proxy: TcpProxy, name: str) -> None:
    far.direct.put("k", b"x")
    store = far.through(proxy.port)
    proxy.refuse()
    before = proxy.connections
    recovery = threading.Timer(0.5, proxy.accept)
    recovery.start()
    CALLS[name](store)
    recovery.join()
    assert proxy.connections > before, "it came through when there was somebody again"


@pytest.mark.soak(over=["far"])
def test_an_upload_is_given_up_when_the_store_stays_away(far: Far, proxy: TcpProxy) -> None:
    far.direct.put("k", b"before")
    taken = count()

    def chunks() -> Iterator[bytes]:
        for number in taken:
            assert number < 5000, "it goes on for ever"
            if number == 20:
                proxy.refuse()
            yield bytes(MIB)

    with pytest.raises(StoreUnavailableError, match="connection refused"):
        far.through(proxy.port, timeout_seconds=1, retry_seconds=1).put_stream("k", chunks())
    assert next(taken) > 20
    assert far.direct.get("k") == b"before"


def test_a_stream_that_breaks_leaves_nothing(far: Far) -> None:
    """On Azure its blocks stay for a week, where nobody sees them; a later object of that name is whole all the same."""

    def chunks() -> Iterator[bytes]:
        yield bytes(3 * STREAM_CHUNK_BYTES)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        far.direct.put_stream("k", chunks())
    assert list(far.direct.list("")) == []
    far.direct.put("k", b"mine", create=True)
    data = os.urandom(STREAM_CHUNK_BYTES + 1)
    far.direct.put_stream("k", in_pieces(data))
    assert far.direct.get("k") == data


# -- answers that are no help


def every_third(answer: Answer) -> Judge:
    """Instead of the first, fourth, seventh … answer; the others are the server's."""
    numbers = count()
    lock = threading.Lock()

    def judge(request: Request) -> Answer | None:
        del request
        with lock:
            return answer if next(numbers) % 3 == 0 else None

    return judge


UNWILLING = {
    "gs": Answer(503, b"<Error><Code>SlowDown</Code></Error>", {"Retry-After": "1"}),
    "az": Answer(503, b"<Error><Code>ServerBusy</Code><Message>Busy.</Message></Error>", {"Retry-After": "1"}),
    "s3": Answer(500),
}


@pytest.mark.soak(over=["any_far", "name"])
@pytest.mark.parametrize("name", CALLS)
def test_a_store_that_is_unwilling_now_and_then_is_asked_again(any_far: Far, name: str) -> None:
    any_far.direct.put("k", b"x")
    answer = UNWILLING[any_far.direct.url.partition(":")[0]]
    with HttpFront((any_far.server.host, any_far.server.port), every_third(answer)) as front:
        CALLS[name](any_far.through(front.port))
        assert len(front.requests) >= 2


@pytest.mark.soak(over=["any_far", "cut_after"])
@pytest.mark.parametrize("cut_after", [0, 1_000_000])
@pytest.mark.parametrize("name", ["get", "get_stream", "get_ranges"])
def test_a_body_that_is_cut_short_is_never_the_whole(any_far: Far, name: str, cut_after: int) -> None:
    data = os.urandom(2 * STREAM_CHUNK_BYTES + 7)
    any_far.direct.put("k", data)
    numbers = count()

    def cut(request: Request) -> Answer | None:
        if request.method != "GET" or next(numbers) not in {0, 2}:
            return None
        answer = front.ask(request)
        return Answer(answer.status, answer.body, answer.headers, cut_after=min(cut_after, len(answer.body) - 1))

    calls: dict[str, Callable[[Store], bytes]] = {
        "get": lambda store: store.get("k"),
        "get_stream": lambda store: b"".join(store.get_stream("k")),
        "get_ranges": lambda store: b"".join(
            store.get_ranges("k", [(0, STREAM_CHUNK_BYTES), (STREAM_CHUNK_BYTES, len(data) - STREAM_CHUNK_BYTES)])
        ),
    }
    with HttpFront((any_far.server.host, any_far.server.port), cut) as front:
        assert calls[name](any_far.through(front.port)) == data
    assert next(numbers) >= 2


def denied_from(number_of_writes: int) -> Judge:
    """From the write of that number on, nothing may be changed any more."""
    numbers = count(1)
    lock = threading.Lock()

    def judge(request: Request) -> Answer | None:
        with lock:
            return DENIED if request.changes and next(numbers) >= number_of_writes else None

    return judge


@pytest.mark.soak(over=["any_far", "number"])
@pytest.mark.parametrize("number", [1, 2, 4, 6])
def test_a_right_that_is_lost_half_way_leaves_what_was_there(any_far: Far, number: int) -> None:
    any_far.direct.put("k", b"before")
    with (
        HttpFront((any_far.server.host, any_far.server.port), denied_from(number)) as front,
        pytest.raises(AccessError, match="403 AccessDenied Not any more"),
    ):
        any_far.through(front.port).put_stream("k", in_pieces(bytes(5 * STREAM_CHUNK_BYTES)))
    assert any_far.direct.get("k") == b"before"
    assert [info.key for info in any_far.direct.list("")] == ["k"]


READS: dict[str, Callable[[Store], object]] = {name: CALLS[name] for name in ("get", "get_stream", "get_ranges", "head", "list")}


@pytest.mark.soak(over=["any_far", "name"])
@pytest.mark.parametrize("name", READS)
def test_a_right_to_read_that_is_lost_is_said(any_far: Far, name: str) -> None:
    any_far.direct.put("k", b"x")
    with (
        HttpFront((any_far.server.host, any_far.server.port), lambda _: DENIED) as front,
        pytest.raises(AccessError, match=r"the store refused .*: 403"),
    ):
        READS[name](any_far.through(front.port))
