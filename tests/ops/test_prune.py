"""What prune and `dump delete` take away, and what they leave, of dumps made of a few bytes."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from clipper_backup.cli.show_dump import entries_text, entry_document
from clipper_backup.clock import SystemClock, VirtualClock
from clipper_backup.config import Settings
from clipper_backup.errors import ClipperError, MissingError, StoreError, UsageError
from clipper_backup.format import names
from clipper_backup.format.physical_names import VERIFY_REPORT
from clipper_backup.ops.dump.prune import Plan, check_deletable, delete_dump, execute_prune, hold, plan_prune, release
from clipper_backup.ops.dump.read import catalog, choose_database, summary_of
from clipper_backup.ops.events import Event, Progress, StepBegun, StepDone, Warned, ignore
from clipper_backup.ops.lease import DUMP_LEASE, take_lease
from clipper_backup.ops.work import Work
from clipper_backup.repository.dumps import DumpWriter, delete_objects, held_dumps, hold_dump, list_dumps
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.metering import MeteringStore
from clipper_backup.store.protocol import Store
from clipper_backup.store.wrapper import WrapperStore
from clipper_backup.values import DumpId, show_time
from fixtures.catalog import DATABASES, HOLD, INTENT, is_whole, make_dump, put_parts, put_report
from fixtures.clocks import START

DAY_SECONDS = 86_400


def work_on(store: Store, emit: Callable[[Event], None] = ignore) -> Work:
    settings = dataclasses.replace(Settings(), retention_days=30, retention_min_dumps=2)
    return Work(settings, store, SystemClock(), emit)


def daily_dumps(store: Store, clock: VirtualClock, number: int, databases: Sequence[str] = DATABASES) -> list[DumpId]:
    made = []
    for _ in range(number):
        made.append(make_dump(store, databases))
        clock.advance(DAY_SECONDS)
    return made


def archive_of(dump_id: DumpId) -> str:
    return names.database_key(dump_id, DATABASES[0], names.CUSTOM)


def remove_archive(store: Store, dump_id: DumpId) -> None:
    store.delete([archive_of(dump_id)])


def cut_archive(store: Store, dump_id: DumpId) -> None:
    store.put(archive_of(dump_id), b"cut")


def prune(work: Work) -> Plan:
    with take_lease(work, DUMP_LEASE, "prune") as lease:
        return execute_prune(work, plan_prune(work), lease)


def delete(work: Work, dump_id: DumpId, *, last: bool = False) -> None:
    with take_lease(work, DUMP_LEASE, "dump delete") as lease:
        delete_dump(work, dump_id, lease, last=last)


def left(store: Store) -> list[DumpId]:
    return [listed.dump_id for listed in list_dumps(store)]


# -- dumps that lost parts


@pytest.mark.parametrize(
    ("damage", "problem"), [(remove_archive, "is missing from the store"), (cut_archive, "has 3 bytes, 31 were committed")]
)
def test_a_dump_that_lost_a_part_is_listed_as_damaged(
    repository: MemoryStore, clock: VirtualClock, damage: Callable[[Store, DumpId], None], problem: str
) -> None:
    whole, damaged = daily_dumps(repository, clock, 2)
    damage(repository, damaged)
    good, bad = catalog(work_on(repository))
    assert good.problem is None
    assert bad.problem == f"{archive_of(damaged)} {problem}"
    shown = entries_text([good, bad]).splitlines()
    assert str(whole) in shown[1]
    assert "DAMAGED" not in shown[1]
    assert f"DAMAGED: {bad.problem}" in shown[2]
    assert DATABASES[1] in shown[2]  # what the summary says is shown all the same
    document = entry_document(bad)
    assert (document["state"], document["problem"]) == ("damaged", bad.problem)
    assert document["databases"] == list(DATABASES)
    assert entry_document(good)["state"] == "committed"


def test_a_dump_that_lost_several_parts_names_one_and_counts_the_others(repository: MemoryStore) -> None:
    dump_id = make_dump(repository)
    remove_archive(repository, dump_id)
    repository.delete([names.dump_key(dump_id, names.GLOBALS)])
    (entry,) = catalog(work_on(repository))
    assert entry.problem == f"{archive_of(dump_id)} is missing from the store (and 1 more)"


def test_looking_for_lost_parts_asks_the_store_nothing_more(repository: MemoryStore, clock: VirtualClock) -> None:
    dumps = daily_dumps(repository, clock, 3)
    metered = MeteringStore(repository)
    catalog(work_on(metered))
    # repository.json and the summaries; the holds and the dumps
    assert {method: usage.calls for method, usage in metered.usage().items()} == {"get": 1 + len(dumps), "list": 2}


@pytest.mark.rule(74)
@pytest.mark.parametrize("damage", [remove_archive, cut_archive])
def test_dumps_that_lost_parts_do_not_count_as_good_ones(
    repository: MemoryStore, clock: VirtualClock, damage: Callable[[Store, DumpId], None]
) -> None:
    dumps = daily_dumps(repository, clock, 6)
    for lost in dumps[3:]:
        damage(repository, lost)
    clock.advance(100 * DAY_SECONDS)
    prune(work_on(repository))
    assert left(repository) == dumps[1:]
    assert [is_whole(repository, dump_id) for dump_id in dumps[1:3]] == [True, True]


def test_the_newest_good_dump_is_not_deleted_by_hand_and_a_damaged_one_is(repository: MemoryStore, clock: VirtualClock) -> None:
    dumps = daily_dumps(repository, clock, 3)
    remove_archive(repository, dumps[2])
    work = work_on(repository)
    with pytest.raises(UsageError, match=f"{dumps[1]} is the newest good dump"):
        delete(work, dumps[1])
    delete(work, dumps[2])
    delete(work, dumps[0])
    assert left(repository) == [dumps[1]]


@pytest.mark.rule(74)
def test_dumps_in_which_verify_found_damage_do_not_count_as_good_ones(repository: MemoryStore, clock: VirtualClock) -> None:
    dumps = daily_dumps(repository, clock, 6)
    put_report(repository, *dumps[3:])
    clock.advance(100 * DAY_SECONDS)
    done = prune(work_on(repository))
    assert left(repository) == dumps[1:]
    assert {each.reason for each in done.decisions[3:]} == {"damaged: a person must decide"}
    with pytest.raises(UsageError, match=f"{dumps[2]} is the newest good dump"):
        delete(work_on(repository), dumps[2])
    delete(work_on(repository), dumps[5])
    put_report(repository)
    prune(work_on(repository))
    assert left(repository) == dumps[3:5], "the next verify found them whole"


@pytest.mark.parametrize("report", [b"{", b'{"schema": 99}'])
def test_a_report_that_cannot_be_read_tells_nothing(repository: MemoryStore, clock: VirtualClock, report: bytes) -> None:
    dumps = daily_dumps(repository, clock, 6)
    repository.put(VERIFY_REPORT, report)
    clock.advance(100 * DAY_SECONDS)
    prune(work_on(repository))
    assert left(repository) == dumps[4:]


# -- dumps of other databases


@pytest.mark.rule(74)
def test_dumps_of_another_database_do_not_push_out_the_last_ones(repository: MemoryStore, clock: VirtualClock) -> None:
    of_clipper = daily_dumps(repository, clock, 4, ["clipper"])
    of_other = daily_dumps(repository, clock, 4, ["other"])
    clock.advance(100 * DAY_SECONDS)
    done = prune(work_on(repository))
    assert left(repository) == [*of_clipper[2:], *of_other[2:]]
    assert all(is_whole(repository, dump_id) for dump_id in left(repository))
    assert done.decisions[3].reason == "105 days old, but one of the 2 newest of clipper; `dump delete` lets go of it"


@pytest.mark.rule(74)
def test_a_damaged_dump_does_not_count_for_its_databases(repository: MemoryStore, clock: VirtualClock) -> None:
    of_clipper = daily_dumps(repository, clock, 4, ["clipper"])
    remove_archive(repository, of_clipper[3])
    of_other = daily_dumps(repository, clock, 2, ["other"])
    clock.advance(100 * DAY_SECONDS)
    prune(work_on(repository))
    assert left(repository) == [*of_clipper[1:], *of_other]


def test_the_newest_good_dump_of_a_database_is_deleted_only_when_a_person_says_it_is_the_last(
    repository: MemoryStore, clock: VirtualClock
) -> None:
    older, newest = daily_dumps(repository, clock, 2, ["clipper", "gone"])
    (without,) = daily_dumps(repository, clock, 1, ["clipper"])
    work = work_on(repository)
    with pytest.raises(UsageError, match=f"{newest} is the newest good dump that holds gone$") as raised:
        delete(work, newest)
    assert "--last" in " ".join(raised.value.hints)
    with pytest.raises(UsageError, match=f"{without} is the newest good dump:"):
        delete(work, without, last=True)
    assert left(repository) == [older, newest, without]
    delete(work, newest, last=True)
    with pytest.raises(UsageError, match=f"{older} is the newest good dump that holds gone$"):
        check_deletable(work, older)


def test_a_dump_may_go_when_newer_ones_hold_its_databases_between_them(repository: MemoryStore, clock: VirtualClock) -> None:
    (both,) = daily_dumps(repository, clock, 1, ["clipper", "other"])
    (of_clipper,) = daily_dumps(repository, clock, 1, ["clipper"])
    with pytest.raises(UsageError, match=r"that holds other$"):
        check_deletable(work_on(repository), both)
    (of_other,) = daily_dumps(repository, clock, 1, ["other"])
    delete(work_on(repository), both)
    assert left(repository) == [of_clipper, of_other]


def test_a_damaged_newer_dump_is_no_reason_to_delete_the_newest_good_one_of_a_database(
    repository: MemoryStore, clock: VirtualClock
) -> None:
    good, damaged = daily_dumps(repository, clock, 2, ["clipper"])
    remove_archive(repository, damaged)
    daily_dumps(repository, clock, 1, ["other"])
    with pytest.raises(UsageError, match=f"{good} is the newest good dump that holds clipper$"):
        check_deletable(work_on(repository), good)
    check_deletable(work_on(repository), damaged)


def test_who_wants_a_database_that_a_dump_does_not_hold_is_told_which_good_one_does(
    repository: MemoryStore, clock: VirtualClock
) -> None:
    _, good, damaged = daily_dumps(repository, clock, 3, ["clipper"])
    remove_archive(repository, damaged)
    (latest,) = daily_dumps(repository, clock, 1, ["other"])
    work = work_on(repository)
    with pytest.raises(MissingError, match=f"{latest} does not hold database 'clipper'") as raised:
        choose_database(work, summary_of(work, latest), "clipper")
    assert raised.value.hints == ("it holds other", f"the newest good dump that holds it is {good}")
    with pytest.raises(MissingError) as raised:
        choose_database(work, summary_of(work, latest), "clippr")
    assert raised.value.hints == ("it holds other",)


# -- dumps of the future


def future_dump(store: Store) -> DumpId:
    """A dump that was taken by a clock that was a year ahead."""
    ahead = MemoryStore(VirtualClock(START + timedelta(days=365)))
    dump_id = make_dump(ahead)
    for info in ahead.list(names.DATABASE_FOLDER):
        store.put(info.key, ahead.get(info.key))
    return dump_id


def test_a_dump_of_the_future_can_be_deleted_and_then_dumps_are_taken_again(repository: MemoryStore, clock: VirtualClock) -> None:
    dumps = daily_dumps(repository, clock, 2)
    wrong = future_dump(repository)
    with pytest.raises(ClipperError, match=f"the newest dump is {wrong}") as raised:
        DumpWriter.take_id(repository, INTENT)
    assert f"`clipper-backup dump delete {wrong}`" in " ".join(raised.value.hints)
    delete(work_on(repository), wrong)
    assert left(repository) == dumps
    assert DumpWriter.take_id(repository, INTENT).dump_id == DumpId.at_time(clock.now())


def test_beside_a_dump_of_the_future_the_newest_one_of_the_past_is_not_deleted(
    repository: MemoryStore, clock: VirtualClock
) -> None:
    dumps = daily_dumps(repository, clock, 2)
    future_dump(repository)
    with pytest.raises(UsageError, match=f"{dumps[1]} is the newest good dump"):
        check_deletable(work_on(repository), dumps[1])
    check_deletable(work_on(repository), dumps[0])


def test_the_only_dump_is_not_deleted_because_a_clock_says_that_it_lies_ahead(repository: MemoryStore) -> None:
    only = future_dump(repository)
    with pytest.raises(UsageError, match=f"no good dump but {only} holds .*, and it lies ahead of the store's clock") as raised:
        check_deletable(work_on(repository), only)
    assert "is that clock right" in raised.value.hints[0]
    delete(work_on(repository), only, last=True)
    assert left(repository) == []


def test_a_damaged_dump_of_the_future_can_be_deleted_even_when_it_is_the_only_one(repository: MemoryStore) -> None:
    only = future_dump(repository)
    remove_archive(repository, only)
    delete(work_on(repository), only)
    assert left(repository) == []


def test_whether_a_dump_may_go_is_judged_by_one_look_at_the_store(repository: MemoryStore, clock: VirtualClock) -> None:
    dumps = daily_dumps(repository, clock, 3)
    metered = MeteringStore(repository)
    check_deletable(work_on(metered), dumps[0])
    # repository.json twice, each summary once, and verify's report; the holds twice, and the dumps
    assert {method: usage.calls for method, usage in metered.usage().items()} == {"get": 3 + len(dumps), "list": 3, "now": 1}


def test_a_dump_that_only_a_newer_version_can_read_is_no_damaged_one(repository: MemoryStore, clock: VirtualClock) -> None:
    older, newest = daily_dumps(repository, clock, 2)
    for dump_id in (older, newest):
        key = names.dump_key(dump_id, names.SUMMARY)
        repository.put(key, repository.get(key).replace(b'"schema": 1', b'"schema": 2'))
    with pytest.raises(UsageError, match=f"no good dump but {newest} holds any database, and it cannot be read here"):
        check_deletable(work_on(repository), newest)
    check_deletable(work_on(repository), newest, last=True)


class Removing(WrapperStore):
    """Somebody removes a dump while its summary is asked for."""

    def __init__(self, inner: Store, removed: DumpId) -> None:
        super().__init__(inner)
        self.removed = removed

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        if key == names.dump_key(self.removed, names.SUMMARY):
            delete_objects(self._inner, self.removed)
        return super().get(key, start=start, length=length)


def test_a_dump_that_is_removed_while_the_catalog_is_read_is_not_damaged(repository: MemoryStore, clock: VirtualClock) -> None:
    older, newest = daily_dumps(repository, clock, 2)
    assert [entry.listed.dump_id for entry in catalog(work_on(Removing(repository, older)))] == [newest]


def test_a_version_that_must_not_write_removes_and_holds_nothing(repository: MemoryStore, clock: VirtualClock) -> None:
    """Prunes of a newer layout follow rules that an older version does not know."""
    dumps = daily_dumps(repository, clock, 40)
    work = work_on(repository)
    plan = plan_prune(work)
    assert plan.going
    repository.put(
        names.REPOSITORY, repository.get(names.REPOSITORY).replace(b'"min_writer_version": 1', b'"min_writer_version": 2')
    )
    before = [info.key for info in repository.list(names.DATABASE_FOLDER)]
    with take_lease(work, DUMP_LEASE, "a test") as lease:
        writing: list[Callable[[], object]] = [
            lambda: execute_prune(work, plan, lease),
            lambda: delete_dump(work, dumps[0], lease),
            lambda: hold(work, dumps[0], "a test"),
            lambda: release(work, dumps[0]),
        ]
        for write in writing:
            with pytest.raises(StoreError, match="has format 2, this version knows 1"):
                write()
    assert [info.key for info in repository.list(names.DATABASE_FOLDER)] == before
    assert len(catalog(work)) == len(dumps), "it may look"


def test_a_dump_whose_id_is_ahead_because_others_took_its_second_is_not_one_of_the_future(repository: MemoryStore) -> None:
    dumps = [make_dump(repository) for _ in range(3)]
    with pytest.raises(UsageError, match=f"{dumps[2]} is the newest good dump"):
        check_deletable(work_on(repository), dumps[2])


# -- dumps that are held meanwhile


def holding(store: Store, dump_id: DumpId, moment: type[Event]) -> Callable[[Event], None]:
    """Hears what a command tells, and has a dump held at the first event of the kind *moment*."""

    def emit(event: Event) -> None:
        if isinstance(event, moment):
            hold_dump(store, dump_id, HOLD)

    return emit


@pytest.mark.rule(77)
def test_somebody_else_s_hold_stays_his(repository: MemoryStore, clock: VirtualClock) -> None:
    (dump_id,) = daily_dumps(repository, clock, 1)
    told: list[Event] = []
    work = work_on(repository, told.append)
    hold(work, dump_id, "the audit")
    assert told == []
    hold(work, dump_id, "restoring production")
    assert held_dumps(repository)[dump_id].reason == "the audit"
    (warned,) = told
    assert isinstance(warned, Warned)
    assert re.search("is held already, by .* since .*: the audit", warned.text)


def test_people_are_shown_when_a_dump_was_taken_by_the_store_s_clock(repository: MemoryStore) -> None:
    writer = DumpWriter.take_id(repository, INTENT)
    elsewhere = datetime(2031, 1, 1, tzinfo=UTC)
    writer.commit(msgspec.structs.replace(put_parts(repository, writer.dump_id), begun_at=elsewhere))
    shown = entries_text(catalog(work_on(repository)))
    assert show_time(writer.dump_id.at) in shown
    assert "2031" not in shown


def test_a_dump_held_while_prune_removes_others_stays_and_is_said_to(repository: MemoryStore, clock: VirtualClock) -> None:
    dumps = daily_dumps(repository, clock, 5)
    clock.advance(100 * DAY_SECONDS)
    told: list[Event] = []
    hold = holding(repository, dumps[1], Progress)

    def emit(event: Event) -> None:
        told.append(event)
        hold(event)

    done = prune(work_on(repository, emit))
    assert left(repository) == [dumps[1], *dumps[3:]]
    assert is_whole(repository, dumps[1])
    assert [decision.dump_id for decision in done.going] == [dumps[0], dumps[2]]
    assert done.decisions[1].reason == "held"
    (step,) = [event for event in told if isinstance(event, StepDone)]
    assert step.text.startswith("2 dumps removed")


@pytest.mark.rule(77)
def test_a_dump_held_after_it_was_found_deletable_is_not_deleted(repository: MemoryStore, clock: VirtualClock) -> None:
    dumps = daily_dumps(repository, clock, 2)
    with pytest.raises(UsageError, match=f"the dump {dumps[0]} is held"):
        delete(work_on(repository, holding(repository, dumps[0], StepBegun)), dumps[0])
    assert is_whole(repository, dumps[0])
