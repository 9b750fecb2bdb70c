"""`restore`: from a plan to a data folder, and with `--start` to a server that recovered.

Order: what is unarchived is archived as far as it is whole; everything that can refuse; what is unarchived is saved; the plan
is kept; the folder gets its marker and is emptied; files, labels, recovery settings; sync; pg_control; the marker goes. Killed
before pg_control is there, the same command begins anew. Behind that a cluster lies there, whole, which only --replace removes.
"""

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from clipper_backup.config import DECLARED
from clipper_backup.errors import ClipperError, IntegrityError, UsageError
from clipper_backup.kinds import show_url
from clipper_backup.ops.events import Warned, ignore
from clipper_backup.ops.keys import check_may_sign, opener_of
from clipper_backup.ops.restore.collations import tell_collations
from clipper_backup.ops.restore.files import FileWriter, Places
from clipper_backup.ops.restore.held import held_target
from clipper_backup.ops.restore.left_wal import archive_left, held_of
from clipper_backup.ops.restore.plan import Plan
from clipper_backup.ops.restore.recovery import AUTO_CONF, Recovery, remapped, settle, write_recovery, write_synced
from clipper_backup.ops.restore.request import Request
from clipper_backup.ops.restore.saved_settings import SAVED as SAVED_SETTINGS
from clipper_backup.ops.restore.saved_settings import save_settings
from clipper_backup.ops.restore.saved_wal import SAVED, save_wal, wal_files
from clipper_backup.ops.restore.start import Started, Starting, start_recovered
from clipper_backup.ops.restore.target_dir import Begun, Found, begin, check_tablespaces, finish, look_at, refuse_changed
from clipper_backup.ops.restore.work_dir import work_folder
from clipper_backup.ops.wal.open_restore import open_restore
from clipper_backup.ops.wal.push import push
from clipper_backup.ops.wal.restore_command import restore_command
from clipper_backup.ops.wal.serve import serve
from clipper_backup.ops.wal.shims import RESTORE_SHIM
from clipper_backup.ops.work import SOFTWARE, Work, step
from clipper_backup.postgres.binaries import find_binaries
from clipper_backup.postgres.data_folder import WAL_FOLDER
from clipper_backup.postgres.runner import Runner
from clipper_backup.repository.base_backups import part_of, plain_part, read_entries, recorded_line
from clipper_backup.repository.data_keys import DataKeys
from clipper_backup.repository.kept_wal import chunks_of_kept
from clipper_backup.repository.pack_reader import PackReader
from clipper_backup.repository.restore_plan import LINKS, PLAN, TURN, RestorePlan, keep_plan
from clipper_backup.repository.wal_range import own_links
from clipper_backup.values import BackupId, Lsn, show_bytes, show_count
from clipper_backup.wal_names import Segment

_STOP_SECONDS = 600.0
"""How long the checkpoint of a server's end may take."""
_OUTSIDE = "outside"
_HANDSHAKE = "handshake"
_NEEDED_SECTIONS = ("Where backups go", "Who can read it, and who vouches for it")
"""Of the settings, those that whoever fetches WAL needs."""
_ENVIRONMENT = (
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ROLE_ARN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_SERVICE_ACCOUNT",
    "AZURE_CLIENT_ID",
    "AZURE_TENANT_ID",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_AUTHORITY_HOST",
)
"""Variables that say where credentials are; none that is one."""


@dataclass(frozen=True, slots=True)
class Restored:
    """A data folder that is ready to recover, or with `started` a server that did.

    `saved` are files of the former server's pg_wal, in `saved_in`; its configuration is in `settings_in`; `outside` holds
    configuration from outside PGDATA, None without any. `passing` are settings for recovery alone, which somebody has to take
    away: with `started` none, unless that could not be done.
    `archived` says whether the new timeline's history is in the archive. Of `seconds`, the whole, `files_seconds` went into
    writing and syncing files.
    """

    plan: Plan
    data: Path
    folder: Path
    saved: tuple[str, ...]
    saved_in: Path | None
    settings_in: Path | None
    outside: Path | None
    passing: tuple[str, ...]
    seconds: float
    files_seconds: float
    started: Started | None = None
    archived: bool = False


def restore(
    work: Work, request: Request, plan: Plan, *, start: bool = False, port: int | None = None, runner: Runner | None = None
) -> Restored:
    """Carry out *plan*. Errors of the store, of damage and of the file system leave an unfinished folder behind.

    With *start* a server recovers and is left running; one that a *runner* runs is stopped at the end, in order.
    """
    began = work.clock.monotonic()
    plan = archive_left(work, request, plan)
    used = list(plan.tablespaces.values())
    with (
        work_folder(request.folder, request.account, [request.data, *used, *plan.found.tablespaces]),
        held_target(request.data, request.account),
    ):
        found = _look_again(request, plan)
        check_tablespaces(request.data, plan.tablespaces, found, request.account, version=plan.version_folder)
        _tell(work, request, plan, found)
        if start:
            _look_for_server(work, request, plan.summary.versions.server_major, runner)
        stamp = f"{work.clock.now():%Y%m%d-%H%M%S}"
        saved_in, settings_in = request.folder / f"{SAVED}-{stamp}", request.folder / f"{SAVED_SETTINGS}-{stamp}"
        kept_at = _kept_at(request, plan, saved_in)
        saved = _save(work, request, plan, found, saved_in, kept_at)
        if saved:
            unsure = show_count(len(saved), "file")
            work.emit(Warned(f"kept in {saved_in}: {unsure} of the former server's pg_wal that may not be archived"))
        settings = save_settings(request.data, settings_in, request.account) if found.state == "cluster" else []
        recovery = _recovery(request, plan, _keep_plan(work, request, plan, _checked_in(plan, kept_at)))
        _look_again(request, plan)  # the archive was read meanwhile
        saved_or_kept = next((each for each in (saved_in, kept_at) if each is not None and each.exists()), None)
        begun = _begin(request, plan, found, saved_or_kept)
        begun_at = work.clock.monotonic()
        try:
            has_outside = _write_files(work, request, plan, begun, recovery)
        except IntegrityError as error:
            raise IntegrityError(error.message, hints=[*error.hints, *_after_damage(saved_in)]) from error
        begun.check()
        finish(request.data, used)
        now = work.clock.monotonic()
        result = Restored(
            plan=plan,
            data=request.data,
            folder=request.folder,
            saved=tuple(saved),
            saved_in=saved_in if saved else None,
            settings_in=settings_in if settings else None,
            outside=request.folder / _OUTSIDE if has_outside else None,
            passing=tuple(recovery.passing()),
            seconds=now - began,
            files_seconds=now - begun_at,
        )
        if not start:
            return result
        started = _start(work, request, plan, port, runner)
        with _stopped_at_last(work, started):
            passing = _settle(work, request, recovery)
            archived = _archive_history(work, started, plan.summary.signed_by)
            tell_collations(work, started.socket_folder, started.port)
        seconds = work.clock.monotonic() - began
        return replace(result, started=started, passing=passing, archived=archived, seconds=seconds)


def _look_for_server(work: Work, request: Request, major: int, runner: Runner | None) -> None:
    """UsageError, before anything is removed, when what is to run the server is of another version; or there is none."""
    if runner is None:
        find_binaries(tools=("postgres",), exactly=major, bindir=work.settings.pg_bindir, environment=os.environ)
        return
    with step(work, "server", "wait for the server's container") as running:
        runner.prepare(request.folder)
        if runner.major != major:
            raise UsageError(
                f"the backup is of PostgreSQL {major}, and the container that is to run it has {runner.name}",
                hints=["its image must be the database's own"],
            )
        running.done = f"the server's container is there: {runner.name}"


@contextmanager
def _stopped_at_last(work: Work, started: Started) -> Iterator[None]:
    """Stop the server in another container behind all that is asked of it: its files are then as a clean shutdown leaves them."""
    if started.server is None:
        yield
        return
    with started.server as server:
        yield
        with step(work, "stop", "stop the server") as running:
            server.stop("fast", timeout_seconds=_STOP_SECONDS)
            running.done = "the server is stopped, in order"


def _begin(request: Request, plan: Plan, found: Found, saved_in: Path | None) -> Begun:
    try:
        return begin(
            request.data,
            request.account,
            found,
            list(plan.tablespaces.values()),
            version=plan.version_folder,
            backup=plan.summary.id,
            saved=saved_in,
        )
    except OSError as error:
        place = error.filename or request.data
        raise ClipperError(
            f"cannot make or empty {place}: {(error.strerror or str(error)).lower()}",
            hints=["run the restore again, with the same words, when that is mended"],
        ) from error


def _look_again(request: Request, plan: Plan) -> Found:
    """What lies at the target now: minutes may have passed. UsageError when its server ran since: that is not planned."""
    found = look_at(request.data, request.account, system_id=plan.summary.system_id, replace=request.replace)
    refuse_changed(request.data, plan.found, found)
    return found


def _tell(work: Work, request: Request, plan: Plan, found: Found) -> None:
    """What a person should know before anything is removed."""
    if left := sorted(set(found.tablespaces) - {folder.resolve() for folder in plan.tablespaces.values()}):
        work.emit(Warned(f"tablespaces of what lay there are left as they are: {', '.join(map(str, left))}"))
    if found.wal_folder is not None:
        becomes = f"{request.data}/pg_wal is a link to {found.wal_folder}: it becomes a plain folder, and what lies there stays"
        work.emit(Warned(becomes, ("who wants it there again moves it and makes the link, before the server starts",)))
    settings = (each.with_name(SAVED_SETTINGS + each.name.removeprefix(SAVED)) for each in found.saved)
    if there := [str(each) for each in (*found.saved, *settings) if each.is_dir()]:
        work.emit(Warned(f"what the former server had was saved by a try before this one: {', '.join(there)}"))
    if plan.problem is not None:
        work.emit(Warned(f"the base backup {plan.summary.id} is not good: {plan.problem}"))
    if plan.followed_by is not None:
        work.emit(Warned(f"this is system {plan.summary.system_id}, of before an upgrade: {plan.followed_by} followed it"))
    for end in plan.beside:
        work.emit(Warned(say_beside(plan, end), (f"along that one: --timeline {int(end.timeline)}",)))
    for note in plan.notes:
        work.emit(Warned(note))


def say_beside(plan: Plan, end: Segment) -> str:
    """Of a timeline of `Plan.beside`, for people."""
    what = "is not gone along" if plan.target.kind == "latest" else "may have been the one in use at that time"
    return f"timeline {int(end.timeline)}, with WAL of its own up to {end}, {what}"


# -- the plan that `wal fetch` reads


def _after_damage(saved_in: Path) -> list[str]:
    """Hints, when what lay there is gone and the backup cannot be read."""
    saved = [f"what the former server had not archived lies in {saved_in}; the next try replays it"] if saved_in.exists() else []
    return [
        *saved,
        "begin with another backup, the same words and --backup ID: `clipper-backup base list` shows them",
        "`clipper-backup base verify ID --read-data` says before that whether all of one can be read; it may need the same pages",
    ]


def _kept_at(request: Request, plan: Plan, saved_in: Path) -> Path | None:
    """The folder in the restore folder where `wal fetch` finds the kept segments, when they were saved; None without any.

    Where none of them lies in the pg_wal there, that may have other files of their names: they share no folder.
    """
    if plan.kept is None:
        return None
    folders = set(plan.kept.folders)
    if len(folders) == 1 and plan.kept.folder.parent == request.folder:
        return plan.kept.folder
    return saved_in if request.data / WAL_FOLDER in folders else saved_in.with_name(f"{saved_in.name}-kept")


def _save(work: Work, request: Request, plan: Plan, found: Found, into: Path, kept_at: Path | None) -> list[str]:
    """Save what is to be removed *into* a folder, and to *kept_at* what is replayed of former restores'; the names of the former.

    ClipperError as `save_wal`: then nothing is left in either.
    """
    names = wal_files(request.data)
    held = set(names)
    if found.state == "cluster":
        try:
            held = held_of(work, request.data, plan)
        except FileNotFoundError as error:  # a server that runs renames and removes
            _look_again(request, plan)
            raise ClipperError(f"nothing was removed: {error.filename} went away meanwhile", hints=["run it again"]) from error
    placed = () if plan.kept is None else zip(plan.kept.folders, plan.kept.segments, strict=True)
    former = [folder / each.name for folder, each in placed if folder not in {request.data / WAL_FOLDER, kept_at}]
    saved = save_wal(request.data, into, request.account, held, former if kept_at == into else ())
    if kept_at is not None and kept_at != into:
        try:
            save_wal(request.data, kept_at, request.account, names, former)
        except ClipperError:
            shutil.rmtree(into, ignore_errors=True)
            raise
    return saved


def _checked_in(plan: Plan, kept_at: Path | None) -> str:
    """The name of *kept_at*. IntegrityError unless the segments there are what was planned."""
    if plan.kept is None or kept_at is None:
        return ""
    for each in plan.kept.segments:
        for _ in chunks_of_kept(kept_at, each, plan.kept.segment_bytes):
            pass
    return kept_at.name


def _keep_plan(work: Work, request: Request, plan: Plan, kept_in: str) -> str:
    """Keep it in the restore folder, in place of a restore's before; its id."""
    names = (PLAN, LINKS, TURN)
    for name in names:  # of a restore before this one
        (request.folder / name).unlink(missing_ok=True)
    now = work.clock.now()
    kept = RestorePlan(
        id=str(BackupId.make(now)),
        made_at=now,
        software=SOFTWARE,
        repository_id=plan.repository_id,
        backup_id=plan.summary.id,
        system_id=plan.summary.system_id,
        segment_bytes=plan.summary.sizes.segment_bytes,
        timeline=int(plan.line.timeline),
        ancestors=[(int(part.timeline), str(part.end)) for part in plan.line.parts[:-1]],
        first=plan.first.name,
        last=None if plan.last is None else plan.last.name,
        seen=plan.wal.segments[-1].name if plan.last is None else None,
        own_links=own_links(plan.summary),
        kept=[] if plan.kept is None else list(plan.kept.segments),
        kept_in=kept_in,
        line_recorded=recorded_line(plan.summary) == plan.line,
        unsigned=request.unsigned,
        settings=settings_of_fetch(work),
        environment={name: value for name in _ENVIRONMENT if (value := os.environ.get(name))},
    )
    keep_plan(request.folder, kept)
    for name in names:
        request.account.own(request.folder / name)
    return kept.id


def settings_of_fetch(work: Work) -> dict[str, str]:
    """What `wal fetch` must be told, as text: where the repository is and which files hold its keys; no secrets (rule 89).

    A URL that has a secret in it is left out: whoever starts the server sets that one.
    """
    settings, texts = work.settings, {}
    for declared in DECLARED:
        value = getattr(settings, declared.field)
        needed = declared.section in _NEEDED_SECTIONS or declared.name == "ARCHIVE_WAIT_SECONDS"
        if value == declared.default or not needed or declared.secret or declared.name == "SIGNING_KEY_FILE":
            continue
        if isinstance(value, Path):
            texts[declared.name] = str(value.absolute())
        elif isinstance(value, str) and show_url(value) != value:
            work.emit(
                Warned(
                    f"{declared.name} has a secret in it, and is not written into the restore's plan",
                    (f"start the server with {declared.name} in its environment",),
                )
            )
        else:
            texts[declared.name] = value if isinstance(value, str) else declared.kind.show(value)
    if work.trusted:
        texts["SIGNATURE_KEYS"] = ", ".join(work.trusted)  # so that who only reads needs no signing key
    return texts


# -- the files


def _write_files(work: Work, request: Request, plan: Plan, begun: Begun, recovery: Recovery) -> bool:
    """Everything that lies in the data folder, synced, pg_control last; whether there was configuration outside."""
    summary, account, data = plan.summary, request.account, request.data
    opener = opener_of(work.settings, summary.recipients)
    keys = DataKeys(work.store, plan.repository_id, opener) if summary.sealed else None
    outside = request.folder / _OUTSIDE
    _remove_folder(outside)
    with step(work, "files", f"restore {show_bytes(plan.plain_bytes)} to {data}") as running:
        done, lock = 0, threading.Lock()

        def wrote(count: int) -> None:
            nonlocal done
            with lock:
                done += count
                running.progress(done, plan.plain_bytes)

        manifest = read_entries(work.store, summary, opener)
        stretch_bytes = manifest.head.stretch_bytes
        pages = PackReader(work.store, keys, summary.sizes.page_bytes, stretch_bytes)
        writer = FileWriter(Places(data, outside, plan.tablespaces, account), pages, wrote, stretch_bytes)
        writer.write(manifest)

        def served(role: Literal["label", "tablespace_map", "server_manifest"]) -> bytes:
            content = b"".join(plain_part(work.store, part_of(summary, role), opener))
            begun.check()
            return content

        write_synced(data / "backup_label", served("label"), account)
        write_synced(data / "backup_manifest", served("server_manifest"), account)
        if summary.part("tablespace_map") is not None:
            write_synced(data / "tablespace_map", remapped(served("tablespace_map"), request.tablespaces), account)
        write_recovery(data, recovery, account)
        writer.finish(begun.check)
        running.done = f"{data}: {show_count(summary.files, 'file')}, {show_bytes(plan.plain_bytes)}, synced"
    return writer.has_outside


def _remove_folder(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _recovery(request: Request, plan: Plan, plan_id: str) -> Recovery:
    fetch: list[str | Path] = [*request.program, "wal", "fetch"]
    # By its id, too: the folder may be another restore's by the time this one's server is started.
    fetch += ["--standby"] if request.standby else ["--restore-folder", request.folder, "--plan", plan_id]
    command = restore_command(fetch, standby=request.standby)
    return Recovery(plan.target, plan.line.timeline, command, plan.summary.settings, standby=request.standby)


# -- the server


def _start(work: Work, request: Request, plan: Plan, port: int | None, runner: Runner | None) -> Started:
    handshake = request.folder / _HANDSHAKE
    _remove_folder(handshake)
    handshake.mkdir(mode=0o700)
    request.account.own(handshake)
    shim = handshake / RESTORE_SHIM.name
    write_synced(shim, RESTORE_SHIM.read_bytes(), request.account)
    with _served(work, request, handshake) as refused:
        end = plan.wal.segments[-1].start
        starting = Starting(
            data=request.data,
            folder=request.folder,
            account=request.account,
            major=plan.summary.versions.server_major,
            target=plan.target,
            begin=Lsn.parse(plan.summary.start_lsn),
            end=end,
            must_reach=plan.ends_at,
            command=restore_command(["sh", shim, handshake]),
            refused=lambda: refused[-1] if refused else None,
            port=port,
            runner=runner,
        )
        return start_recovered(work, starting)


def _settle(work: Work, request: Request, recovery: Recovery) -> tuple[str, ...]:
    """Take away what was for recovery alone; what is left of it. The server runs: what to do then is only told."""
    try:
        settle(request.data, recovery, request.account)
    except OSError as error:
        work.emit(
            Warned(
                f"the settings of this recovery are still in {request.data / AUTO_CONF}: {error.strerror}",
                (f"a standby of this server would follow them: ALTER SYSTEM RESET each of {', '.join(recovery.passing())}",),
            )
        )
        return tuple(recovery.passing())
    return ()


@contextmanager
def _served(work: Work, request: Request, handshake: Path) -> Iterator[list[ClipperError]]:
    """Answer the recovering server's requests for WAL from within this process; what was refused is in the list.

    No process is started for a segment, and what was read ahead is at hand: replay waits for nothing.
    """
    refused: list[ClipperError] = []
    stop = threading.Event()

    def note(error: Exception) -> None:
        refused.append(error if isinstance(error, ClipperError) else ClipperError(f"{type(error).__name__}: {error}"))

    def run() -> None:
        try:
            opened = open_restore(request.folder, work.clock, ignore)
            serve(opened, request.data, handshake, stop, note)
        except Exception as error:  # noqa: BLE001  told by whoever waits for WAL
            note(error)

    thread = threading.Thread(target=run, name="wal serve")
    thread.start()
    try:
        yield refused
    finally:
        stop.set()
        thread.join()


def _archive_history(work: Work, started: Started, signed_by: str | None) -> bool:
    """Archive the history of the new timeline, so that nobody else takes its number (rule 98). A failure is only told."""
    try:
        check_may_sign(work.settings, signed_by)
        with step(work, "history", f"archive {started.history.name}") as running:
            push(work, started.history)
            running.done = f"{started.history.name} is in the archive: timeline {int(started.timeline)} is taken"
    except ClipperError as error:
        work.emit(
            Warned(
                f"{started.history.name} could not be archived: {error.message}",
                (*error.hints, f"before archiving is switched on: `clipper-backup wal push {started.history}`"),
            )
        )
        return False
    return True
