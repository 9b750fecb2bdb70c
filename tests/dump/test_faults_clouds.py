"""Sealed and signed dumps into clouds that misbehave: each one finishes, or says why not and commits nothing bad.

A cell is a cloud, a fault, and the request of a run that it strikes. Everything is real but the fault: the program, a small
database, the cloud's server, and before it a front that judges whole requests and a proxy that breaks connections.
"""

import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

import pytest

from clipper_backup.postgres.server import PrivateServer
from fixtures.cli import DEADLINE_SECONDS, PROGRAM, Outcome, RunCli, StartCli, environment
from fixtures.dump import (
    SMALL,
    begun_dumps,
    check_told,
    check_whole,
    committed_dumps,
    connection_settings,
    content_of_small,
    ended,
    objects,
    parts_of,
)
from fixtures.fronts import Answer, HttpFront, Request
from fixtures.keys import make_keys, opening, sealed_to
from fixtures.postgres import fresh_database, sql
from fixtures.proxy import TcpProxy
from fixtures.stores import StorePlace, place_in
from fixtures.sweeps import SOAK

pytestmark = pytest.mark.soak(share=0.25)

NOISE = """
CREATE TABLE noise (id int PRIMARY KEY, filling bytea);
ALTER TABLE noise ALTER filling SET STORAGE EXTERNAL;
INSERT INTO noise SELECT n, (SELECT string_agg(sha512((n || ' ' || m)::bytea), ''::bytea) FROM generate_series(1, 160) m)
FROM generate_series(1, 1000) n;
"""
"""10 MB that stay 10 MB: an archive of two parts."""
AWAY_SECONDS = 1.0
MINUTE_SECONDS = 60.0 if SOAK else 2.0


@dataclass(frozen=True)
class Fault:
    """What happens to the struck request, and with `lasting` to all after it; how a run then ends, and what it says."""

    strike: Callable[["Trouble", Request], Answer | None]
    lasting: bool = False
    code: int = 0
    said: str = ""
    hint: str = ""
    reads: bool = False
    """Whether it has to do with what is read alone."""


class Trouble:
    """The way to a bucket, with a fault on it from the first request on that looks like *moment* and is not about *but*."""

    def __init__(self, place: StorePlace, fault: Fault, moment: str, but: str) -> None:
        self._fault, self._moment, self._but = fault, re.compile(moment), but
        self._path = urlsplit(place.environment["BACKUP_ENDPOINT"]).path
        self._lock = threading.Lock()
        self.struck = 0
        self.timer: threading.Timer | None = None
        self.front = HttpFront(address_of(place), self._judge)
        self.proxy = TcpProxy(("127.0.0.1", self.front.port))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}{self._path}"

    def __enter__(self) -> Self:
        self.front.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.timer is not None:
            self.timer.join()
        self.proxy.close()
        self.front.__exit__(kind, error, trace)

    def _judge(self, request: Request) -> Answer | None:
        path = unquote(request.path)  # Google's is percent-encoded
        with self._lock:
            if self.struck and not self._fault.lasting:
                return None
            if not self.struck and (self._but in path or not self._moment.search(f"{request.method} {path}")):
                return None
            self.struck += 1
        return self._fault.strike(self, request)

    def go_away(self, seconds: float | None) -> Answer:
        """Refuse connections for so long; None: for good."""
        self.proxy.refuse()
        if seconds is not None:
            self.timer = threading.Timer(seconds, self.proxy.accept)
            self.timer.start()
        return BUSY


def address_of(place: StorePlace) -> tuple[str, int]:
    parts = urlsplit(place.environment["BACKUP_ENDPOINT"])
    return str(parts.hostname), int(parts.port or 0)


BUSY = Answer(503, b"<Error><Code>ServerBusy</Code><Message>Busy.</Message></Error>", {"Retry-After": "1"})
BROKEN = Answer(500, b"<Error><Code>InternalError</Code><Message>Our fault.</Message></Error>")
DENIED = Answer(403, b"<Error><Code>AccessDenied</Code><Message>Not any more.</Message></Error>")


def reset(trouble: Trouble, _: Request) -> Answer:
    trouble.proxy.break_after(0, how="reset", direction="answers")
    return BUSY  # should another connection be the one that is struck


def lost(trouble: Trouble, _: Request) -> None:
    trouble.proxy.break_after(0, how="reset", direction="answers")


def stalled(trouble: Trouble, _: Request) -> None:
    trouble.proxy.break_after(0, how="stall", direction="answers")


def late(trouble: Trouble, _: Request) -> None:
    threading.Event().wait(0.2)


def changed(change: Callable[[bytes], bytes] | None) -> Callable[[Trouble, Request], Answer | None]:
    """What is read comes with another body, which nothing tells; None: with half of it, where the connection ends."""

    def strike(trouble: Trouble, request: Request) -> Answer | None:
        if request.method != "GET":
            return None
        answer = trouble.front.ask(request)
        if change is None:
            return Answer(answer.status, answer.body, answer.headers, cut_after=len(answer.body) // 2)
        return Answer(answer.status, change(answer.body), answer.headers)

    return strike


UP = "up, and may this machine connect to it?"
FAULT: dict[str, Fault] = {
    "reset": Fault(reset),
    "answer lost": Fault(lost),
    "stalled": Fault(stalled),
    "500": Fault(lambda *_: BROKEN),
    "503": Fault(lambda *_: BUSY),
    "away": Fault(lambda trouble, _: trouble.go_away(AWAY_SECONDS)),
    "slow": Fault(late, lasting=True),
    "cut": Fault(changed(None), reads=True),
    "500 for good": Fault(lambda *_: BROKEN, lasting=True, code=1, said="500 InternalError", hint="STORE_RETRY_SECONDS"),
    "403 for good": Fault(lambda *_: DENIED, lasting=True, code=12, said="403 AccessDenied"),
    "gone": Fault(lambda trouble, _: trouble.go_away(None), code=1, said="cannot reach", hint=UP),
    "cut for good": Fault(changed(None), lasting=True, code=1, said="the connection broke", hint=UP, reads=True),
    "short": Fault(changed(lambda body: body[:-1]), lasting=True, code=1, said="broke off after", reads=True),
    "flipped": Fault(
        changed(lambda body: bytes([body[0] ^ 1]) + body[1:]), lasting=True, code=1, said="other bytes", reads=True
    ),
}  # fmt: skip
MOMENT = {
    "first request": "",
    "intent": r"^PUT .*\.intent",
    "part": r"^PUT .*\.dump\.zst\.age\?.*(partNumber=|comp=block&)",
    "completion": r"^POST .*\.dump\.zst\.age\?uploadId=|^PUT .*\.dump\.zst\.age\?.*comp=blocklist",
    "read back": r"^GET .*\.dump\.zst\.age",
    "signature": r"^PUT .*\.sig",
    "commit": r"^PUT .*\.backup\.json(\?|$)",
    "look": r"^GET .*\.backup\.json(\?|$)",
    "release": r"^PUT .*/released",
}
COMMITTED = {"look", "release"}
"""Moments when the dump is there already."""
READING = {"read back", "look"}
CELLS = [(fault, moment) for fault in FAULT for moment in MOMENT if not FAULT[fault].reads or moment in READING]


# -- what is dumped, and what lies in the bucket before


@dataclass(frozen=True)
class Seed:
    """A database, the settings of a job that seals and signs and of who reads, and a repository with one dump."""

    server: PrivateServer
    database: str
    writing: Mapping[str, str]
    reading: Mapping[str, str]
    objects: Mapping[str, bytes] = field(repr=False)

    @property
    def earlier(self) -> str:
        return committed_dumps(self.objects)[0]


@pytest.fixture(scope="session")
def seed(postgres15: PrivateServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seed]:
    folder = tmp_path_factory.mktemp("sealed")
    keys = make_keys(folder)
    with fresh_database(postgres15) as database:
        sql(postgres15, database, SMALL)
        sql(postgres15, database, NOISE)
        login = connection_settings(postgres15) | {"BACKUP_DATABASES": database}
        writing = login | sealed_to(keys) | {"SIGNING_KEY_FILE": str(keys["signer"].path)}
        reading = login | opening(keys["recovery"]) | {"SIGNATURE_KEYS": keys["signer"].public}
        store = folder / "repository"
        variables = environment(writing | {"BACKUP_URL": f"file://{store}"})
        subprocess.run([*PROGRAM, "dump", "create", "--quiet"], env=variables, check=True, timeout=DEADLINE_SECONDS)
        yield Seed(postgres15, database, writing, reading, objects(store))


@dataclass(frozen=True)
class Cloud:
    """A bucket with the seed's dump in it."""

    seed: Seed
    place: StorePlace
    run_cli: RunCli

    def run(self, *words: str, **settings: str) -> Outcome:
        return self.run_cli(*words, env={**self.place.environment, **settings})

    def objects(self) -> dict[str, bytes]:
        """What lies in it, seen without the fault; the earlier dump is what it was, and every other one is whole."""
        store = self.place.open()
        found = {info.key: store.get(info.key) for info in store.list("")}
        check_whole(found)
        assert parts_of(found, self.seed.earlier) == parts_of(self.seed.objects, self.seed.earlier)
        return found

    def check_next_run(self) -> None:
        """A day later, by the store's clock, the job takes a dump, and takes away what failed runs left."""
        front = HttpFront(address_of(self.place), lambda request: a_day_later(front, request))
        with front:
            endpoint = f"http://127.0.0.1:{front.port}{urlsplit(self.place.environment['BACKUP_ENDPOINT']).path}"
            outcome = self.run("job", "postgres-backup", **{**self.seed.writing, "BACKUP_ENDPOINT": endpoint})
        assert outcome.code == 0, outcome
        found = self.objects()
        assert begun_dumps(found) == set(committed_dumps(found))
        assert [key.rpartition("/")[2] for key in found if key.startswith("locks/")] == ["holder", "released"]

    def check_restores(self, into: str) -> None:
        outcome = self.run("dump", "restore", "latest", "--into", into, **self.seed.reading)
        assert outcome.code == 0, outcome
        assert content_of(self.seed.server, into) == content_of(self.seed.server, self.seed.database)


def a_day_later(front: HttpFront, request: Request) -> Answer | None:
    """The store's clock is what it says of its object `clock`."""
    if request.method != "HEAD" or not unquote(request.path).endswith("/clock"):
        return None
    answer = front.ask(request)
    headers = {name.lower(): value for name, value in answer.headers.items()}
    moment = parsedate_to_datetime(headers["last-modified"]) + timedelta(hours=25)
    return Answer(answer.status, headers=headers | {"last-modified": format_datetime(moment, usegmt=True)})


def content_of(server: PrivateServer, database: str) -> list[tuple[object, ...]]:
    noise = sql(server, database, "SELECT count(*), md5(string_agg(md5(filling), '' ORDER BY id)) FROM noise")
    return content_of_small(server, database) + noise


@pytest.fixture
def cloud(request: pytest.FixtureRequest, kind: str, seed: Seed, run_cli: RunCli) -> Cloud:
    place = place_in(request, kind)
    store = place.open()
    for key, data in seed.objects.items():
        if not key.startswith("locks/"):
            store.put(key, data)
    return Cloud(seed, place, run_cli)


@pytest.fixture
def into(seed: Seed) -> Iterator[str]:
    name = f"{seed.database}_restored"
    yield name
    sql(seed.server, "postgres", f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


KINDS = pytest.mark.parametrize("kind", ["s3", "gcs", "azure"])


@pytest.mark.soak(over=["fault", "moment"])
@pytest.mark.parametrize(("fault", "moment"), CELLS)
@KINDS
def test_whatever_the_network_and_the_cloud_do_a_dump_is_whole_or_absent_and_the_next_run_succeeds(
    cloud: Cloud, fault: str, moment: str, into: str
) -> None:
    happens = FAULT[fault]
    hurry = {"STORE_TIMEOUT_SECONDS": "2", "STORE_RETRY_SECONDS": "1" if happens.code else "20"}
    with Trouble(cloud.place, happens, MOMENT[moment], cloud.seed.earlier) as trouble:
        outcome = cloud.run("dump", "create", **{**cloud.seed.writing, **hurry, "BACKUP_ENDPOINT": trouble.endpoint})
    assert trouble.struck, "the fault did not take place"
    made = set(committed_dumps(cloud.objects())) - {cloud.seed.earlier}

    if happens.code == 0 or moment == "release":
        assert outcome.code == 0, outcome
        assert len(made) == 1
    else:
        check_told(outcome, happens.code, happens.said, hint=happens.hint)
        assert not made or moment in COMMITTED
        cloud.check_next_run()
    cloud.check_restores(into)


@pytest.mark.soak(over=["kind"])
@KINDS
def test_a_cloud_that_goes_away_for_a_minute_gets_a_whole_dump_all_the_same(cloud: Cloud, start_cli: StartCli, into: str) -> None:
    fault = Fault(lambda trouble, _: trouble.go_away(MINUTE_SECONDS))
    with Trouble(cloud.place, fault, MOMENT["part"], cloud.seed.earlier) as trouble:
        process = start_cli(
            "dump", "create", env={**cloud.place.environment, **cloud.seed.writing, "BACKUP_ENDPOINT": trouble.endpoint}
        )
        process.wait(MINUTE_SECONDS + DEADLINE_SECONDS)
        outcome = ended(process)
    assert trouble.struck == 1
    assert outcome.code == 0, outcome
    assert len(committed_dumps(cloud.objects())) == 2
    cloud.check_restores(into)
