"""What `status` makes of repositories in every state, of dumps made of a few bytes."""

import json
from datetime import timedelta
from typing import Any

import pytest

from clipper_backup.cli.show_status import status_document, status_text
from clipper_backup.clock import SystemClock, VirtualClock
from clipper_backup.config import Settings
from clipper_backup.format import names
from clipper_backup.format.documents import KeyCheck, LeaseHolder, RetentionMark, encode
from clipper_backup.format.sealing import Identity
from clipper_backup.format.signing import SigningKey
from clipper_backup.ops.events import Event, StepBegun, StepDone, ignore
from clipper_backup.ops.lease import BASE_LEASE, DUMP_LEASE, take_lease
from clipper_backup.ops.status import Status, look_at_repository
from clipper_backup.ops.work import Work
from clipper_backup.repository.dumps import hold_dump
from clipper_backup.repository.leases import held_lease
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.readonly import ReadOnlyStore
from clipper_backup.values import DumpId, json_time, show_time
from fixtures.catalog import HOLD, make_dump, make_sealed_dump, make_unfinished
from fixtures.clocks import START

HOUR_SECONDS = 3600
URL = "memory://"


def look(store: MemoryStore, clock: VirtualClock, *, trusted: tuple[str, ...] = (), **settings: Any) -> Status:
    return look_at_repository(Work(Settings(**settings), ReadOnlyStore(store, clock), clock, ignore, trusted))


def first_line(status: Status) -> str:
    return status_text(status, URL, Settings()).partition("\n")[0]


def checked(store: MemoryStore, recipient: str, dump_id: DumpId, clock: VirtualClock) -> None:
    mark = KeyCheck(recipient=recipient, dump_id=str(dump_id), checked_at=clock.now(), checked_by="somebody")
    store.put(f"{names.KEY_CHECKS_FOLDER}{recipient}", encode(mark))


def damage(store: MemoryStore, dump_id: DumpId) -> None:
    store.put(names.dump_key(dump_id, names.DETAILS), b"rotten")


def test_an_empty_repository_is_not_recoverable(repository: MemoryStore, clock: VirtualClock) -> None:
    found = look(repository, clock)
    assert (found.recoverable, found.recoverable_to, found.newest) == (False, None, ())
    assert first_line(found) == "NOT RECOVERABLE: no good dump is there"


def test_one_dump_is_recoverable_to_its_moment_and_not_called_proven(repository: MemoryStore, clock: VirtualClock) -> None:
    dump_id = make_dump(repository)
    clock.advance(5 * HOUR_SECONDS)
    found = look(repository, clock)
    assert first_line(found) == f"RECOVERABLE to the moment of 1 dump: {show_time(START)}, 5 h 0 min ago; proven: never"
    assert status_document(found, URL)["proven_at"] is None
    assert [(each.database, each.summary.id, each.wanted) for each in found.newest] == [
        ("clipper", str(dump_id), True),
        ("we ird/ä.", str(dump_id), True),
    ]
    assert found.problems == ()


def test_between_dumps_it_promises_the_moments_of_the_dumps_only(repository: MemoryStore, clock: VirtualClock) -> None:
    for _ in range(3):
        make_dump(repository)
        clock.advance(24 * HOUR_SECONDS)
    line = first_line(look(repository, clock))
    last = START + timedelta(days=2)
    assert line == (
        f"RECOVERABLE to the moments of 3 dumps: from {show_time(START)} to {show_time(last)}, 1 d 0 h ago; proven: never"
    )


def test_of_several_databases_the_one_furthest_behind_decides(repository: MemoryStore, clock: VirtualClock) -> None:
    make_dump(repository, ["shop", "clipper"])
    clock.advance(HOUR_SECONDS)
    newest = make_dump(repository, ["clipper"])
    both = look(repository, clock, backup_databases=("clipper", "shop"))
    assert both.recoverable_to == START
    # Without BACKUP_DATABASES it is the newest dump that says what is dumped; what it lacks is shown all the same.
    alone = look(repository, clock)
    assert alone.recoverable_to == newest.at
    assert {each.database: each.wanted for each in alone.newest} == {"clipper": True, "shop": False}
    assert "no longer dumped" in status_text(alone, URL, Settings())


def test_a_dump_counts_for_the_moments_only_if_it_holds_every_wanted_database(
    repository: MemoryStore, clock: VirtualClock
) -> None:
    """A database that is dumped since yesterday can be restored to yesterday's moments and no older ones."""
    make_dump(repository, ["clipper"])
    clock.advance(HOUR_SECONDS)
    both = make_dump(repository, ["clipper", "shop"])
    found = look(repository, clock)
    assert first_line(found) == f"RECOVERABLE to the moment of 1 dump: {show_time(both.at)}, 0.0 s ago; proven: never"
    assert status_document(found, URL)["recoverable_from"] == json_time(both.at)
    assert [(item["id"], item["dumps"], item["oldest_at"]) for item in status_document(found, URL)["items"]] == [
        ("clipper", 2, json_time(START)),
        ("shop", 1, json_time(both.at)),
    ]
    assert f"2 dumps, from {show_time(START)}" in status_text(found, URL, Settings())


def test_of_databases_that_share_no_dump_it_names_the_one_furthest_behind(repository: MemoryStore, clock: VirtualClock) -> None:
    make_dump(repository, ["shop"])
    clock.advance(HOUR_SECONDS)
    make_dump(repository, ["clipper"])
    found = look(repository, clock, backup_databases=("clipper", "shop"))
    to = f"{show_time(START)}, 1 h 0 min ago"
    assert first_line(found) == f"RECOVERABLE, each database to its own moments: all of them to {to}; proven: never"
    document = status_document(found, URL)
    assert (document["recoverable_from"], document["recoverable_to"]) == (None, json_time(START))


def test_a_database_that_vanished_from_the_newest_dump_is_named(repository: MemoryStore, clock: VirtualClock) -> None:
    """Dropped, renamed, or hidden from us: without BACKUP_DATABASES nobody said which databases there should be."""
    last = make_dump(repository, ["clipper", "shop"])
    clock.advance(HOUR_SECONDS)
    make_dump(repository, ["clipper"])
    screen = status_text(look(repository, clock), URL, Settings())
    assert f"gone:        shop, last in {last}\n" in screen
    assert "dropped or renamed? BACKUP_DATABASES says which there should be" in screen
    meant = Settings(backup_databases=("clipper",))
    assert "BACKUP_DATABASES" not in status_text(look(repository, clock, backup_databases=("clipper",)), URL, meant), (
        "it was said"
    )


def test_a_dump_that_lies_ahead_is_a_problem_since_no_other_can_be_taken(repository: MemoryStore, clock: VirtualClock) -> None:
    slow = VirtualClock(START - timedelta(days=3))
    ahead = make_dump(repository, ["clipper"])
    found = look(repository, slow)
    (problem,) = found.problems
    assert problem == (
        f"{ahead} lies 3 d 0 h ahead of this machine's clock: by that clock no dump can be taken before then;"
        " the check `clock` of `clipper-backup doctor` says what to do"
    )
    assert "ahead of this machine's clock" in first_line(found)
    assert status_document(found, URL)["items"][0]["age_seconds"] == -3 * 24 * HOUR_SECONDS
    assert look(repository, VirtualClock(START - timedelta(seconds=59))).problems == (), "as in `dump create`"


def test_a_database_that_no_good_dump_holds_makes_it_not_recoverable(repository: MemoryStore, clock: VirtualClock) -> None:
    make_dump(repository, ["clipper"])
    found = look(repository, clock, backup_databases=("clipper", "shop"))
    assert (found.recoverable, found.missing, found.recoverable_to) == (False, ("shop",), None)
    assert first_line(found) == "NOT RECOVERABLE: no good dump holds shop"


def test_a_damaged_dump_does_not_count_and_is_named(repository: MemoryStore, clock: VirtualClock) -> None:
    good = make_dump(repository)
    clock.advance(HOUR_SECONDS)
    damage(repository, bad := make_dump(repository))
    found = look(repository, clock)
    assert found.recoverable_to == good.at
    assert [str(entry.listed.dump_id) for entry in found.damaged] == [str(bad)]
    assert any(problem.startswith(f"{bad} is damaged: ") for problem in found.problems)
    damage(repository, good)
    assert first_line(look(repository, clock)) == "NOT RECOVERABLE: no good dump is there"


def test_a_dump_that_no_trusted_key_signed_does_not_count(repository: MemoryStore, clock: VirtualClock) -> None:
    bad = make_dump(repository)
    assert not look(repository, clock).untrusted
    found = look(repository, clock, trusted=(SigningKey.make().public,))
    assert [entry.listed.dump_id for entry in found.untrusted] == [bad]
    assert (found.recoverable, found.damaged) == (False, ())
    assert any(problem.startswith(f"{bad} is not trusted: ") for problem in found.problems)


def test_an_unfinished_one_is_shown_and_is_no_problem(repository: MemoryStore, clock: VirtualClock) -> None:
    make_dump(repository)
    clock.advance(60)
    left = make_unfinished(repository)
    found = look(repository, clock)
    assert ([entry.listed.dump_id for entry in found.unfinished], found.problems) == ([left], ())
    assert f"1 unfinished: {left}" in status_text(found, URL, Settings())


def test_an_old_dump_is_a_problem_from_its_age_on(repository: MemoryStore, clock: VirtualClock) -> None:
    make_dump(repository, ["clipper"])
    clock.advance(25 * HOUR_SECONDS)
    assert look(repository, clock).problems == ()
    clock.advance(1)
    (problem,) = look(repository, clock).problems
    assert problem == "the newest good dump of clipper is 1 d 1 h old, more than DUMP_MAX_AGE_HOURS (25)"
    assert look(repository, clock, dump_max_age_hours=26).problems == ()


def test_a_sealed_dump_is_recoverable_with_a_key_and_says_when_one_opened_it(
    repository: MemoryStore, clock: VirtualClock
) -> None:
    ours, offline = Identity.make().recipient, Identity.make().recipient
    first = make_sealed_dump(repository, ours, offline)
    found = look(repository, clock)
    assert first_line(found).startswith("RECOVERABLE with a key to the moment of 1 dump")
    assert found.problems == (f"{first} is sealed, and no check of a key is recorded: `key check --identity FILE`",)

    checked(repository, ours, first, clock)
    clock.advance(2 * HOUR_SECONDS)
    found = look(repository, clock)
    assert found.problems == ()
    screen = status_text(found, URL, Settings())
    assert f"{ours}: opened the newest good dump 2 h 0 min ago" in screen
    assert f"{offline}: no check recorded" in screen

    make_sealed_dump(repository, ours, offline)
    assert f"{ours}: opened {first} 2 h 0 min ago" in status_text(look(repository, clock), URL, Settings()), "of another dump"


@pytest.mark.parametrize(("changed", "words"), [
    (b"{", "is damaged"),
    (b'{"schema": 2}', "was written by a newer version"),
    (b'{"schema": 1, "recipient": "age1other"}', "is damaged"),
])  # fmt: skip
def test_a_check_that_cannot_be_read_is_none_and_is_named(
    repository: MemoryStore, clock: VirtualClock, changed: bytes, words: str
) -> None:
    ours = Identity.make().recipient
    dump_id = make_sealed_dump(repository, ours)
    checked(repository, ours, dump_id, clock)
    key = f"{names.KEY_CHECKS_FOLDER}{ours}"
    mark = json.loads(repository.get(key)) if changed != b"{" else {}
    repository.put(key, json.dumps(mark | json.loads(changed)).encode() if mark else changed)
    found = look(repository, clock)
    assert [each.check for each in found.keys] == [None]
    (problem,) = found.problems
    assert problem.startswith(f"{key} {words}"), "not: no check is recorded"
    assert f"{ours}: its check cannot be read" in status_text(found, URL, Settings())


@pytest.mark.parametrize("objects", ["none", "no archive", "an archive twice", "an archive of nothing", "no globals"])
def test_a_summary_that_commits_no_whole_dump_is_damaged(repository: MemoryStore, clock: VirtualClock, objects: str) -> None:
    make_dump(repository, ["clipper"])
    clock.advance(HOUR_SECONDS)
    bad = make_dump(repository, ["clipper"])
    key = names.dump_key(bad, names.SUMMARY)
    summary = json.loads(repository.get(key))
    archive, roles, details = summary["objects"]
    summary["objects"] = {
        "none": [],
        "no archive": [roles, details],
        "an archive twice": [archive, archive, roles, details],
        "an archive of nothing": [archive | {"database": None}, roles, details | {"database": "clipper"}],
        "no globals": [archive, details],
    }[objects]
    repository.put(key, json.dumps(summary).encode())
    found = look(repository, clock)
    assert [entry.listed.dump_id for entry in found.damaged] == [bad]
    assert found.recoverable_to == START
    assert f"{bad} is damaged: " in status_text(found, URL, Settings())


def test_holds_are_shown_also_of_dumps_that_are_gone(repository: MemoryStore, clock: VirtualClock) -> None:
    hold_dump(repository, make_dump(repository), HOLD)
    gone = DumpId(START - timedelta(days=9))
    repository.put(names.hold_key(gone), encode(HOLD))
    document = status_document(look(repository, clock), URL)
    assert [hold["id"] for hold in document["holds"]] == [str(gone), str(DumpId(START))]
    assert document["holds"][0]["held_at"] == json_time(HOLD.held_at)


def test_the_lease_is_shown_with_whoever_holds_it(repository: MemoryStore, clock: VirtualClock) -> None:
    writing = Work(Settings(lease_seconds=60), repository, SystemClock(), ignore)
    assert look(repository, clock).leases == {}
    with take_lease(writing, DUMP_LEASE, "dump create"), take_lease(writing, BASE_LEASE, "base create"):
        status = look(repository, clock)
        assert [(name, held.purpose, held.taken_at) for name, held in status.leases.items()] == [
            ("dump", "dump create", START),
            ("base", "base create", START),
        ]
        for name, held in status.leases.items():
            assert f"{held.holder} ({name} create), since {show_time(START)}" in status_text(status, URL, Settings())
        document = status_document(status, URL)
        assert document["lease"]["purpose"] == "dump create"
        assert [(each["name"], each["purpose"]) for each in document["leases"]] == [
            ("dump", "dump create"),
            ("base", "base create"),
        ]
    assert look(repository, clock).leases == {}


def test_a_command_that_waits_for_a_lease_says_for_whom(repository: MemoryStore, clock: VirtualClock) -> None:
    """Up to a minute, where the one before was killed."""
    repository.put(
        f"locks/{BASE_LEASE}/0000000003/holder",
        encode(LeaseHolder(run_id="r", holder="host:7", purpose="base create", lease_seconds=60)),
    )
    events: list[Event] = []
    with take_lease(Work(Settings(lease_seconds=60), repository, clock, events.append), BASE_LEASE, "base create"):
        begun, done = events
    assert isinstance(begun, StepBegun)
    assert isinstance(done, StepDone)
    assert begun.text == (
        "wait: the lease base is held by host:7 (base create), last seen 0.0 s ago; wait for it to end; if it is dead, the lease"
        " frees itself in 1 min 0 s"
    )
    assert (done.text, done.seconds > 60) == ("the lease base is free", True)


def test_a_lease_whose_holder_cannot_be_read_is_held_by_somebody(repository: MemoryStore, clock: VirtualClock) -> None:
    repository.put(f"locks/{DUMP_LEASE}/0000000003/holder", b"{")
    clock.advance(10)
    repository.put(f"locks/{DUMP_LEASE}/0000000003/renewal-1", b"renewed\n")
    held = held_lease(repository, DUMP_LEASE)
    assert held is not None
    assert (held.who, held.taken_at, held.last_sign_at) == ("somebody", START, START + timedelta(seconds=10))


def test_what_the_last_prune_left_is_shown_or_said_to_be_damaged(repository: MemoryStore, clock: VirtualClock) -> None:
    make_dump(repository)
    assert "never pruned" in status_text(look(repository, clock), URL, Settings())
    repository.put(names.RETENTION, encode(RetentionMark(retention_days=30, pruned_at=START)))
    assert f"last pruned {show_time(START)}" in status_text(look(repository, clock), URL, Settings())
    for unreadable in (b"{", b'{"schema": 2}'):
        repository.put(names.RETENTION, unreadable)
        (problem,) = look(repository, clock).problems
        assert problem.startswith(names.RETENTION)


def test_many_of_a_kind_are_counted_not_listed(repository: MemoryStore, clock: VirtualClock) -> None:
    for _ in range(8):
        damage(repository, dump_id := make_dump(repository, ["clipper"]))
        clock.advance(60)
        repository.put(names.hold_key(dump_id), encode(HOLD))
    screen = status_text(look(repository, clock), URL, Settings())
    assert "8 damaged: " in screen
    assert screen.count("and 3 more") == 3  # in the count of dumps, of holds, and of problems


def test_a_plain_dump_of_one_database_does_not_hide_the_keys_of_the_others(repository: MemoryStore, clock: VirtualClock) -> None:
    ours = Identity.make().recipient
    sealed = make_sealed_dump(repository, ours, databases=["clipper", "shop"])
    clock.advance(HOUR_SECONDS)
    make_dump(repository, ["clipper"])
    found = look(repository, clock, backup_databases=("clipper", "shop"))
    assert first_line(found).startswith("RECOVERABLE with a key to ")
    assert [key.recipient for key in found.keys] == [ours]
    assert found.problems == (f"{sealed} is sealed, and no check of a key is recorded: `key check --identity FILE`",)


def test_a_plain_dump_by_hand_does_not_hide_the_keys_of_databases_that_nobody_named(
    repository: MemoryStore, clock: VirtualClock
) -> None:
    ours = Identity.make().recipient
    sealed = make_sealed_dump(repository, ours, databases=["clipper", "shop"])
    clock.advance(HOUR_SECONDS)
    make_dump(repository, ["clipper"])
    found = look(repository, clock)
    assert first_line(found).startswith("RECOVERABLE to "), "what is wanted, as far as anybody said, is plain"
    assert [each.database for each in found.gone] == ["shop"]
    assert [key.recipient for key in found.keys] == [ours]
    assert found.problems == (f"{sealed} is sealed, and no check of a key is recorded: `key check --identity FILE`",)
    assert look(repository, clock, backup_databases=("clipper",)).keys == (), "it was said that shop is not wanted"
