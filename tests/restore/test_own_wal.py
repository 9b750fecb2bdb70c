"""A base backup is bound to its WAL: other WAL under the same names, whole and linked, is never replayed onto its pages."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest

from clipper_backup.errors import IntegrityError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseSummary, VerifyMark
from clipper_backup.format.documents import decode, encode
from clipper_backup.ops.base.verify import verify_base
from clipper_backup.ops.events import Event, StepBegun
from clipper_backup.ops.restore.left_wal import make_plan
from clipper_backup.ops.restore.request import Request
from clipper_backup.ops.restore.restore import restore
from clipper_backup.ops.restore.targets import Target
from clipper_backup.ops.wal.look import Looker
from clipper_backup.ops.work import Work
from clipper_backup.postgres.account import server_account
from clipper_backup.repository.restore_plan import read_plan
from clipper_backup.repository.wal_catalog import WalCatalog
from clipper_backup.repository.wal_range import own_links
from clipper_backup.values import BackupId
from clipper_backup.wal_names import Segment
from fixtures.base import Cluster, archived_cluster, backed_up, work_for
from fixtures.postgres import sql
from fixtures.restore import switch
from fixtures.wal_archive import MIB, segment_name
from fixtures.wal_look import MadeRepository
from fixtures.wal_restore import Restoring
from fixtures.wal_restore import make_plan as plan_for

pytestmark = pytest.mark.rule(96)
ANOTHER = "is not the one that was there when the base backup was taken"


# -- what a real server's copy does to a real backup


@dataclass(frozen=True)
class SetBack:
    """The WAL of its newest base backup was removed, with claims; then a copy of the server that was set back archived there."""

    work: Work
    summary: BaseSummary

    @property
    def key(self) -> str:
        return names.base_key(BackupId.parse(self.summary.id), names.BASE_SUMMARY)

    def request(self, place: Path) -> Request:
        return Request(place / "data", Target("latest"), server_account())


def write(cluster: Cluster, note: str) -> None:
    for number in range(6):
        sql(cluster.server, "postgres", f"SELECT pg_logical_emit_message(true, '{note}', '{number}'), pg_switch_wal()")


def write_on(cluster: Cluster, note: str) -> None:
    write(cluster, note)
    switch(cluster)


def backed_up_under_load(cluster: Cluster, work: Work) -> BaseSummary:
    """Its WAL has several segments."""

    def writing(event: Event) -> None:
        if isinstance(event, StepBegun) and event.step == "copy":
            write(cluster, "while it is taken")

    summary = backed_up(cluster, replace(work, emit=writing)).summary
    catalog = WalCatalog(work.store, summary.system_id, MIB)
    ends = [catalog.claim(Segment.parse(name, MIB)) for name in (summary.first_segment, summary.last_segment)]
    assert [summary.first_link, summary.last_link] == [catalog.link_of(claim).hex() for claim in ends if claim is not None]
    assert summary.first_link != summary.last_link
    return summary


@pytest.fixture(scope="module")
def set_back() -> Iterator[SetBack]:
    with archived_cluster(15) as cluster:
        server, work = cluster.server, work_for(cluster, ARCHIVE_WAIT_SECONDS="1")
        copy = server.directory / "copy"
        backed_up(cluster, work)
        with cluster.archiving(work):
            write_on(cluster, "before the copy")
        cluster.stop()
        subprocess.run(["cp", "-a", server.data, copy], check=True)
        server.start()
        summary = backed_up_under_load(cluster, work)
        with cluster.archiving(work):
            write_on(cluster, "the lost future")
        cluster.stop()
        first = summary.first_segment
        folder = names.segment_folder(summary.system_id, Segment.parse(first, MIB))
        work.store.delete([info.key for info in work.store.list(folder) if info.key.removeprefix(folder) >= first])
        for marker in cluster.released.iterdir():
            if marker.name >= first:
                marker.unlink()
        subprocess.run(["rm", "-r", server.data], check=True)
        subprocess.run(["mv", copy, server.data], check=True)
        server.start()
        sql(server, "postgres", "CREATE TABLE another_history AS SELECT 1 AS n")
        with cluster.archiving(work):
            write(cluster, "of the copy, as far as the backup goes")
            write_on(cluster, "of the copy, and further")
        cluster.stop()
        yield SetBack(work, summary)


def test_a_restore_refuses_it_before_anything_is_written(set_back: SetBack, place: Path) -> None:
    with pytest.raises(IntegrityError, match=rf"{set_back.summary.first_segment} of the base backup .* {ANOTHER}"):
        make_plan(set_back.work, set_back.request(place))
    assert list(place.iterdir()) == []


def test_without_links_nothing_else_would_notice(set_back: SetBack, place: Path) -> None:
    """A summary of before: the copy's WAL has its names, its system and its links, and follows on the segment before."""
    whole = set_back.work.store.get(set_back.key)
    old = msgspec.structs.replace(set_back.summary, first_link=msgspec.UNSET, last_link=msgspec.UNSET)
    set_back.work.store.put(set_back.key, encode(old))
    assert "_link" not in encode(old).decode()
    try:
        plan = make_plan(set_back.work, set_back.request(place))
        assert (plan.summary.id, plan.wal.gap) == (set_back.summary.id, None)
        verify_base(set_back.work, BackupId.parse(old.id), share=0)
    finally:
        set_back.work.store.put(set_back.key, whole)


def test_the_plan_that_is_kept_has_the_links_for_who_fetches(set_back: SetBack, place: Path) -> None:
    """The claims may be exchanged behind the plan."""
    oldest = next(each.summary for each in Looker(set_back.work, whole=True).look().backups if each.good)
    assert oldest is not None
    request = Request(place / "data", Target("immediate"), server_account(), backup=BackupId.parse(oldest.id))
    restore(set_back.work, request, make_plan(set_back.work, request))
    assert read_plan(request.folder).own_links == own_links(oldest)
    assert own_links(oldest).keys() == {oldest.first_segment, oldest.last_segment}


def test_base_verify_finds_it_and_status_does_not_count_on_it(set_back: SetBack) -> None:
    seen = Looker(set_back.work, whole=False).look()
    assert seen.window is not None
    assert seen.window.backup.id != set_back.summary.id
    (bad,) = seen.bad_backups
    assert bad.startswith(
        f"{set_back.summary.id}: segment {set_back.summary.first_segment} of its WAL {ANOTHER}: it is of another"
    )
    with pytest.raises(IntegrityError, match=rf"segment {set_back.summary.first_segment} of its WAL {ANOTHER}"):
        verify_base(set_back.work, BackupId.parse(set_back.summary.id), share=0)
    key = names.base_key(BackupId.parse(set_back.summary.id), names.VERIFY)
    assert (
        decode(set_back.work.store.get(key), VerifyMark, key)
        .damage[0]
        .startswith(f"segment {set_back.summary.first_segment} of its WAL")
    )
    set_back.work.store.delete([key])


# -- what a fetch compares, and what a look at the archive


@pytest.mark.parametrize("number", [3, 5])
def test_a_fetch_refuses_the_first_and_the_last_that_are_others(restoring: Restoring, number: int) -> None:
    restoring.archive.segments(1, 3, 7)
    links = {segment_name(1, own): restoring.archive.link_of(1, own).hex() for own in (3, 5)}
    plan = msgspec.structs.replace(plan_for(last=(1, 7)), own_links=links)
    restoring.planned(plan)
    restoring.archive.segment(1, number, writer="a copy")
    before = [(1, own) for own in range(3, number)]
    assert all(restoring.ask(each) for each in before)
    with pytest.raises(IntegrityError, match=rf"{segment_name(1, number)} {ANOTHER}"):
        restoring.ask((1, number))
    assert restoring.links == [segment_name(*each) for each in before]


def test_a_fetch_hands_out_what_is_the_backups_own(restoring: Restoring) -> None:
    restoring.archive.segments(1, 3, 7)
    links = {segment_name(1, own): restoring.archive.link_of(1, own).hex() for own in (3, 5)}
    restoring.planned(msgspec.structs.replace(plan_for(last=(1, 7)), own_links=links))
    assert all(restoring.ask((1, number)) for number in range(3, 8))


@pytest.mark.parametrize("number", [3, 4, 5])
@pytest.mark.parametrize("whole", [False, True])
def test_a_look_counts_no_backup_whose_wal_was_exchanged(number: int, whole: bool) -> None:
    """What lies between the two is bound to them by its links."""
    made = MadeRepository()
    made.archive.segments(1, 3, 7)
    summary = made.backup(1, 3, 5, linked=True)
    window = made.look(whole=whole).window
    assert window is not None
    assert window.backup.id == summary.id
    made.archive.segment(1, number, writer="a copy")
    made.archive.segments(1, number + 1, 7, writer="a copy")
    seen = made.look(whole=whole)
    assert seen.window is None
    assert len(seen.bad_backups) == 1


def test_a_claim_that_is_gone_or_damaged_says_nothing_of_histories() -> None:
    made = MadeRepository()
    made.archive.segments(1, 3, 7)
    made.backup(1, 3, 5, linked=True)
    key = names.archive_key(made.system_id, segment_name(1, 3), names.CLAIM)
    made.store.put(key, b"{")
    assert made.look().bad_backups == []
    made.store.delete([key])
    assert made.look().bad_backups == []
