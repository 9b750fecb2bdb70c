"""Damaged dumps: `dump verify` names the object, `dump restore` refuses it and leaves no database, nothing hides the others."""

import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clipper_backup.errors import ClipperError, IntegrityError, StoreError, ToolMissingError
from clipper_backup.format.compression import compress, compress_bytes, decompress_bytes
from clipper_backup.ops.dump.read import catalog
from clipper_backup.postgres.server import PrivateServer
from fixtures.dump import (
    SMALL,
    WORKING_PREFIX,
    Site,
    check_told,
    databases_of,
    drop_databases,
    parts_of,
    recommit,
)
from fixtures.postgres import client_environment, fresh_database, server_binaries, sql
from fixtures.sweeps import chosen

pytestmark = pytest.mark.soak(share=0.25)

FLIPS = 5


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :]


def same_size(data: bytes) -> bytes:
    """As many bytes, decompressing without complaint: only the hash tells that they are not what was committed."""
    plain = decompress_bytes(data, "it")
    for position in range(len(plain)):
        changed = flipped(plain, position)
        for other in (compress_bytes(changed), b"".join(compress([changed], level=1, threads=2))):
            if len(other) == len(data):
                return other
    raise AssertionError("no change leaves the size as it is")


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit": lambda data: flipped(data, random.randrange(len(data))),
    "its end cut off": lambda data: data[: random.randrange(1, len(data))],
    "emptied": lambda data: data[:0],
    "a stretch of zeros": lambda data: data[: len(data) // 2] + bytes(40) + data[len(data) // 2 + 40 :],
    "bytes appended": lambda data: data + b"\0",
    "itself appended": lambda data: data + data,
    "another content of the same size": same_size,
}
KINDS = ["dump.zst", "globals.sql.zst", "details.zst"]


@pytest.fixture
def object_of(site: Site) -> Callable[[str], Path]:
    """The file of the recent dump's object of a kind."""

    def path(kind: str) -> Path:
        name = f"{site.recent}.{site.database}.{kind}" if kind == "dump.zst" else f"{site.recent}.{kind}"
        return site.folder / "database" / name

    return path


def check_not_restored(site: Site, damaged: Path, *options: str) -> None:
    """`restore` names the object and leaves no database."""
    before = databases_of(site.server)
    outcome = site.run("dump", "restore", site.recent, "--into", f"{site.database}_restored", *options)
    check_told(outcome, 13, f"database/{damaged.name}", hint="use another dump")
    assert databases_of(site.server) == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_object_is_named(site: Site, object_of: Callable[[str], Path], kind: str, damage: str) -> None:
    path = object_of(kind)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))

    with pytest.raises(IntegrityError, match=f"database/{path.name}"):
        site.verify(site.recent)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_object_is_not_restored_and_harms_no_other_dump(
    site: Site, object_of: Callable[[str], Path], kind: str
) -> None:
    path = object_of(kind)
    path.write_bytes(flipped(path.read_bytes(), path.stat().st_size // 2))

    check_told(site.run("dump", "verify", site.recent), 13, f"database/{path.name}", hint="use another dump")
    check_not_restored(site, path)
    assert site.run("dump", "verify", site.old).code == 0


def test_a_damaged_object_is_not_restored_by_parallel_jobs_either(site: Site, object_of: Callable[[str], Path]) -> None:
    path = object_of("dump.zst")
    path.write_bytes(path.read_bytes()[:-5])

    check_not_restored(site, path, "--jobs", "2")


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_object_is_named_and_not_restored(site: Site, object_of: Callable[[str], Path], kind: str) -> None:
    path = object_of(kind)
    path.unlink()

    with pytest.raises(IntegrityError, match=f"database/{path.name} is missing"):
        site.verify(site.recent)
    check_not_restored(site, path)


@pytest.mark.parametrize("kind", ["dump.zst", "details.zst"])
def test_another_days_object_under_this_name_is_named_and_not_restored(
    site: Site, object_of: Callable[[str], Path], kind: str
) -> None:
    path = object_of(kind)
    shutil.copyfile(path.with_name(path.name.replace(site.recent, site.old)), path)

    with pytest.raises(IntegrityError, match=f"database/{path.name}"):
        site.verify(site.recent)
    check_not_restored(site, path)


def test_everything_that_is_damaged_is_named_at_once(site: Site, object_of: Callable[[str], Path]) -> None:
    for kind in KINDS:
        object_of(kind).unlink()

    outcome = site.run("dump", "verify", site.recent)
    check_told(outcome, 13, *(f"database/{object_of(kind).name}" for kind in KINDS))


# -- the summary


OF_ANOTHER_DUMP = "of another dump"
SUMMARY_DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "emptied": lambda data: data[:0],
    "no text": lambda data: data + bytes(range(256)),
    "another document": lambda data: data[:2] + b'"schema": 1}',
    "a list": lambda data: b"[" + data + b"]",
}


@pytest.mark.parametrize("damage", [*SUMMARY_DAMAGES, OF_ANOTHER_DUMP])
def test_a_damaged_summary_is_named_and_listed_and_hides_no_other_dump(site: Site, damage: str) -> None:
    summary = site.folder / "database" / f"{site.old}.backup.json"
    if damage == OF_ANOTHER_DUMP:
        shutil.copyfile(summary.with_name(f"{site.recent}.backup.json"), summary)
    else:
        summary.write_bytes(SUMMARY_DAMAGES[damage](summary.read_bytes()))

    with pytest.raises(IntegrityError, match=f"database/{summary.name}"):
        site.verify(site.old)
    damaged, good = catalog(site.work())
    assert (str(damaged.listed.dump_id), damaged.summary) == (site.old, None)
    assert f"database/{summary.name}" in str(damaged.problem)
    assert (str(good.listed.dump_id), good.problem) == (site.recent, None)


def test_a_dump_with_a_damaged_summary_is_not_restored_and_kept_however_old_it_is(site: Site) -> None:
    summary = site.folder / "database" / f"{site.old}.backup.json"
    good = summary.read_bytes()
    summary.write_bytes(good[:-9])
    damaged = parts_of(site.objects, site.old)

    check_told(site.run("dump", "verify", site.old), 13, f"database/{summary.name}", hint="use another dump")
    outcome = site.run("dump", "restore", site.old, "--into", f"{site.database}_restored")
    check_told(outcome, 13, f"database/{summary.name}", hint="use another dump")
    assert f"{site.database}_restored" not in databases_of(site.server)
    assert "DAMAGED" in site.run("dump", "list").stdout.splitlines()[1]
    pruned = site.run("prune", "--yes", RETENTION_MIN_DUMPS="1")
    assert "a person must decide" in pruned.stdout
    assert parts_of(site.objects, site.old) == damaged

    summary.write_bytes(good)  # only that kept it
    assert site.run("prune", "--yes", RETENTION_MIN_DUMPS="1").code == 0
    assert site.dumps == [site.recent]


# -- dumps of another database


def test_the_last_dumps_of_a_database_outlive_newer_ones_of_another(site: Site) -> None:
    clipper, other = site.database, "postgres"
    for _ in range(2):
        assert site.run("dump", "create", BACKUP_DATABASES=other).code == 0
    pruned = site.run("prune", "--yes", "--retention-days", "1", RETENTION_MIN_DUMPS="2")
    assert f"40 days old, but one of the 2 newest of {clipper}; `dump delete` lets go of it" in pruned.stdout
    assert {site.old, site.recent} < set(site.dumps)

    missing = site.run("dump", "restore", "latest", "--database", clipper, "--into", f"{clipper}_restored")
    check_told(missing, 15, f"does not hold database '{clipper}'", hint=f"the newest good dump that holds it is {site.recent}")
    refused = site.run("dump", "delete", site.recent, "--yes")
    check_told(refused, 2, f"{site.recent} is the newest good dump that holds {clipper}", hint="--last")
    assert site.recent in site.dumps
    site.check_untouched()
    assert site.run("dump", "delete", site.recent, "--last", "--yes").code == 0
    assert site.recent not in site.dumps


# -- every byte


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_no_flipped_bit_of_any_object_goes_unnoticed(site: Site, object_of: Callable[[str], Path], kind: str) -> None:
    path = object_of(kind)
    good = path.read_bytes()
    site.verify(site.recent)
    for position in chosen(range(len(good)), FLIPS):
        path.write_bytes(flipped(good, position))
        with pytest.raises(IntegrityError, match=path.name):
            site.verify(site.recent)


def objects_of(summary: bytes) -> list[tuple[str, int, str]]:
    return [
        (stored["key"], stored["size_bytes"], stored["sha256"])
        for stored in json.loads(summary.decode(errors="replace"))["objects"]
    ]


@pytest.mark.soak
def test_a_summary_with_a_flipped_bit_is_refused_or_still_tells_the_objects_right(site: Site) -> None:
    path = site.folder / "database" / f"{site.recent}.backup.json"
    good = path.read_bytes()
    for position in chosen(range(len(good)), 3 * FLIPS):
        path.write_bytes(flipped(good, position))
        try:
            site.verify(site.recent)
        except ClipperError as error:
            # What it says of versions may be believed: of the format it is written in, of the programs that are needed.
            reasons = {IntegrityError: site.recent, StoreError: "newer version", ToolMissingError: "or newer"}
            assert reasons[type(error)] in str(error)  # noqa: PT017  any of them, or none
        else:
            assert objects_of(path.read_bytes()) == objects_of(good)


# -- what only the content shows


@pytest.fixture
def own_database(postgres15: PrivateServer) -> Iterator[str]:
    """The small database once more, to be changed."""
    with fresh_database(postgres15) as name:
        sql(postgres15, name, SMALL)
        yield name


def dump_then_replace_archive(site: Site, database: str, change: str, **settings: str) -> str:
    """Take a dump, then make its archive one of the database after *change*, as if it had always been so; the dump's id."""
    outcome = site.run("dump", "create", BACKUP_DATABASES=database, **settings)
    assert outcome.code == 0, outcome
    dump_id = site.dumps[-1]
    sql(site.server, database, change)
    made = subprocess.run(
        [server_binaries(15).program("pg_dump"), "-Fc", "-Z0", database],
        env=client_environment(site.server),
        capture_output=True,
        check=True,
    )
    (site.folder / "database" / f"{dump_id}.{database}.dump.zst").write_bytes(compress_bytes(made.stdout))
    recommit(site.folder, dump_id)
    return dump_id


@pytest.fixture
def target(site: Site) -> Iterator[str]:
    """The name of a database to restore into; it, and the copies that differ and are kept, are dropped."""
    name = f"{site.database}_differs"
    yield name
    drop_databases(site.server, name, WORKING_PREFIX)


def test_a_lost_row_is_found_in_the_archive_and_after_a_restore(site: Site, own_database: str, target: str) -> None:
    dump_id = dump_then_replace_archive(site, own_database, "DELETE FROM clips WHERE id = 77")

    verified = site.run("dump", "verify", dump_id)
    check_told(verified, 13, own_database, "public.clips has 199 rows in the archive, 200 were counted")
    assert "public.users" not in verified.stderr
    restored = site.run("dump", "restore", dump_id, "--into", target)
    check_told(restored, 13, "table public.clips: 200 rows recorded, 199 rows found", hint="was kept as database")
    assert target not in databases_of(site.server)


def test_a_changed_value_is_found_after_a_restore_of_a_hashed_dump(site: Site, own_database: str, target: str) -> None:
    change = "UPDATE clips SET title = 'another' WHERE id = 77"
    dump_id = dump_then_replace_archive(site, own_database, change, DUMP_FINGERPRINT="hash")

    # The archive's rows are counted, not hashed: only a server can tell what a value is.
    assert site.run("dump", "verify", dump_id).code == 0
    restored = site.run("dump", "restore", dump_id, "--into", target)
    check_told(restored, 13, "table public.clips: hash", "over the same 200 rows", hint="was kept as database")
    assert "public.users" not in restored.stderr
    assert target not in databases_of(site.server)


def test_a_sequence_that_is_behind_is_found_in_the_archive_and_after_a_restore(
    site: Site, own_database: str, target: str
) -> None:
    dump_id = dump_then_replace_archive(site, own_database, "SELECT setval('clips_id_seq', 3)")

    check_told(site.run("dump", "verify", dump_id), 13, "sequence public.clips_id_seq")
    check_told(site.run("dump", "restore", dump_id, "--into", target), 13, "sequence public.clips_id_seq: 200")


def test_archives_of_two_databases_that_changed_places_are_found(site: Site, own_database: str) -> None:
    both = f"{site.database},{own_database}"
    assert site.run("dump", "create", BACKUP_DATABASES=both).code == 0
    dump_id = site.dumps[-1]
    one, other = (site.folder / "database" / f"{dump_id}.{name}.dump.zst" for name in (site.database, own_database))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)

    check_told(site.run("dump", "verify", dump_id), 13, f"database/{one.name}", f"database/{other.name}")
    recommit(site.folder, dump_id)  # now only their content tells
    check_told(site.run("dump", "verify", dump_id), 13, f"database {site.database}: ", f"database {own_database}: ")
