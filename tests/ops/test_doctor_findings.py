"""What `doctor`'s checks make of repositories whose dumps are made of a few bytes, and of key files."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from clipper_backup.clock import Clock, VirtualClock
from clipper_backup.config import Settings
from clipper_backup.errors import ClipperError, IntegrityError, MissingError, StoreError, ToolMissingError
from clipper_backup.format import names
from clipper_backup.format.documents import KeyCheck, Rotation, VerifiedKind, VerifyReport, encode
from clipper_backup.format.physical_names import VERIFY_REPORT
from clipper_backup.format.sealing import Identity
from clipper_backup.kinds import NONE
from clipper_backup.ops.doctor.declared import Surroundings
from clipper_backup.ops.doctor.examine import CHECKS
from clipper_backup.ops.doctor.of_store import PROBE
from clipper_backup.ops.dump.read import archive_in_scratch
from clipper_backup.ops.events import ignore
from clipper_backup.ops.findings import Colour, Finding
from clipper_backup.ops.key_check import check_key
from clipper_backup.ops.work import Work, step
from clipper_backup.repository.dumps import DumpWriter, Last, last_dump, read_summary
from clipper_backup.repository.verify_report import write_report
from clipper_backup.store.memory import MemoryStore
from fixtures.catalog import INTENT, make_dump, make_sealed_dump, put_parts
from fixtures.clocks import START
from fixtures.postgres import server_binaries
from fixtures.wal_look import MadeRepository


def look(name: str, store: MemoryStore, clock: Clock, **settings: Any) -> Finding:
    """What the check *name* finds."""
    (check,) = (each for each in CHECKS if each.name == name)
    here = Surroundings(lambda: Settings(**settings), clock, {})
    here.work = Work(here.settings, store, clock, ignore)
    return check.look(here)


def test_a_signed_newest_dump_and_no_key_to_sign_the_next_is_red(repository: MemoryStore, clock: VirtualClock) -> None:
    assert look("signing", repository, clock).colour is Colour.YELLOW, "nothing is signed"
    repository.put(names.dump_key(make_dump(repository), names.SIGNATURE), b"a signature")
    found = look("signing", repository, clock)
    assert (found.colour, "the next run refuses to dump" in found.text) == (Colour.RED, True)
    assert look("signing", repository, clock, signing_key_file=Path(NONE)).colour is Colour.YELLOW, "that is meant"


def test_an_identity_that_does_not_open_the_newest_dump_is_red(
    repository: MemoryStore, clock: VirtualClock, tmp_path: Path
) -> None:
    ours, other = Identity.make(), Identity.make()
    for name, identity in (("ours", ours), ("other", other)):
        (tmp_path / name).write_text(identity.reveal())
    assert look("identity", repository, clock).colour is Colour.GREEN, "nobody reads here"
    sealed = make_sealed_dump(repository, ours.recipient)
    assert look("identity", repository, clock, encryption_identity_file=tmp_path / "ours").colour is Colour.GREEN
    found = look("identity", repository, clock, encryption_identity_file=tmp_path / "other")
    assert found == Finding(Colour.RED, f"{sealed} is sealed to other keys: {tmp_path / 'other'} holds {other.recipient}")


def test_a_missing_key_file_is_red_with_the_hint_for_its_kind(
    repository: MemoryStore, clock: VirtualClock, tmp_path: Path
) -> None:
    with pytest.raises(MissingError, match="there is no key file") as identity:
        look("identity", repository, clock, encryption_identity_file=tmp_path / "identity")
    assert "SIGNATURE_KEYS" not in " ".join(identity.value.hints)
    found = look("signing", repository, clock, signing_key_file=tmp_path / "signing.key")
    assert (found.colour, "SIGNATURE_KEYS" in " ".join(found.todo)) == (Colour.RED, True)


def test_a_plain_dump_of_one_database_does_not_hide_an_unchecked_key(
    repository: MemoryStore, clock: VirtualClock, tmp_path: Path
) -> None:
    ours = Identity.make()
    (tmp_path / "ours").write_text(ours.reveal())
    sealed = make_sealed_dump(repository, ours.recipient, databases=["clipper", "shop"])
    clock.advance(3600)
    make_dump(repository, ["clipper"])
    found = look("key check", repository, clock, backup_databases=("clipper", "shop"))
    assert found == Finding(Colour.RED, f"{sealed} is sealed, and no check of a key is recorded")
    checked = check_key(Work(Settings(), repository, clock, ignore), tmp_path / "ours")
    assert [each.newest.name for each in checked.tried] == [str(sealed)], "what it says to do"
    assert look("key check", repository, clock, backup_databases=("clipper", "shop")).colour is Colour.GREEN


@pytest.mark.parametrize("unreadable", [b"{", b'{"schema": 2}'])
def test_what_stops_every_prune_is_red_with_what_to_do(repository: MemoryStore, clock: VirtualClock, unreadable: bytes) -> None:
    assert look("last prune", repository, clock) == Finding(Colour.GREEN, "never pruned")
    repository.put(names.RETENTION, unreadable)
    with pytest.raises((IntegrityError, StoreError), match=names.RETENTION) as raised:
        look("last prune", repository, clock)
    assert raised.value.hints


def test_dumps_of_newer_programs_than_are_there_are_red(repository: MemoryStore, clock: VirtualClock) -> None:
    make_dump(repository)  # by client programs 18
    assert look("restore programs", repository, clock, pg_bindir=server_binaries(18).bindir).colour is Colour.GREEN
    with pytest.raises(ToolMissingError, match="is older than 18"):
        look("restore programs", repository, clock, pg_bindir=server_binaries(15).bindir)


def test_a_directory_that_scratch_has_no_room_for_is_red_since_every_restore_needs_it(
    repository: MemoryStore, clock: VirtualClock
) -> None:
    key = names.dump_key(make_dump(repository, ["clipper"]), names.SUMMARY)
    summary = json.loads(repository.get(key))
    stored = summary["objects"][0]
    stored["plain_bytes"] = 10**17
    repository.put(key, json.dumps(summary).encode())
    found = look("scratch", repository, clock)
    assert (found.colour, "restore with --jobs 1" in found.text) == (Colour.YELLOW, True)
    stored["archive"] = "directory"
    repository.put(key, json.dumps(summary).encode())
    found = look("scratch", repository, clock)
    assert (found.colour, "for every restore" in found.text, "--jobs 1" in found.text) == (Colour.RED, True, False)


@pytest.mark.parametrize(("kind", "avoidable"), [("custom", True), ("directory", False)])
def test_one_job_is_offered_only_where_it_needs_no_scratch(
    repository: MemoryStore, clock: VirtualClock, kind: str, avoidable: bool
) -> None:
    work = Work(Settings(), repository, clock, ignore)
    summary = read_summary(repository, make_dump(repository, ["clipper"]))
    stored = replace(summary.objects[0], archive=kind, plain_bytes=10**17)
    with (
        step(work, "restore", "restore") as running,
        pytest.raises(ClipperError, match="of scratch space") as raised,
        archive_in_scratch(work, summary, stored, running),
    ):
        raise AssertionError("it was let in")
    assert ("one job" in raised.value.hints[0]) is avoidable


class _Beside(MemoryStore):
    """Another doctor runs its check *name* just before every write of ours is done."""

    def __init__(self, clock: VirtualClock, name: str) -> None:
        super().__init__(clock)
        self._name, self._other = name, False

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        super().put(key, data, create=create)
        if not self._other:
            self._other = True
            assert look(self._name, self, self._clock).colour is Colour.GREEN
            self._other = False


@pytest.mark.parametrize("name", ["write", "conditional create"])
def test_two_doctors_at_once_are_not_in_each_others_way(clock: VirtualClock, name: str) -> None:
    store = _Beside(clock, name)
    assert look(name, store, clock).colour is Colour.GREEN
    assert list(store.list("")) == []


def test_probes_of_a_killed_doctor_are_removed_an_hour_later(repository: MemoryStore, clock: VirtualClock) -> None:
    repository.put(f"{PROBE}-0", b"left")
    look("write", repository, clock)
    assert [info.key for info in repository.list("doctor/")] == [f"{PROBE}-0"], "it may be of one that runs"
    clock.advance(3601)
    look("write", repository, clock)
    assert list(repository.list("doctor/")) == []


def test_a_key_check_that_lies_ahead_is_not_green_for_ever(repository: MemoryStore, clock: VirtualClock) -> None:
    ours = Identity.make().recipient
    dump_id = make_sealed_dump(repository, ours)
    for ahead, colour in ((timedelta(seconds=60), Colour.GREEN), (timedelta(seconds=61), Colour.YELLOW)):
        mark = KeyCheck(recipient=ours, dump_id=str(dump_id), checked_at=clock.now() + ahead, checked_by="somebody")
        repository.put(f"{names.KEY_CHECKS_FOLDER}{ours}", encode(mark))
        assert look("key check", repository, clock).colour is colour


def test_a_newest_dump_ahead_of_the_clock_is_not_said_to_be_new(repository: MemoryStore) -> None:
    ahead = make_dump(repository)
    slow = VirtualClock(START - timedelta(hours=3))
    assert look("newest dump", repository, slow).text == f"{ahead} lies 3 h 0 min ahead of the clock: nobody knows how old it is"
    assert look("newest dump", repository, slow).colour is Colour.YELLOW
    assert look("newest dump", repository, VirtualClock(START - timedelta(seconds=60))).colour is Colour.GREEN


def test_a_repository_that_this_version_must_not_write_to_is_red(repository: MemoryStore, clock: VirtualClock) -> None:
    assert look("repository", repository, clock).colour is Colour.GREEN
    newer = repository.get(names.REPOSITORY).replace(b'"min_writer_version": 1', b'"min_writer_version": 2')
    repository.put(names.REPOSITORY, newer)
    with pytest.raises(StoreError, match="has format 2, this version knows 1"):
        look("repository", repository, clock)


@pytest.mark.parametrize("check", ["encryption", "signing"])
@pytest.mark.parametrize("damaged", [False, True], ids=["by its summary", "by its names"])
def test_the_newest_dump_is_sealed_and_signed_if_anything_says_so(
    repository: MemoryStore, clock: VirtualClock, check: str, *, damaged: bool
) -> None:
    """Somebody removed the signature and the sealed objects, or the summary is damaged: `dump create` refuses all the same."""
    writer = DumpWriter.take_id(repository, INTENT)
    summary = put_parts(repository, writer.dump_id)
    writer.commit(replace(summary, recipients=["age1somebody"], signed_by="ed25519:somebody"))
    if damaged:
        for part in (names.SIGNATURE, names.GLOBALS + names.SEALED, names.SUMMARY):
            repository.put(names.dump_key(writer.dump_id, part), b"{")
    assert last_dump(repository) == Last(writer.dump_id, sealed=True, signed=True)
    found = look(check, repository, clock)
    assert (found.colour, "the next run refuses to dump" in found.text) == (Colour.RED, True)


@pytest.mark.rule(104)
def test_how_long_an_outage_a_buckets_rule_lets_pass(repository: MemoryStore, clock: VirtualClock) -> None:
    found = look("outage", repository, clock)
    assert (found.colour, found.text[:6]) == (Colour.GREEN, "7 days")
    assert look("outage", repository, clock, max_pack_age_days=2).text[:7] == "14 days", "what is refreshed is a fortnight old"
    found = look("outage", repository, clock, max_pack_age_days=21)
    assert (found.colour, "takes what the window needs" in found.text) == (Colour.YELLOW, True)


def report(clock: VirtualClock, *, wal_in_turn: bool = True) -> VerifyReport:
    """Of a run that ended now, on dumps alone; without *wal_in_turn* nobody could look at WAL."""
    rotation = Rotation(covered_since=clock.now() - timedelta(days=7), covered_until=clock.now())

    def kind(size_bytes: int, rotation: Rotation | None) -> VerifiedKind:
        read = {"read_bytes": size_bytes, "covered_bytes": size_bytes, "units": size_bytes, "read_units": size_bytes}
        return VerifiedKind(size_bytes=size_bytes, owed_bytes=0, damaged=0, rotation=rotation, **read)

    return VerifyReport(
        begun_at=clock.now(),
        ended_at=clock.now(),
        software="a test",
        mode="rotation",
        cycle_days=7,
        dumps=kind(10, rotation),
        packs=kind(0, rotation),
        wal=kind(0, rotation if wal_in_turn else None),
        damaged=0,
        damage=[],
    )


def test_a_kind_that_was_never_read_in_turn_is_yellow(repository: MemoryStore, clock: VirtualClock) -> None:
    """What could not even be counted is no byte of the share: all of the others are no reason for green."""
    make_dump(repository)
    write_report(repository, report(clock))
    assert look("verify", repository, clock).colour is Colour.GREEN
    write_report(repository, report(clock, wal_in_turn=False))
    found = look("verify", repository, clock)
    assert (found.colour, found.text.endswith("100% of all bytes read within 7 days, and never in turn: wal")) == (
        Colour.YELLOW,
        True,
    )


def test_a_report_that_cannot_be_read_is_written_anew_or_not(repository: MemoryStore, clock: VirtualClock) -> None:
    make_dump(repository)
    repository.put(VERIFY_REPORT, b"{")
    found = look("verify", repository, clock)
    assert (found.colour, found.todo) == (Colour.RED, ("`clipper-backup verify` writes it anew",))
    repository.put(VERIFY_REPORT, json.dumps({**json.loads(encode(report(clock))), "schema": 2}).encode())
    found = look("verify", repository, clock)
    assert found.colour is Colour.RED
    assert found.todo == ("install the version of clipper-backup that wrote it, or a newer one",)


def test_keys_of_base_backups_alone_are_looked_at_too(tmp_path: Path) -> None:
    """Without dumps, nobody knew whether a key opens what is stored: that is no reason for green."""
    made = MadeRepository()
    ours, other = Identity.make(), Identity.make()
    for name, identity in (("ours", ours), ("other", other)):
        (tmp_path / name).write_text(identity.reveal())
    made.archive.segments(1, 3, 7)
    assert isinstance(made.store, MemoryStore)
    assert look("key check", made.store, made.clock).text == "there is no good backup to open"
    backup = made.backup(1, 3, 4, recipients=[ours.recipient]).id
    found = look("key check", made.store, made.clock)
    assert (found.colour, found.text) == (
        Colour.RED,
        f"the base backup {backup} is sealed, and no check of a key is recorded",
    )
    found = look("identity", made.store, made.clock, encryption_identity_file=tmp_path / "other")
    assert (found.colour, backup in found.text) == (Colour.RED, True)
    assert look("identity", made.store, made.clock, encryption_identity_file=tmp_path / "ours").colour is Colour.GREEN
    check = KeyCheck(recipient=ours.recipient, dump_id="", base_backup=backup, checked_at=made.clock.now(), checked_by="a test")
    made.store.put(f"{names.KEY_CHECKS_FOLDER}{ours.recipient}", encode(check))
    assert look("key check", made.store, made.clock).colour is Colour.GREEN
