"""The bucket store on a real S3 server: its errors, its broken connections, and what they cost."""

import abc
import contextlib
import gc
import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.errors import (
    AccessError,
    ClipperError,
    MissingError,
    ObjectMissingError,
    StoreError,
    StoreUnavailableError,
)
from clipper_backup.store import remote
from clipper_backup.store.clouds import AZURE, GCS, S3, Cloud
from clipper_backup.store.opening import open_store
from clipper_backup.store.protocol import STREAM_CHUNK_BYTES, Store
from clipper_backup.store.remote import ObstoreStore
from clipper_backup.store.remote_open import Reach, open_s3
from fixtures.proxy import How, TcpProxy
from fixtures.store_calls import CALLS, WRITING
from fixtures.stores import S3Server

MIB = 1 << 20
LAST_MODIFIED = "Sun, 22 Nov 2026 02:00:00 GMT"


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[TcpProxy]:
    with TcpProxy((s3_server.host, s3_server.port)) as proxy:
        yield proxy


@pytest.fixture
def proxied(s3_server: S3Server, s3_prefix: str, proxy: TcpProxy) -> Store:
    """The store behind the proxy: a stalled request is given up after one second."""
    return s3_server.open(s3_prefix, endpoint=f"http://127.0.0.1:{proxy.port}", timeout_seconds=1, retry_seconds=20)


@pytest.fixture
def direct(s3_server: S3Server, s3_prefix: str) -> Store:
    """The same store without the proxy."""
    return s3_server.open(s3_prefix)


def unwrapped(server: S3Server, prefix: str, reach: Reach, cloud: Cloud = S3) -> ObstoreStore:
    """The store without the wrapper that retries."""
    credentials = {"access_key_id": server.access_key, "secret_access_key": server.secret_key}
    return open_s3(server.bucket, f"{prefix}/", reach, credentials=credentials, cloud=cloud)


@pytest.fixture
def adapter(s3_server: S3Server, s3_prefix: str, proxy: TcpProxy) -> ObstoreStore:
    """The store behind the proxy without the wrapper that retries: nothing here stalls, so it may take its time."""
    reach = Reach(endpoint=f"http://127.0.0.1:{proxy.port}", timeout_seconds=30, retry_seconds=20)
    return unwrapped(s3_server, s3_prefix, reach)


def keys(access_key: str, secret_key: str) -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key}


def check_message(error: ClipperError, server: S3Server) -> None:
    said = " ".join([error.message, *error.hints])
    secrets = [server.secret_key, server.reader_secret_key]
    assert not any(word in said for word in (*secrets, "wrong", "Debug", "source", "uploadId", "<", "\n"))
    assert error.hints


# -- what people get wrong


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("changed", [{"AWS_SECRET_ACCESS_KEY": "wrong"}, {"AWS_ACCESS_KEY_ID": "wrong"}], ids=["secret", "key"])
def test_wrong_credentials(s3_server: S3Server, s3_prefix: str, changed: dict[str, str], call: Callable[[Store], object]) -> None:
    store = s3_server.open(s3_prefix, environment=changed)
    with pytest.raises(AccessError, match=f"the store refused s3://{s3_server.bucket}/{s3_prefix}/.*: 403") as caught:
        call(store)
    check_message(caught.value, s3_server)


@pytest.mark.parametrize(("name", "call"), CALLS.items(), ids=CALLS)
def test_a_role_that_may_only_read(s3_server: S3Server, s3_prefix: str, name: str, call: Callable[[Store], object]) -> None:
    s3_server.open(s3_prefix).put("k", b"x")
    reader = s3_server.open(s3_prefix, environment=keys(s3_server.reader_access_key, s3_server.reader_secret_key))
    if name not in WRITING:
        call(reader)
        return
    with pytest.raises(AccessError, match="AccessDenied") as caught:
        call(reader)
    check_message(caught.value, s3_server)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_bucket_that_does_not_exist(s3_server: S3Server, call: Callable[[Store], object]) -> None:
    store = open_store(
        "s3://no-such-bucket/x", endpoint=s3_server.endpoint, timeout_seconds=10, retry_seconds=10, clock=SystemClock(),
        environment=s3_server.environment,
    )  # fmt: skip
    with pytest.raises(MissingError) as caught:
        call(store)
    assert type(caught.value) is MissingError
    assert caught.value.message == f"there is no bucket no-such-bucket at {s3_server.endpoint}"
    check_message(caught.value, s3_server)


def test_a_missing_object_in_a_bucket_that_exists_names_it(s3_server: S3Server, s3_prefix: str, direct: Store) -> None:
    for _ in range(2):
        with pytest.raises(ObjectMissingError, match=f"no object s3://{s3_server.bucket}/{s3_prefix}/k"):
            direct.head("k")


def test_who_may_not_list_is_told_of_the_object_too(s3_server: S3Server, s3_prefix: str) -> None:
    getter = s3_server.open(s3_prefix, environment=keys(s3_server.getter_access_key, s3_server.getter_secret_key))
    with pytest.raises(AccessError):
        getter.list("")
    with pytest.raises(ObjectMissingError):
        getter.head("k")


def test_a_bucket_promises_both(direct: Store) -> None:
    assert (direct.capabilities.conditional_create, direct.capabilities.durable) == (True, True)


def test_prefixes_keep_to_themselves(s3_server: S3Server, s3_prefix: str) -> None:
    stores = [s3_server.open(f"{s3_prefix}/{name}") for name in ("a", "a/b", "ab")]
    for number, store in enumerate(stores):
        store.put("k", b"%d" % number)
        store.now()
    assert [store.get("k") for store in stores] == [b"0", b"1", b"2"]
    assert [[info.key for info in store.list("")] for store in stores] == [["b/clock", "b/k", "k"], ["k"], ["k"]]
    stores[0].delete(["k"])
    assert stores[1].get("k") == b"1"


def test_objects_that_are_no_keys_are_not_listed(s3_server: S3Server, s3_prefix: str, direct: Store) -> None:
    direct.put("k", b"x")
    for name in ("not%20a%20key", ".hidden"):
        assert s3_server.ask_filer("PUT", f"{s3_prefix}/{name}")[0] == 201
    assert [info.key for info in direct.list("")] == ["k"]


# -- connections that break


@pytest.mark.parametrize("how", ["reset", "close", "stall"])
def test_a_stream_read_goes_on_where_it_broke(proxy: TcpProxy, proxied: Store, direct: Store, how: How) -> None:
    data = os.urandom(3 * STREAM_CHUNK_BYTES + 99)
    direct.put("k", data)
    proxy.break_after(STREAM_CHUNK_BYTES + 1_000_000, how=how, direction="answers", times=2)
    assert b"".join(proxied.get_stream("k")) == data
    assert proxy.struck == 2


@pytest.mark.parametrize("how", ["reset", "close"])
def test_a_cut_body_is_never_the_whole(proxy: TcpProxy, adapter: ObstoreStore, direct: Store, how: How) -> None:
    direct.put("k", bytes(100_000))
    reads: list[Callable[[], object]] = [
        lambda: adapter.get("k"),
        lambda: list(adapter.get_stream("k")),
        lambda: adapter.get_ranges("k", [(0, 100_000)]),
    ]
    for read in reads:
        proxy.break_after(50_000, how=how, direction="answers")
        with pytest.raises(StoreUnavailableError, match="the connection broke"):
            read()


def test_an_object_replaced_during_a_read_is_an_error(adapter: ObstoreStore, direct: Store) -> None:
    direct.put("k", bytes(6 * STREAM_CHUNK_BYTES))
    pieces = adapter.get_stream("k")
    next(pieces)
    direct.put("k", b"x" * 6 * STREAM_CHUNK_BYTES)
    with pytest.raises(StoreError, match="/k was replaced while it was read"):
        list(pieces)


@pytest.mark.parametrize("how", ["reset", "close", "stall"])
def test_the_parts_of_a_written_stream_are_sent_again(proxy: TcpProxy, proxied: Store, direct: Store, how: How) -> None:
    data = os.urandom(4 * STREAM_CHUNK_BYTES + 5)
    proxy.break_after(STREAM_CHUNK_BYTES + 1_000_000, how=how, direction="requests", times=2)
    size = proxied.put_stream("k", (data[at : at + MIB] for at in range(0, len(data), MIB)))
    assert size == len(data)
    assert direct.get("k") == data
    assert proxy.struck == 2


@pytest.mark.soak(over=["how", "passing_bytes"])
@pytest.mark.parametrize("how", ["reset", "close", "stall"])
@pytest.mark.parametrize("passing_bytes", [0, 300])
@pytest.mark.parametrize("before", [None, b"another"])
def test_an_upload_whose_last_answer_got_lost_is_found_complete(
    proxy: TcpProxy, proxied: Store, direct: Store, how: How, passing_bytes: int, before: bytes | None
) -> None:
    if before is not None:
        direct.put("k", before)
    data = os.urandom(2 * STREAM_CHUNK_BYTES)

    def chunks() -> Iterator[bytes]:
        yield from (data, b"end")
        # The beginning of the upload is a POST as well; from here on the only one is its completion.
        proxy.break_at(b"POST /", how=how, direction="answers", after_bytes=passing_bytes)

    assert proxied.put_stream("k", chunks()) == len(data) + 3
    assert direct.get("k") == data + b"end"
    assert proxy.struck == 1


def test_an_upload_that_was_not_completed_is_an_error(
    proxy: TcpProxy, s3_server: S3Server, s3_prefix: str, direct: Store
) -> None:
    direct.put("k", b"before")
    impatient = s3_server.open(s3_prefix, endpoint=f"http://127.0.0.1:{proxy.port}", retry_seconds=0)

    def chunks() -> Iterator[bytes]:
        yield bytes(STREAM_CHUNK_BYTES + 1)
        proxy.break_at(b"POST /", how="reset", direction="requests")

    with pytest.raises(StoreUnavailableError, match="the connection broke"):
        impatient.put_stream("k", chunks())
    assert direct.get("k") == b"before"


def test_what_was_put_is_let_go_at_once(adapter: ObstoreStore) -> None:
    """Also where the object was not there before, an error inside: each pack of a backup stayed until garbage was collected."""
    data = bytes(STREAM_CHUNK_BYTES + 1)
    held = sys.getrefcount(data)
    gc.disable()
    try:
        for number in range(3):
            adapter.put(f"put/{number}", data)
        assert sys.getrefcount(data) == held
    finally:
        gc.enable()


@pytest.mark.parametrize("how", ["reset", "close", "stall"])
def test_a_create_whose_answer_got_lost_is_ours(proxy: TcpProxy, proxied: Store, how: How) -> None:
    proxy.break_at(b"PUT /", how=how, direction="answers")
    proxied.put("holder", b"mine", create=True)
    assert proxied.get("holder") == b"mine"
    assert proxy.struck == 1


@pytest.mark.soak(over=["name"])
@pytest.mark.parametrize("name", CALLS)
def test_every_call_outlives_an_outage(proxy: TcpProxy, proxied: Store, direct: Store, name: str) -> None:
    direct.put("k", b"x")
    proxy.refuse()
    recovery = threading.Timer(0.5, proxy.accept)
    recovery.start()
    CALLS[name](proxied)
    recovery.join()
    assert proxy.connections > 0, "it came through when there was somebody again"


def test_an_upload_is_given_up_when_the_store_stays_away(proxy: TcpProxy, s3_server: S3Server, s3_prefix: str) -> None:
    store = s3_server.open(s3_prefix, endpoint=f"http://127.0.0.1:{proxy.port}", timeout_seconds=1, retry_seconds=1)
    taken = 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        while True:
            yield bytes(MIB)
            taken += 1
            if taken == 20:
                proxy.refuse()
            assert taken < 5000, "it goes on for ever"

    with pytest.raises(StoreUnavailableError, match="connection refused"):
        store.put_stream("k", chunks())
    assert taken >= 20


# -- what it costs


class _Handler(http.server.BaseHTTPRequestHandler, abc.ABC):
    """A server that can be told what no real one could: see its subclasses."""

    requests = 0

    @abc.abstractmethod
    def answer(self) -> None:
        """Send the whole answer."""

    def receive(self) -> None:
        type(self).requests += 1
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = receive  # noqa: N815 # the base's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # the base's name
        """Nothing."""


@contextlib.contextmanager
def served(handler: type[_Handler]) -> Iterator[ObstoreStore]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        reach = Reach(endpoint=f"http://127.0.0.1:{server.server_port}", timeout_seconds=5, retry_seconds=1)
        yield open_s3("clipper", "", reach, credentials={"access_key_id": "k", "secret_access_key": "s"})
        server.shutdown()
        thread.join()


@pytest.fixture
def busy() -> Iterator[tuple[type[_Handler], ObstoreStore]]:
    class Busy(_Handler):
        """Answers everything with 503."""

        def answer(self) -> None:
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with served(Busy) as store:
        yield Busy, store


def test_a_server_that_sends_less_than_it_says_is_not_believed() -> None:
    class Lying(_Handler):
        def answer(self) -> None:
            self.send_response(206)
            headers = {"Content-Range": "bytes 0-99/100", "Content-Length": "10", "ETag": '"a"', "Last-Modified": LAST_MODIFIED}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(bytes(10))

    with served(Lying) as store:
        with pytest.raises(StoreUnavailableError, match="s3://clipper/k broke off after 10 bytes"):
            store.get("k")
        with pytest.raises(StoreUnavailableError, match="s3://clipper/k broke off after 10 bytes"):
            list(store.get_stream("k"))
        with pytest.raises(StoreError, match="s3://clipper/k is shorter than what was asked of it"):
            store.get_ranges("k", [(0, 100)])


@pytest.mark.parametrize("name", sorted(set(CALLS) - {"put_stream", "put_stream in parts", "put in parts"}))
def test_the_adapter_itself_asks_once(busy: tuple[type[_Handler], ObstoreStore], name: str) -> None:
    """Retries belong to the wrapper: two layers of them would multiply."""
    server, store = busy
    with pytest.raises(StoreUnavailableError, match=r"cannot serve .* now: 503"):
        CALLS[name](store)
    assert server.requests == 1


@pytest.mark.parametrize("name", ["put_stream", "put_stream in parts", "put in parts"])
def test_what_nobody_else_can_send_again_is_retried_by_the_adapter(busy: tuple[type[_Handler], ObstoreStore], name: str) -> None:
    server, store = busy
    begun = time.monotonic()
    with pytest.raises(StoreUnavailableError):
        CALLS[name](store)
    assert server.requests > 1
    assert time.monotonic() - begun < 10


def test_a_failed_upload_is_taken_back(s3_server: S3Server, s3_prefix: str, direct: Store) -> None:
    seen = []

    def chunks() -> Iterator[bytes]:
        for _ in range(30):
            yield bytes(MIB)
        seen.append(s3_server.unfinished_uploads(f"{s3_prefix}/k"))
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        direct.put_stream("k", chunks())
    assert seen == [1]
    assert s3_server.unfinished_uploads(f"{s3_prefix}/k") == 0
    assert list(direct.list("")) == []


@pytest.mark.parametrize("cloud", [S3, GCS, AZURE], ids=lambda cloud: cloud.scheme)
@pytest.mark.parametrize("expected_bytes", [0, 1, 80 * 10**9, 84 * 10**9, 10**12, 5 * 10**12])
def test_parts_are_large_enough_for_what_is_expected(expected_bytes: int, cloud: Cloud) -> None:
    part_bytes = remote._part_bytes(expected_bytes, cloud.parts_max)
    assert part_bytes * cloud.parts_max >= expected_bytes
    assert part_bytes >= STREAM_CHUNK_BYTES
    assert part_bytes % MIB == 0
    assert remote._part_bytes(None, cloud.parts_max) == STREAM_CHUNK_BYTES


def test_larger_parts_hold_the_same_bytes(direct: Store) -> None:
    data = os.urandom(60 * MIB)
    direct.put_stream("k", (data[at : at + 700_000] for at in range(0, len(data), 700_000)), expected_bytes=200 * 10**9)
    assert b"".join(direct.get_stream("k")) == data


def test_a_stream_beyond_the_last_part_is_an_error(s3_server: S3Server, s3_prefix: str) -> None:
    reach = Reach(endpoint=s3_server.endpoint, timeout_seconds=30, retry_seconds=30)
    store = unwrapped(s3_server, s3_prefix, reach, replace(S3, parts_max=2))
    with pytest.raises(StoreError, match=r"/k grew beyond 16\.8 MB, all that its 2 parts can hold"):
        store.put_stream("k", (bytes(MIB) for _ in range(17)))
    assert s3_server.unfinished_uploads(f"{s3_prefix}/k") == 0
    assert store.put_stream("k", (bytes(MIB) for _ in range(16))) == 16 * MIB


STREAMING = """
import os, resource, sys
from clipper_backup.clock import SystemClock
from clipper_backup.store.opening import open_store
store = open_store(
    sys.argv[1], endpoint=sys.argv[2], timeout_seconds=30, retry_seconds=30, clock=SystemClock(), environment=os.environ
)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
store.put_stream("k", [bytes(1 << 20)] * 10)
before = peak()
store.put_stream("k", (os.urandom(1 << 17) for _ in range(8 * 250)))
written = peak()
size = sum(map(len, store.get_stream("k")))
print(size, written - before, peak() - before)
"""


def test_a_stream_of_any_length_needs_little_memory(s3_server: S3Server, s3_prefix: str) -> None:
    child = subprocess.run(
        [sys.executable, "-c", STREAMING, f"s3://{s3_server.bucket}/{s3_prefix}", s3_server.endpoint],
        env=os.environ | s3_server.environment, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    size, writing, all_of_it = map(int, child.stdout.split())
    assert size == 250 * MIB
    # Beyond what ten MiB needed already: a filling part, three on their way, the allocator's slack.
    assert writing < 6 * STREAM_CHUNK_BYTES
    assert all_of_it < 8 * STREAM_CHUNK_BYTES


STALLED = """
import os, signal, sys, time
from clipper_backup.clock import SystemClock
from clipper_backup.store.opening import open_store
store = open_store(
    sys.argv[1], endpoint=sys.argv[2], timeout_seconds=60, retry_seconds=60, clock=SystemClock(), environment=os.environ
)
def stop(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGTERM, stop)
def chunks():
    while True:
        yield bytes(1 << 20)
calls = {"put": lambda: store.put("k", b"x"), "get_stream": lambda: list(store.get_stream("k")),
         "put_stream": lambda: store.put_stream("k", chunks())}
print("ready", flush=True)
try:
    calls[sys.argv[3]]()
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


@pytest.mark.parametrize("name", ["put", "get_stream", "put_stream"])
def test_a_signal_is_heard_while_the_store_stalls(
    s3_server: S3Server, s3_prefix: str, proxy: TcpProxy, direct: Store, name: str
) -> None:
    direct.put("k", bytes(1000))
    proxy.break_after(0, how="stall", direction="answers", times=1000)
    command = [sys.executable, "-c", STALLED, f"s3://{s3_server.bucket}/{s3_prefix}", f"http://127.0.0.1:{proxy.port}", name]
    with subprocess.Popen(command, env=os.environ | s3_server.environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        while proxy.struck == 0:
            time.sleep(0.01)
        begun = time.monotonic()
        child.terminate()
        assert child.stdout.readline() == "stopped\n"
        assert child.wait(timeout=30) == 0
    assert time.monotonic() - begun < 20
