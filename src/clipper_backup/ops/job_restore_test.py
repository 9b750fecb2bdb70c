"""`job restore-test`: the newest good dump into a private server, compared with what was recorded; timed, told, removed.

The server is made by initdb of this machine's PostgreSQL: a dump is logical, another libc does not matter. Production is
neither asked nor touched.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

from clipper_backup.errors import AccessError, ClipperError, IncompleteError, IntegrityError, MissingError
from clipper_backup.format.documents import DatabaseRecord, DumpDetails, DumpSummary, RestoreTestReport, StepTime
from clipper_backup.format.names import REPOSITORY
from clipper_backup.ops.dump.compare import Comparison, compare
from clipper_backup.ops.dump.fill import Filling, fill
from clipper_backup.ops.dump.read import details_of, good_dumps
from clipper_backup.ops.dump.restore import as_properties, restore_roles
from clipper_backup.ops.events import Warned
from clipper_backup.ops.job_dump import gateway_of, report_metrics
from clipper_backup.ops.scratch import scratch_folder
from clipper_backup.ops.work import SOFTWARE, Step, Work, login_of, step
from clipper_backup.postgres import databases, server_facts
from clipper_backup.postgres.account import server_account
from clipper_backup.postgres.binaries import Binaries, find_binaries
from clipper_backup.postgres.connection import Login, connect
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.repository.dumps import Listed, list_dumps
from clipper_backup.repository.restore_tests import write_report
from clipper_backup.store.local import LocalStore
from clipper_backup.telemetry import metrics
from clipper_backup.values import BackupId, show_bytes, show_count, show_names, show_seconds

HEADINGS = {
    "download": "Download latest backup",
    "create": "Create test database",
    "restore": "Restore backup",
    "validate": "Validate data (clip count, user count)",
    "report": "Report RTO metrics",
    "cleanup": "Cleanup",
}
"""The steps in their order, in the words of the source document."""

_TOOLS = ("postgres", "initdb", "pg_restore", "psql")
_SERVER_BYTES = 512 << 20
"""What a server takes beside its data: its own files and WAL."""
_SETTINGS = {
    "archive_mode": "off",
    "fsync": "off",  # nobody wants it back after a power loss
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "256MB",
    "max_locks_per_transaction": "1024",  # pg_restore takes one for each table
}


@dataclass(frozen=True, slots=True)
class StepTold:
    """One step that was begun: its heading, what came of it, and how long it took. `result` of the one that failed is empty."""

    name: str
    result: str
    seconds: float

    @property
    def heading(self) -> str:
        """Its line in the source document."""
        return HEADINGS[self.name]


@dataclass(slots=True)
class RestoreTest:
    """One run. `seconds` is what the target is for: from the download's begin until the data was validated; None if it was not.

    `error` says why it failed, and names the step. `report` is the key of its report, None where none could be written.
    """

    id: BackupId
    begun_at: datetime
    target_seconds: int
    dump: DumpSummary | None = None
    steps: list[StepTold] = field(default_factory=list)
    compared: list[Comparison] = field(default_factory=list)
    seconds: float | None = None
    report: str | None = None
    error: ClipperError | None = None

    @property
    def result(self) -> Literal["passed", "failed"]:
        """Whether a backup was restored and is what was recorded."""
        return "failed" if self.seconds is None else "passed"

    @property
    def target_met(self) -> bool | None:
        """Whether it took no longer than RTO_TARGET_SECONDS; None when it failed."""
        return None if self.seconds is None else self.seconds <= self.target_seconds


def run_restore_test(work: Work) -> RestoreTest:
    """Test the newest good dump. What failed is the result's `error`, and is reported; nothing is left behind.

    IntegrityError there when it failed as a test: the dump is damaged, or what it restores is not what was recorded. A stop
    passes through, reported as a failure. UsageError for a bad URL, before any work.
    """
    gateway = gateway_of(work.settings)
    now = work.clock.now()  # asking a bucket for its time writes, and reading is enough for this job but for its report
    test = RestoreTest(BackupId.make(now), now, work.settings.rto_target_seconds)
    try:
        with ExitStack() as left:
            try:
                _prove(work, test, left)
            except ClipperError as error:
                test.error = error
            with _timed(work, test, "report") as running:
                report_metrics(work, gateway, metrics.RESTORE_TEST_JOB, _samples(test))
                running.done = _told(work, test)
            _clean_up(work, test, left)
    except ClipperError as error:
        test.error = test.error or error
    except BaseException:
        if not any(each.name == "report" for each in test.steps):
            report_metrics(work, gateway, metrics.RESTORE_TEST_JOB, metrics.restore_test_failed())
        raise
    return test


def _prove(work: Work, test: RestoreTest, left: ExitStack) -> None:
    """The first four steps; what they leave to be removed is put into *left*."""
    began = work.clock.monotonic()
    with _timed(work, test, "download") as running:
        listed, test.dump = _newest(work)
        details = details_of(work, test.dump)
        folder = left.enter_context(_scratch(work, test.dump, details))
        local = replace(work, store=_copied(work, listed, folder / "repository", running))
        running.done = f"{test.dump.id}: {show_bytes(test.dump.stored_bytes)}, {show_names(test.dump.databases)}"
    with _timed(work, test, "create") as running:
        binaries = find_binaries(
            tools=_TOOLS, at_least=test.dump.versions.needed_major, bindir=work.settings.pg_bindir, environment=os.environ
        )
        login, local = _made(local, folder, binaries, left)
        _refuse_missing_extensions(login, details)
        running.done = f"PostgreSQL {binaries.version}, reached by nobody else"
    names = {}
    with _timed(work, test, "restore") as running:
        with closing(connect(login)) as maintenance:
            restore_roles(local, maintenance, test.dump)
        for number, record in enumerate(details.databases, 1):
            names[record.name] = f"restore_test_{number}"
            _restore(local, login, test.dump, record, names[record.name], binaries)
        running.done = f"{show_count(len(names), 'database')} restored, {show_bytes(test.dump.plain_bytes)}"
    with _timed(work, test, "validate") as running:
        for record in details.databases:
            test.compared.append(_compare(local, login, record, names[record.name]))
        running.done = "; ".join(_counts(record) for record in details.databases)
    test.seconds = work.clock.monotonic() - began


@contextmanager
def _timed(work: Work, test: RestoreTest, name: str) -> Iterator[Step]:
    """One of the six; a ClipperError names it."""
    began = work.clock.monotonic()
    result = ""
    try:
        with step(work, f"restore-test {name}", HEADINGS[name]) as running:
            yield running
            result = running.done
    except ClipperError as error:
        raise type(error)(f"the restore test failed at {HEADINGS[name]!r}: {error.message}", hints=error.hints) from error
    finally:
        test.steps.append(StepTold(name, result, work.clock.monotonic() - began))


# -- the steps


def _newest(work: Work) -> tuple[Listed, DumpSummary]:
    dumps = list_dumps(work.store)
    summary = next(good_dumps(work, dumps), None)
    if summary is None:
        raise MissingError(
            "there is no good dump to test", hints=["`clipper-backup dump list` shows what there is, and what is wrong with it"]
        )
    return next(listed for listed in dumps if str(listed.dump_id) == summary.id), summary


@contextmanager
def _scratch(work: Work, summary: DumpSummary, details: DumpDetails) -> Iterator[Path]:
    """Room for the stored dump, its archives opened, and twice the databases: indexes are built beside their tables (rule 94)."""
    whole = sum(record.size_bytes for record in details.databases)
    needed = summary.stored_bytes + summary.plain_bytes + 2 * whole + _SERVER_BYTES
    with scratch_folder(work.settings.scratch_dir, needed, "a restore test") as folder:
        if not server_account().is_ours:
            folder.chmod(0o711)  # the server's account passes through it
        yield folder


def _copied(work: Work, listed: Listed, folder: Path, running: Step) -> LocalStore:
    """The objects of one dump in a repository of their own: what is restored is what was downloaded, and timed by itself."""
    store = LocalStore(folder)
    store.put(REPOSITORY, work.store.get(REPOSITORY))
    for info in listed.objects:
        chunks = work.store.get_stream(info.key, same_as=info)
        store.put_stream(info.key, running.metered(chunks, info.size_bytes), expected_bytes=info.size_bytes)
    return store


def _made(local: Work, folder: Path, binaries: Binaries, left: ExitStack) -> tuple[Login, Work]:
    """A server that runs, and the work whose settings lead to it and to no other."""
    server = PrivateServer(folder / "server", binaries, environment=os.environ, settings=_SETTINGS, clock=local.clock)
    left.enter_context(server)
    server.initdb(sync=False)
    server.start()
    where = server.connection()
    scratch = folder / "archives"
    scratch.mkdir()
    settings = replace(
        local.settings,
        scratch_dir=scratch,
        pghost=where["host"],
        pgport=where["port"],
        pguser=where["user"],
        pgpassword=None,
        pgpassfile=None,
        pgdatabase=None,
        pgsslmode=None,
        pgsslrootcert=None,
    )
    return login_of(settings), replace(local, settings=settings)


def _refuse_missing_extensions(login: Login, details: DumpDetails) -> None:
    wanted = {extension.name for record in details.databases for extension in record.extensions}
    with closing(connect(login)) as connection:
        missing = sorted(wanted - server_facts.available_extensions(connection))
    if missing:
        raise IncompleteError(
            f"this PostgreSQL has no extension {show_names(missing)}, which the dump needs: nothing was tested",
            hints=["build the image with its package: make image EXTRA_APT_PACKAGES=…", "or install it on this machine"],
        )


def _restore(work: Work, login: Login, summary: DumpSummary, record: DatabaseRecord, name: str, binaries: Binaries) -> None:
    stored = summary.archive_of(record.name)
    if stored is None:
        raise IntegrityError(f"the details of {summary.id} know database {record.name}, of which it has no archive")
    properties = as_properties(record.properties)
    with closing(connect(login)) as maintenance:
        owner = properties.owner if properties.owner in server_facts.role_names(maintenance) else None
        databases.create_database(maintenance, name, properties, owner)
    jobs = work.settings.dump_jobs
    fill(work, login, name, Filling(summary, stored, record.name, properties, binaries, jobs=jobs, roles=True))


def _compare(work: Work, login: Login, record: DatabaseRecord, name: str) -> Comparison:
    with closing(connect(login, name)) as connection:
        comparison = compare(work, connection, record)
    if comparison.differences:
        shown = "; ".join(map(str, comparison.differences[:20]))
        raise IntegrityError(
            f"database {record.name} is restored, and is not what was recorded: {shown}",
            hints=["`clipper-backup dump restore` keeps the restored copy, to look at", "test an older dump with it too"],
        )
    return comparison


def _counts(record: DatabaseRecord) -> str:
    """What was found equal, for people."""
    rows = record.rows
    told = [show_count(len(record.tables), "table"), "rows not counted" if rows is None else show_count(rows, "row")]
    told += [f"{query.name} {', '.join(map(str, query.answer))}" for query in record.queries if query.answer is not None]
    return f"{record.name}: {', '.join(told)}, as recorded"


# -- what is told of it


def _samples(test: RestoreTest) -> Sequence[metrics.Sample]:
    return (
        metrics.restore_test_failed() if test.seconds is None else metrics.restore_test_succeeded(duration_seconds=test.seconds)
    )


def _told(work: Work, test: RestoreTest) -> str:
    """Write the report; the line for people. A target that was missed is a warning: what takes long is restored all the same."""
    _write(work, test)
    if test.seconds is None:
        return "the test failed, and its duration is not reported"
    took, target = show_seconds(test.seconds), show_seconds(test.target_seconds)
    if not test.target_met:
        work.emit(
            Warned(
                f"the restore took {took}, longer than the target of {target}",
                ("RTO_TARGET_SECONDS is that target; more jobs (DUMP_JOBS) and a faster disk shorten it",),
            )
        )
    return f"{took}, target {target}: " + ("met" if test.target_met else "missed")


def _write(work: Work, test: RestoreTest) -> None:
    """No name, count or word of an error goes into it: it lies in the store unsealed."""
    report = RestoreTestReport(
        id=str(test.id),
        dump=None if test.dump is None else test.dump.id,
        begun_at=test.begun_at,
        software=SOFTWARE,
        result=test.result,
        failed_step=None if test.error is None else test.steps[-1].name,
        exit_code=0 if test.error is None else test.error.exit_code,
        seconds=test.seconds,
        target_seconds=test.target_seconds,
        steps=[StepTime(name=each.name, seconds=each.seconds) for each in test.steps],
    )
    try:
        test.report = write_report(work.store, report)
    except AccessError as error:
        work.emit(Warned(f"the report of this test was not stored: {error.message}", error.hints))


def _clean_up(work: Work, test: RestoreTest, left: ExitStack) -> None:
    with _timed(work, test, "cleanup") as running:
        left.close()
        running.done = "the server and all its files are removed"
