"""Restore equals source: by the tests' own SQL at the dump's own snapshot, while somebody writes."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from clipper_backup.errors import IntegrityError
from clipper_backup.ops.dump.create import create_dump
from clipper_backup.ops.dump.restore import Request, restore_dump
from clipper_backup.ops.dump.verify import verify_dump
from clipper_backup.ops.events import Event, StepDone
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.values import DumpId
from fixtures.oracle import Writer, content_now, content_of, settings_for, work_for
from fixtures.postgres import sql


@pytest.fixture
def restored_name(postgres: PrivateServer, clipper: str) -> Iterator[str]:
    name = f"{clipper}_restored"
    yield name
    sql(postgres, "postgres", f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


class Watcher:
    """Looks at the source on the dump's own snapshot, the moment it is taken."""

    def __init__(self, server: PrivateServer, dbname: str) -> None:
        self._server, self._dbname = server, dbname
        self.content: dict[str, tuple[int, str | None]] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepDone) and event.step.startswith("lock "):
            exported = event.text.rpartition(" ")[2]
            with content_now(self._server, self._dbname, exported) as content:
                self.content = content


@pytest.mark.rule(103)
@pytest.mark.parametrize("jobs", [1, 3])
def test_rule_103_a_restored_database_equals_the_source_at_the_snapshot_while_a_writer_runs(
    postgres: PrivateServer, clipper: str, restored_name: str, tmp_path: Path, jobs: int
) -> None:
    watcher = Watcher(postgres, clipper)
    settings = settings_for(postgres, tmp_path / "store", clipper, dump_jobs=jobs, dump_fingerprint="hash", scratch_dir=tmp_path)
    with Writer(postgres, clipper, seed=1) as writer:
        before = writer.commits
        dump = create_dump(work_for(settings, watcher))
        assert writer.commits > before
    verified = verify_dump(work_for(settings), DumpId.parse(dump.summary.id))
    restored = restore_dump(work_for(settings), Request(DumpId.parse(dump.summary.id), restored_name, jobs=jobs))

    with content_now(postgres, restored_name) as content:
        assert content == watcher.content
    assert "written" in str(list(content))
    rows = sum(count for count, _ in watcher.content.values())
    assert dump.summary.rows == verified.rows == restored.comparison.rows == rows
    with content_now(postgres, clipper) as later:
        assert later != watcher.content, "the writer changed nothing after the snapshot: this test shows nothing"


@pytest.mark.rule(103)
def test_rule_103_sequences_that_advance_during_the_dump_are_compared_with_the_dumps_own_values(
    postgres: PrivateServer, clipper: str, restored_name: str, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        connection = stack.enter_context(psycopg.connect(**postgres.connection(clipper), autocommit=True))  # type: ignore[arg-type]
        connection.execute("CREATE SEQUENCE advancing")
        connection.execute("SELECT setval('advancing', 100)")

        def advance(event: Event) -> None:
            if isinstance(event, StepDone):
                connection.execute("SELECT nextval('advancing') FROM generate_series(1, 50)")

        settings = settings_for(postgres, tmp_path / "store", clipper)
        dump = create_dump(work_for(settings, advance))
    recorded = next(s for s in dump.details.databases[0].sequences if s.name == "advancing")
    assert recorded.last_value > 100, "it did not advance before pg_dump read it: this test shows nothing"
    restored = restore_dump(work_for(settings), Request(DumpId.parse(dump.summary.id), restored_name))
    assert restored.comparison.differences == ()
    assert sql(postgres, restored_name, "SELECT last_value FROM advancing") == [(recorded.last_value,)]


def _tampered_restore(
    server: PrivateServer, name: str, into: str, store: Path, statement: str, **settings: object
) -> IntegrityError:
    """Dump, then restore while a trigger of the tests' own changes what arrives."""
    work = work_for(settings_for(server, store, name, **settings))
    dump = create_dump(work)
    # An event trigger would be restored too; a rule in the template is not possible; so change the rows as soon as they are
    # there: after `restore`, before `compare`.
    changed = []

    def change(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == "analyze":
            target = event_target(server)
            sql(server, target, statement)
            changed.append(target)

    with pytest.raises(IntegrityError) as caught:
        restore_dump(work_for(work.settings, change), Request(DumpId.parse(dump.summary.id), into))
    assert changed
    assert sql(server, "postgres", f"SELECT 1 FROM pg_database WHERE datname = '{into}'") == [], "a wrong copy got the name"
    for target in changed:
        sql(server, "postgres", f'DROP DATABASE "{target}" WITH (FORCE)')
    return caught.value


def event_target(server: PrivateServer) -> str:
    ((name,),) = sql(server, "postgres", "SELECT datname FROM pg_database WHERE datname LIKE 'clipper_backup_restoring_%'")
    return str(name)


def test_a_lost_row_is_found_in_counts_mode(postgres: PrivateServer, clipper: str, restored_name: str, tmp_path: Path) -> None:
    ((count,),) = sql(postgres, clipper, "SELECT count(*) FROM private_notes")
    change = "DELETE FROM private_notes WHERE id = (SELECT min(id) FROM private_notes)"
    error = _tampered_restore(postgres, clipper, restored_name, tmp_path, change)
    assert f"table public.private_notes: {count} rows recorded, {count - 1} rows found" in str(error)
    assert str(error).count("recorded") == 1, "another table was accused"
    assert error.exit_code == 13


def test_one_changed_value_with_the_same_row_count_is_found_in_hash_mode(
    postgres: PrivateServer, clipper: str, restored_name: str, tmp_path: Path
) -> None:
    change = "UPDATE tags SET name = name || 'x' WHERE id = (SELECT max(id) FROM tags)"
    error = _tampered_restore(postgres, clipper, restored_name, tmp_path, change, dump_fingerprint="hash")
    assert "table public.tags: hash" in str(error)
    assert "over the same" in str(error)
    assert str(error).count("recorded") == 1, "another table was accused"


def test_a_sequence_set_back_is_found(postgres: PrivateServer, clipper: str, restored_name: str, tmp_path: Path) -> None:
    change = "SELECT setval(pg_get_serial_sequence('users', 'id'), 1)"
    error = _tampered_restore(postgres, clipper, restored_name, tmp_path, change)
    assert "sequence public.users_id_seq:" in str(error)


def test_content_of_tells_databases_apart(postgres: PrivateServer, clipper: str) -> None:
    """The oracle itself: it must see a single changed value."""
    with psycopg.connect(**postgres.connection(clipper)) as connection:  # type: ignore[arg-type] # keywords of libpq
        before = content_of(connection)
        connection.execute("UPDATE tags SET name = name || 'x' WHERE id = (SELECT min(id) FROM tags)")
        after = content_of(connection)
        connection.rollback()
    assert {name for name in before if before[name] != after[name]} == {"tags"}
