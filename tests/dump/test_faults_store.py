"""What breaks in the store while a dump is taken, and two runs that want it at once."""

import contextlib
import itertools
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from clipper_backup.store.protocol import Store
from fixtures.cli import PROGRAM, Outcome
from fixtures.dump import (
    AT_GATE,
    FAULTS,
    Site,
    begun_dumps,
    check_told,
    check_whole,
    committed_dumps,
    count_calls,
    ended,
    gate_closed,
    halted,
    let_time_pass,
    parts_of,
    wait_for_session,
)
from fixtures.fronts import Answer, HttpFront, Judge
from fixtures.keys import Key, opening
from fixtures.proxy import Direction, How, TcpProxy
from fixtures.stores import S3Server, StorePlace, place_in
from fixtures.sweeps import chosen

pytestmark = pytest.mark.soak(share=0.25)

FAILURES = 3


# -- failing at each of its calls


@pytest.mark.soak
@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "sealed and signed"])
def test_a_store_that_fails_at_any_call_leaves_no_dump_or_a_whole_one(
    site: Site, keys: dict[str, Key], sealing: dict[str, str], sealed: bool
) -> None:
    settings = {**sealing, "SIGNING_KEY_FILE": str(keys["signer"].path)} if sealed else {}
    calls = count_calls(site, "dump", "create", **settings)
    for fault in chosen(
        [f"*:{n}{fault}" for n in range(1, calls + 1) for fault in (":broken", ":denied", "+:unavailable")], FAILURES
    ):
        committed, begun = site.dumps, begun_dumps(site.objects)
        outcome = site.run("dump", "create", STORE_RETRY_SECONDS="0", **settings, **{FAULTS: fault})
        site.check_untouched()
        if outcome.code == 0:  # it failed after the commit, or where that does not matter
            assert len(site.dumps) == len(committed) + 1
        else:
            failed = fault.rpartition(":")[0].rstrip("+")
            check_told(outcome, 12 if "denied" in fault else 1, f"scripted fault {failed}", hint=None)
            # One that was committed, and then could neither be looked at nor taken back, is there and whole.
            assert site.dumps == committed or "+" in fault
            assert begun_dumps(site.objects) == begun or "+" in fault, "the store works again, and what was begun is left in it"
        let_time_pass(site.folder, hours=1, below="locks")  # a store that failed to the end could not be told of the release
    site.check_recovers(**settings)
    reading = {**opening(keys["operator"]), "SIGNATURE_KEYS": keys["signer"].public} if sealed else {}
    outcome = site.run("dump", "verify", site.dumps[-1], **reading)
    assert outcome.code == 0, outcome


def test_a_store_that_fails_every_second_time_is_asked_again(site: Site) -> None:
    methods = ("put", "get", "get_stream", "head", "list", "now")
    faults = [f"{method}:{number}:{effect}" for method in methods for number, effect in _every_second(40)]
    # Each key is a removal of its own, and a repeated one begins with the first key: with even gaps it would never end.
    faults += [f"delete:{number * (number + 1) // 2}:{('unavailable', 'lost')[number % 2]}" for number in range(1, 10)]
    outcome = site.run("job", "postgres-backup", RETENTION_MIN_DUMPS="1", **{FAULTS: ",".join(faults)})

    assert outcome.code == 0, outcome
    assert site.old not in site.dumps
    assert len(site.dumps) == 2
    site.check_untouched(but=[site.old])


def _every_second(count: int) -> Iterator[tuple[int, str]]:
    """Each call fails once, nothing done or all done in turn, and succeeds when it is repeated."""
    for number in range(1, count, 4):
        yield number, "unavailable"
        yield number + 2, "lost"


# -- a disk that is full


@dataclass(frozen=True)
class SmallDisk:
    """A folder that takes 1 MB, at least from `program`."""

    folder: Path
    program: Sequence[str]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A file system of 1 MB; where none may be mounted, a limit for the size of a file."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mounting, capture_output=True, check=False).returncode != 0:
        yield SmallDisk(folder, limited_files())
        return
    try:
        yield SmallDisk(folder, PROGRAM)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def limited_files() -> Sequence[str]:
    """The program when it may write files of 1 MB at most."""
    return ("prlimit", f"--fsize={1 << 20}", *PROGRAM)


def test_a_disk_that_is_full_is_named_and_what_was_written_is_removed(site: Site, bulky: str, small_disk: SmallDisk) -> None:
    here = site.moved_to(small_disk.folder / "repository")
    outcome = here.run("dump", "create", program=small_disk.program, BACKUP_DATABASES=bulky)

    here.check_refused(outcome, 1, f"{here.folder}/database/", hint="free space on that file system")
    assert begun_dumps(here.objects) == set(here.dumps)
    assert list((here.folder / ".tmp").iterdir()) == []
    here.check_recovers()


def test_a_file_that_may_grow_no_further_is_named(site: Site, bulky: str) -> None:
    outcome = site.run("dump", "create", program=limited_files(), BACKUP_DATABASES=bulky)

    site.check_refused(outcome, 1, f"{site.folder}/database/", "too large", hint="move the repository")
    site.check_recovers()


# -- two runs at once


def test_a_run_gives_way_to_one_that_works_and_names_it(site: Site) -> None:
    with gate_closed(site.server, site.database):
        first = site.start("dump", "create", LEASE_SECONDS="2")
        wait_for_session(site.server, AT_GATE)
        second = site.run("job", "postgres-backup", LEASE_SECONDS="2")
        site.check_refused(second, 11, f"pid {first.pid}", "dump create", hint="frees itself in")

    assert ended(first).code == 0
    assert len(site.dumps) == 3
    site.check_untouched()


def test_a_run_waits_for_another_that_ends_in_time(site: Site) -> None:
    with gate_closed(site.server, site.database):
        first = site.start("dump", "create")
        wait_for_session(site.server, AT_GATE)
        second = site.start("dump", "create", **{FAULTS: "list:2:stop"})
        assert halted(second), "it did not ask twice for the lease"
    assert ended(first).code == 0
    second.send_signal(signal.SIGCONT)

    assert ended(second).code == 0
    assert len(site.dumps) == 4
    site.check_untouched()


def slept_while_another_ran(site: Site, fault: str) -> Outcome:
    """How a run ends that was halted at a call to the store, while another one took its place and committed."""
    sleeper = site.start("dump", "create", **{FAULTS: fault})
    assert halted(sleeper)
    let_time_pass(site.folder, hours=1, below="locks")
    assert site.run("dump", "create").code == 0
    assert len(site.dumps) == 3
    sleeper.send_signal(signal.SIGCONT)
    return ended(sleeper)


def test_a_run_that_slept_while_another_took_its_place_commits_nothing(site: Site) -> None:
    check_told(slept_while_another_ran(site, "put:4:stop"), 11, "lease", "lost", hint="look for another job")
    assert begun_dumps(site.objects) == set(site.dumps)
    assert len(site.dumps) == 3
    site.check_untouched()


def test_a_run_that_slept_between_its_last_look_and_its_commit_harms_nobody(site: Site) -> None:
    assert slept_while_another_ran(site, "put:5:stop").code == 0
    assert len(site.dumps) == 4
    site.check_untouched()


# -- a bucket behind a bad network


@dataclass(frozen=True)
class FarBucket:
    """A bucket behind a proxy, with a dump in it."""

    settings: dict[str, str]
    proxy: TcpProxy
    store: Store

    def objects(self) -> dict[str, bytes]:
        """What lies in it, seen without the proxy."""
        return {info.key: self.store.get(info.key) for info in self.store.list("")}


@pytest.fixture
def far_bucket(site: Site, s3_server: S3Server, s3_prefix: str) -> Iterator[FarBucket]:
    with TcpProxy((s3_server.host, s3_server.port)) as proxy:
        url = f"s3://{s3_server.bucket}/{s3_prefix}"
        settings = {"BACKUP_URL": url, "BACKUP_ENDPOINT": f"http://127.0.0.1:{proxy.port}", **s3_server.environment}
        bucket = FarBucket(settings, proxy, s3_server.open(s3_prefix))
        assert site.run("dump", "create", **settings).code == 0
        yield bucket


@pytest.mark.parametrize(
    ("after_bytes", "how", "direction"),
    [(0, "reset", "answers"), (0, "close", "requests"), (4000, "reset", "requests"), (1_000_000, "reset", "requests")],
)
def test_connections_to_a_bucket_that_break_are_made_again(
    site: Site, bulky: str, far_bucket: FarBucket, after_bytes: int, how: How, direction: Direction
) -> None:
    before = far_bucket.objects()
    far_bucket.proxy.break_after(after_bytes, how=how, direction=direction, times=2 if after_bytes == 0 else 1)
    outcome = site.run("dump", "create", **far_bucket.settings, BACKUP_DATABASES=bulky)

    assert outcome.code == 0, outcome
    assert far_bucket.proxy.struck >= 1
    after = far_bucket.objects()
    check_whole(after)
    assert len(committed_dumps(after)) == 2
    (earlier,) = committed_dumps(before)
    assert parts_of(after, earlier) == parts_of(before, earlier)


def test_a_bucket_that_goes_away_on_the_way_is_named_and_when_it_is_back_the_next_run_succeeds(
    site: Site, far_bucket: FarBucket
) -> None:
    before = far_bucket.objects()
    with gate_closed(site.server, site.database):
        process = site.start("dump", "create", **far_bucket.settings, STORE_RETRY_SECONDS="1", LEASE_SECONDS="2")
        wait_for_session(site.server, AT_GATE)
        far_bucket.proxy.refuse()
    outcome = ended(process)

    check_told(outcome, 1, far_bucket.settings["BACKUP_ENDPOINT"], hint="up, and may this machine connect to it?")
    far_bucket.proxy.accept()
    after = far_bucket.objects()
    assert committed_dumps(after) == committed_dumps(before)
    check_whole(after)
    assert site.run("dump", "create", **far_bucket.settings, LEASE_SECONDS="2").code == 0
    check_whole(far_bucket.objects())


# -- each cloud, with answers that are no help (more of them: test_faults_clouds.py)


@pytest.mark.soak(over=["kind"])
@pytest.mark.parametrize("kind", ["gcs", "azure"])
def test_a_cloud_that_is_busy_now_and_then_gets_a_whole_dump(site: Site, kind: str, request: pytest.FixtureRequest) -> None:
    place = place_in(request, kind)
    numbers = itertools.count()
    with front_before(place, lambda _: BUSY if next(numbers) % 5 == 0 else None) as endpoint:
        outcome = site.run("dump", "create", **{**place.environment, "BACKUP_ENDPOINT": endpoint})
    assert outcome.code == 0, outcome
    found = objects_of(place)
    check_whole(found)
    assert len(committed_dumps(found)) == 1


BUSY = Answer(503, b"<Error><Code>ServerBusy</Code></Error>", {"Retry-After": "1"})


@contextlib.contextmanager
def front_before(place: StorePlace, judge: Judge) -> Iterator[str]:
    """The endpoint of a front before the server of *place*."""
    parts = urlsplit(place.environment["BACKUP_ENDPOINT"])
    with HttpFront((str(parts.hostname), int(parts.port or 0)), judge) as front:
        yield f"http://127.0.0.1:{front.port}{parts.path}"


def objects_of(place: StorePlace) -> dict[str, bytes]:
    store = place.open()
    return {info.key: store.get(info.key) for info in store.list("")}
