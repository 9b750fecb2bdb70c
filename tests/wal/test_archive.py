"""`wal archive` and its shim: ahead in parallel, claimed in order, acknowledged one file at a time."""

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.config import Settings, load
from clipper_backup.errors import ClipperError, IntegrityError, UsageError
from clipper_backup.format.documents import Repository, encode
from clipper_backup.format.wal_objects import decode_object
from clipper_backup.ops.events import Event, Warned, ignore
from clipper_backup.ops.wal.archive import run_archiver
from clipper_backup.ops.wal.flights import Flights
from clipper_backup.ops.wal.open_archive import open_archive
from clipper_backup.ops.wal.push import Pusher
from clipper_backup.ops.wal.shims import ARCHIVE_SHIM
from clipper_backup.ops.work import Work
from clipper_backup.postgres.data_folder import DataFolder
from clipper_backup.repository.root import open_or_create_repository
from clipper_backup.store.faulty import FaultyStore
from clipper_backup.store.local import LocalStore
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import Store
from clipper_backup.store.wrapper import WrapperStore
from clipper_backup.wal_names import Kind
from fixtures.keys import Key, sealed_to
from fixtures.wal import MadeServer, Pushing, segment_bytes

SHELLS = {"dash": ["dash"], "busybox": ["busybox", "sh"]}
_SECONDS = 30


@dataclass
class Sidecar:
    """A running `wal archive`, in a thread; `ask` is what archive_command does."""

    server: MadeServer
    store: Store
    handshake: Path
    events: list[Event] = field(default_factory=list)

    def ask(self, path: Path, *, shell: Sequence[str] = ("dash",)) -> subprocess.CompletedProcess[str]:
        """Run the shim for a file, and let it go if it may."""
        with start_shim(self.server, self.handshake, path.name, shell) as process:
            stdout, stderr = process.communicate(timeout=_SECONDS)
        if process.returncode == 0:
            (self.server.wal / f"archive_status/{path.name}.ready").unlink(missing_ok=True)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def until(self, reached: Callable[[], bool]) -> None:
        """Wait for it."""
        deadline = time.monotonic() + _SECONDS
        while not reached():
            assert time.monotonic() < deadline, (Pushing(self.store).names(), self.events)
            time.sleep(0.005)

    def warnings(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Warned)]


@contextlib.contextmanager
def running(server: MadeServer, store: Store, handshake: Path) -> Iterator[Sidecar]:
    sidecar = Sidecar(server, store, handshake)
    stop = threading.Event()
    work = replace(Pushing(store).work(), clock=SystemClock(), emit=sidecar.events.append, settings=Settings(archive_jobs=3))
    ended: list[ClipperError] = []

    def run() -> None:
        try:
            run_archiver(work, server.path, handshake, stop)
        except ClipperError as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        sidecar.until(lambda: (handshake / "alive").exists() or bool(ended))
        if ended:
            raise ended[0]
        yield sidecar
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore(SystemClock())
    open_or_create_repository(made, SystemClock(), "a test")
    return made


@pytest.fixture
def server(tmp_path: Path) -> MadeServer:
    return MadeServer(tmp_path / "data")


@pytest.fixture
def handshake(tmp_path: Path) -> Path:
    return tmp_path / "handshake"


def name_of(number: int, timeline: int = 1) -> str:
    return f"{timeline:08X}{number:016X}"


def segments(store: Store) -> list[str]:
    return [name.removesuffix(".zst") for name in Pushing(store).names(".zst")]


@pytest.mark.rule(1)
@pytest.mark.rule(18)
@pytest.mark.rule(19)
@pytest.mark.parametrize("shell", SHELLS.values(), ids=SHELLS)
def test_what_is_ready_is_archived_ahead_and_acknowledged_on_request(
    store: MemoryStore, server: MadeServer, handshake: Path, shell: list[str]
) -> None:
    assert shutil.which(shell[0]), f"{shell[0]} is not installed"
    paths = [server.write(number) for number in range(1, 13)]
    with running(server, store, handshake) as sidecar:
        sidecar.until(lambda: len(segments(store)) == 12)
        for path in paths[:3]:
            done = sidecar.ask(path, shell=shell)
            assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        later = server.write(13)
        assert sidecar.ask(later, shell=shell).returncode == 0, "asked before it was looked for"
        assert list((handshake / "requests").iterdir()) == []
    assert not (handshake / "alive").exists()
    assert segments(store) == [name_of(number) for number in range(1, 14)]


@pytest.mark.rule(18)
def test_clone_cannot_claim_ahead(store: MemoryStore, tmp_path: Path, handshake: Path) -> None:
    original, clone = MadeServer(tmp_path / "original", seed="original"), MadeServer(tmp_path / "clone", seed="clone")
    pushing = Pushing(store)
    for number in (1, 2, 3):
        pushing(original.write(number))
    shared = clone.put(name_of(1), (original.wal / name_of(1)).read_bytes())
    ahead = [clone.write(number) for number in range(2, 9)]
    with running(clone, store, handshake) as sidecar:
        assert sidecar.ask(shared).returncode == 0, "what both have is the original's, and the clone's"
        refused = sidecar.ask(ahead[0])
        assert refused.returncode == 1
        assert f"archive: {name_of(2)}: {name_of(2)} is in the archive with other bytes" in refused.stderr
        assert "restore or promote" in refused.stderr
        behind = sidecar.ask(ahead[5])
        assert behind.returncode == 1
        assert f"{name_of(2)}, which comes before it, is not archived: " in behind.stderr
        assert sidecar.ask(ahead[0]).returncode == 1, "and for ever"
    assert segments(store) == [name_of(number) for number in (1, 2, 3)]
    assert pushing(original.write(4)).state == "archived", "the original goes on"
    assert sum("is in the archive with other bytes" in text for text in sidecar.warnings()) == 1, "told once"


@pytest.mark.rule(86)
def test_a_sidecar_that_lost_its_recipients_archives_nothing_plain(
    store: MemoryStore, server: MadeServer, handshake: Path, keys: dict[str, Key]
) -> None:
    pushing = Pushing(store)
    pushing.settings = load({}, sealed_to(keys)).settings
    pushing(server.write(1))
    before = pushing.names()
    server.write(2)
    stop = threading.Event()
    deadline = threading.Timer(_SECONDS, stop.set)
    deadline.start()
    with pytest.raises(UsageError, match=f"the newest WAL segment, {name_of(1)}, is sealed"):
        run_archiver(Pushing(store).work(), server.path, handshake, stop)
    deadline.cancel()
    assert pushing.names() == before


@pytest.mark.rule(6)
@pytest.mark.rule(97)
def test_histories_go_first_ready_or_not(store: MemoryStore, server: MadeServer, handshake: Path) -> None:
    server.write(1)
    for at, timeline in ((0x204000, 2), (0x208000, 3)):
        history = server.promote(at, timeline)
        (server.wal / "archive_status" / f"{history.name}.ready").unlink()
    server.put("00000007.history", b"# clipper-backup: the history of timeline 7 cannot be read\n", ready=False)
    order: list[str] = []

    class Noting(WrapperStore):
        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            self._inner.put(key, data, create=create)
            order.append(key.rpartition("/")[2])

    second = server.write(2)
    with running(server, Noting(store), handshake) as sidecar:
        assert sidecar.ask(second).returncode == 0
        sidecar.until(lambda: name_of(1) in segments(store))
    histories = [f"{timeline:08X}.history{suffix}" for timeline in (2, 3) for suffix in (".claim", ".zst")]
    assert [name for name in order if name[:8] in {"00000002", "00000003"}] == [
        *histories,
        f"{name_of(2, 3)}.claim",
        f"{name_of(2, 3)}.zst",
    ]
    assert not any("00000007" in name for name in order)


def test_a_history_that_is_refused_stops_its_timeline_alone(store: MemoryStore, tmp_path: Path, handshake: Path) -> None:
    Pushing(store)(MadeServer(tmp_path / "other").promote(0x104000, 2, "another"))
    server = MadeServer(tmp_path / "data")
    first = server.write(1)
    history = server.promote(0x204000, 2)
    second = server.write(2)
    with running(server, store, handshake) as sidecar:
        assert sidecar.ask(first).returncode == 0
        for path in (history, second):
            done = sidecar.ask(path)
            assert done.returncode == 1
            assert "00000002.history is in the archive with other bytes" in done.stderr


@pytest.mark.rule(101)
def test_an_answer_is_about_the_file_that_is_there_now(store: MemoryStore, server: MadeServer, handshake: Path) -> None:
    path = server.write(1)
    with running(server, store, handshake) as sidecar:
        sidecar.until(lambda: segments(store) == [path.name])
        same = path.read_bytes()
        path.with_suffix(".copy").write_bytes(same)
        path.with_suffix(".copy").rename(path)
        assert sidecar.ask(path).returncode == 0, "another file, read again: the same bytes"
        path.write_bytes(segment_bytes(server.segment(1), "other", written_pages=8))
        done = sidecar.ask(path)
        assert (done.returncode, "with other bytes" in done.stderr) == (1, True)


@pytest.mark.rule(4)
def test_whoever_is_not_answered_fails_and_is_counted(server: MadeServer, tmp_path: Path) -> None:
    path = server.write(1)
    said = {
        "nobody": "no `clipper-backup wal archive` answers",
        "dead": "no sign of life for more than 30 seconds",
        "silent": "not archived within 1 seconds",
    }
    for kind, alive in (("dead", 1_700_000_000), ("silent", int(time.time()) + 60)):
        for shell in SHELLS:
            folders(tmp_path / f"{kind}-{shell}", alive)
    asked = {
        (kind, shell): start_shim(server, tmp_path / f"{kind}-{shell}", path.name, words, patience="1")
        for kind in said
        for shell, words in SHELLS.items()
    }
    for (kind, shell), process in asked.items():
        _, stderr = process.communicate(timeout=_SECONDS)
        assert (process.returncode, said[kind] in stderr) == (1, True), (kind, shell, stderr)
    for kind in ("dead", "silent"):
        for shell in SHELLS:
            assert list((tmp_path / f"{kind}-{shell}/requests").iterdir()) == [], "it takes its question back"


def folders(handshake: Path, alive: int) -> None:
    """As they are left by one who went away, or answers nothing; with answers to others."""
    for folder in ("requests", "answers"):
        (handshake / folder).mkdir(parents=True)
    (handshake / "alive").write_text(f"{alive}\n")
    for number in range(100):
        (handshake / "answers" / f"{number:08}").write_text(f"ok {name_of(1)}\n")


def start_shim(
    server: MadeServer, handshake: Path, name: str, shell: Sequence[str], *, patience: str = "60"
) -> "subprocess.Popen[str]":
    """The shim for a file, as PostgreSQL runs it."""
    return subprocess.Popen(
        [*shell, ARCHIVE_SHIM, str(handshake), f"pg_wal/{name}"],
        env={"PATH": os.environ["PATH"], "ARCHIVE_WAIT_SECONDS": patience},
        cwd=server.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_answer_must_name_the_file(store: MemoryStore, server: MadeServer, handshake: Path) -> None:
    path = server.write(1)
    folders(handshake, int(time.time()) + 60)
    sidecar = Sidecar(server, store, handshake)

    def answer() -> None:
        sidecar.until(lambda: any((handshake / "requests").iterdir()))
        (request,) = (handshake / "requests").iterdir()
        (handshake / "answers" / request.name).write_text(f"ok {name_of(2)}\n")

    thread = threading.Thread(target=answer)
    thread.start()
    assert sidecar.ask(path).returncode == 1
    thread.join()


def test_an_emptied_handshake_folder_is_made_anew(store: MemoryStore, server: MadeServer, handshake: Path) -> None:
    first, second = server.write(1), server.write(2)
    with running(server, store, handshake) as sidecar:
        assert sidecar.ask(first).returncode == 0
        for entry in list(handshake.iterdir()):
            entry.unlink() if entry.is_file() else shutil.rmtree(entry)
        sidecar.until((handshake / "alive").exists)
        assert sidecar.ask(second).returncode == 0


def test_what_failed_is_tried_again_in_order(store: MemoryStore, server: MadeServer, handshake: Path) -> None:
    paths = [server.write(number) for number in range(1, 7)]
    # Repository and system are there after two; then claims and objects fail for a while, as in an outage.
    with running(server, FaultyStore(store, "put:4-13:unavailable", SystemClock()), handshake) as sidecar:
        for path in paths:
            while (done := sidecar.ask(path)).returncode != 0:
                assert "scripted fault" in done.stderr
            assert path.name in segments(store), "acknowledged is what is there"
    claims = Pushing(store).names(".claim")
    assert claims == [f"{path.name}.claim" for path in paths]


@pytest.mark.rule(1)
def test_what_went_to_another_place_is_never_acknowledged(server: MadeServer, tmp_path: Path, handshake: Path) -> None:
    """A volume that is unmounted leaves an empty folder: the same path, and no repository."""
    folder, volume = tmp_path / "repository", tmp_path / "volume"
    store = LocalStore(folder)
    open_or_create_repository(store, SystemClock(), "a test")
    paths = [server.write(number) for number in (1, 2)]
    with running(server, store, handshake) as sidecar:
        assert sidecar.ask(paths[0]).returncode == 0
        sidecar.until(lambda: segments(store) == [name_of(1), name_of(2)])
        folder.rename(volume)
        folder.mkdir()
        paths += [server.write(number) for number in (3, 4)]
        refused = sidecar.ask(paths[2])
        assert (refused.returncode, "is no longer the repository that it was" in refused.stderr) == (1, True), refused
        assert sidecar.ask(paths[3]).returncode == 1
        folder.rename(tmp_path / "elsewhere")
        volume.rename(folder)
        sidecar.until(lambda: segments(store) == [name_of(number) for number in (1, 2, 3, 4)])
        assert [sidecar.ask(path).returncode for path in paths[1:]] == [0, 0, 0]
    links = [decode_object(store.get_stream(info.key), info.key)[0] for info in store.list("wal/") if info.key.endswith(".zst")]
    assert [header.previous for header in links[1:]] == [header.link for header in links[:-1]]


@pytest.mark.rule(6)
def test_a_history_that_went_is_archived_again_before_its_segments(
    store: MemoryStore, server: MadeServer, handshake: Path
) -> None:
    """A store that is set back to an older state under a running archiver is the same repository, without what came since."""
    history = server.promote(5 << 20, 2)
    went = {f"wal/{server.system}/histories/{history.name}{suffix}" for suffix in (".claim", ".zst")}
    with running(server, store, handshake) as sidecar:
        assert [sidecar.ask(path).returncode for path in (history, server.write(5))] == [0, 0]
        assert went <= {info.key for info in store.list("wal/")}
        store.delete(sorted(went))
        assert sidecar.ask(server.write(6)).returncode == 0
        assert went <= {info.key for info in store.list("wal/")}, "no restore could name the timeline"
        assert f"nothing is archived: {history.name} is no longer in the archive" in "".join(sidecar.warnings())

        store.delete(sorted(went))
        history.unlink()
        refused = sidecar.ask(server.write(7))
        assert (refused.returncode, f"there is no {history.name}" in refused.stderr) == (1, True), refused


@pytest.mark.rule(1)
def test_another_repository_in_its_place_is_none(store: MemoryStore, server: MadeServer, handshake: Path) -> None:
    paths = [server.write(number) for number in (1, 2)]
    own = store.get("repository.json")
    with running(server, store, handshake) as sidecar:
        assert sidecar.ask(paths[0]).returncode == 0
        store.put("repository.json", encode(Repository(id="0" * 32, created_at=SystemClock().now(), created_by="another")))
        later = server.write(3)
        assert sidecar.ask(later).returncode == 1
        store.put("repository.json", own)
        sidecar.until(lambda: sidecar.ask(later).returncode == 0)


@pytest.mark.parametrize("raised", [{"required_features": ["tail-v2"]}, {"min_writer_version": 9}], ids=["feature", "version"])
def test_what_a_newer_version_asks_for_ends_an_archiver_that_runs(
    store: MemoryStore, server: MadeServer, handshake: Path, raised: dict[str, object]
) -> None:
    """It looked when it started, months ago; what older writers would get wrong is told to it too."""
    own = store.get("repository.json")
    with running(server, store, handshake) as sidecar:
        assert sidecar.ask(server.write(1)).returncode == 0
        store.put("repository.json", json.dumps(json.loads(own) | raised).encode())
        later = server.write(2)
        refused = sidecar.ask(later)
        assert (refused.returncode, "install the version of clipper-backup" in refused.stderr) == (1, True), refused
        before = {info.key for info in store.list("wal/")}
        server.write(3)
        assert sidecar.ask(later).returncode == 1
        assert {info.key for info in store.list("wal/")} == before, "nothing is stored ahead either"
        store.put("repository.json", own)
        sidecar.until(lambda: sidecar.ask(later).returncode == 0)


def test_nothing_is_written_behind_a_bad_look(store: MemoryStore, server: MadeServer) -> None:
    """What was claimed in another place must not be linked to, or stored, in ours."""
    claiming, go = threading.Event(), threading.Event()

    class Held(WrapperStore):
        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            claiming.set()
            go.wait()
            self._inner.put(key, data, create=create)

    paths = [server.write(number) for number in (1, 2, 3)]
    folder = DataFolder(server.path, SystemClock())
    work = replace(Pushing(store).work(), store=Held(store), clock=SystemClock())
    pusher = Pusher(open_archive(work, folder.layout()), folder, folder.layout())
    flights = Flights(pusher, ignore, threading.Event(), jobs=2)
    begun = [flights.begin(path.name, Kind.SEGMENT) for path in paths]
    claiming.wait()
    abandoning = threading.Thread(target=flights.abandon)
    abandoning.start()
    while not flights._abandoned:
        time.sleep(0.001)
    go.set()
    abandoning.join()
    assert Pushing(store).names() == [f"{name_of(1)}.claim"], "it was under way"
    assert {flight.state for flight in begun[1:]} == {"failed"}


def test_it_waits_for_its_repository_and_makes_none(server: MadeServer, handshake: Path) -> None:
    store = MemoryStore(SystemClock())
    path = server.write(1)
    stop = threading.Event()
    events: list[Event] = []
    work = Work(Settings(), store, SystemClock(), events.append)
    thread = threading.Thread(target=run_archiver, args=(work, server.path, handshake, stop))
    thread.start()
    sidecar = Sidecar(server, store, handshake, events)
    try:
        sidecar.until((handshake / "alive").exists)
        refused = sidecar.ask(path)
        assert (refused.returncode, "clipper-backup base create" in refused.stderr) == (1, True), refused
        assert list(store.list("")) == []
        assert [text for text in sidecar.warnings() if "no repository" in text] == sidecar.warnings()[:1], "told once"
        open_or_create_repository(store, SystemClock(), "the first base backup")
        sidecar.until(lambda: segments(store) == [name_of(1)])
        assert sidecar.ask(path).returncode == 0
    finally:
        stop.set()
        thread.join()


@pytest.mark.rule(10)
def test_another_clusters_repository_is_refused_at_the_start(store: MemoryStore, tmp_path: Path, handshake: Path) -> None:
    Pushing(store)(MadeServer(tmp_path / "one").write(1))
    with (
        pytest.raises(IntegrityError, match="repository of another cluster"),
        running(MadeServer(tmp_path / "other", system=1), store, handshake),
    ):
        pass


def test_names_that_are_none_are_refused(store: MemoryStore, server: MadeServer, handshake: Path) -> None:
    with running(server, store, handshake) as sidecar:
        done = sidecar.ask(server.wal / "rubbish")
        assert (done.returncode, "not the name of a file that PostgreSQL archives" in done.stderr) == (1, True)


@pytest.mark.rule(18)
def test_any_speed_of_reading_leaves_the_claims_in_order(store: MemoryStore, server: MadeServer, handshake: Path) -> None:
    """More segments than may be stored ahead, which is more than may be read, and each read and stored at another speed."""
    names = [server.write(number, written_pages=1 + (number * 37) % 128).name for number in range(1, 101)]
    claimed: list[str] = []

    class Noting(WrapperStore):
        def put(self, key: str, data: bytes, *, create: bool = False) -> None:
            self._inner.put(key, data, create=create)
            if key.endswith(".claim"):
                claimed.append(key.rpartition("/")[2].removesuffix(".claim"))

    with running(server, Noting(store), handshake) as sidecar:
        for name in names:
            assert sidecar.ask(server.wal / name).returncode == 0
    assert claimed == names == segments(store)
    pushing = Pushing(store)
    assert pushing(server.write(101)).state == "archived"
