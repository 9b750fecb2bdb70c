"""Base backups that a newer version wrote: what this one makes of what it does not know, with a real server's files."""

import pytest

from clipper_backup.errors import IntegrityError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseSummary
from clipper_backup.format.documents import NewerError
from clipper_backup.format.manifest import File
from clipper_backup.ops.base.read import base_catalog
from clipper_backup.ops.base.verify import verify_base
from clipper_backup.ops.work import Work
from clipper_backup.store.memory import MemoryStore
from clipper_backup.values import BackupId
from fixtures.base import Cluster, backed_up, contents_of, work_for
from fixtures.newer import change_manifest, change_summary, cut_anew, object_of, with_link

pytestmark = pytest.mark.soak(share=0.25)


@pytest.fixture
def taken(archived15: Cluster) -> tuple[Work, BaseSummary]:
    work = work_for(archived15)
    return work, backed_up(archived15, work).summary


def copied(work: Work) -> Work:
    """The same with a store of its own."""
    store = MemoryStore(work.clock)
    for info in work.store.list(""):
        store.put(info.key, work.store.get(info.key))
    return Work(work.settings, store, work.clock, work.emit)


def test_the_bytes_of_what_is_not_known_are_looked_at(taken: tuple[Work, BaseSummary]) -> None:
    work, summary = taken
    backup_id = BackupId.parse(summary.id)
    key = names.base_key(backup_id, "validation.json.zst")
    work.store.put(key, b"answers")
    change_summary(work.store, backup_id, more_objects=[object_of(backup_id, "validation.json.zst")])
    assert verify_base(work, backup_id, share=1).share == 1
    work.store.put(key, b"another")
    with pytest.raises(IntegrityError, match=rf"is damaged: {key}"):
        verify_base(work, backup_id, share=0)


def test_a_line_of_an_unknown_kind_is_no_damage_and_gives_no_pages(archived15: Cluster, taken: tuple[Work, BaseSummary]) -> None:
    work, summary = taken
    backup_id = BackupId.parse(summary.id)
    change_manifest(work.store, summary, with_link)
    for share in (0.0, 1.0):
        with pytest.raises(NewerError, match=r"was written by a newer version \(it is of the kind 'link'\)"):
            verify_base(work, backup_id, share=share)
    assert [shown.entry.problem for shown in base_catalog(work)] == [None]
    following = backed_up(archived15, work).summary
    assert (following.parent, following.pages.adopted) == (None, 0)
    assert any("no pages are taken" in text and "newer version" in text for text in work.emit.warnings)  # type: ignore[attr-defined]  # a Kept


@pytest.mark.parametrize("stretch_bytes", [1 << 20, 128 << 20])
def test_other_stretches_are_read_and_give_no_pages(
    archived15: Cluster, taken: tuple[Work, BaseSummary], stretch_bytes: int
) -> None:
    """M2."""
    work, backup_id = taken[0], BackupId.parse(taken[1].id)
    before = contents_of(work, taken[1])
    summary = cut_anew(work, backup_id, stretch_bytes)
    after = contents_of(work, summary)
    assert {named: content for named, (_, content) in after.items()} == {named: content for named, (_, content) in before.items()}
    files = [entry for entry, _ in after.values() if isinstance(entry, File) and entry.maps]
    assert files
    assert all(len(file.maps) == -(-file.size_bytes // stretch_bytes) for file in files)
    verified = verify_base(work, backup_id, share=1)
    assert (verified.share, verified.files) == (1, len([entry for entry, _ in after.values() if isinstance(entry, File)]))
    following = backed_up(archived15, work).summary
    assert (following.parent, following.pages.adopted) == (None, 0)
    assert any(f"no pages are taken from the base backup {backup_id}" in text for text in work.emit.warnings)  # type: ignore[attr-defined]  # a Kept
    assert backed_up(archived15, work).summary.parent == following.id


def test_a_verify_leaves_the_mark_of_a_newer_one(taken: tuple[Work, BaseSummary]) -> None:
    work, backup_id = copied(taken[0]), BackupId.parse(taken[1].id)
    key, mark = names.base_key(backup_id, names.VERIFY), b'{"schema":2,"bad":[]}'
    work.store.put(key, mark)
    for share in (0.0, 1.0):
        with pytest.raises(NewerError, match=rf"{key} was written by a newer version"):
            verify_base(work, backup_id, share=share)
    work.store.delete([names.base_key(backup_id, names.LABEL)])
    with pytest.raises(IntegrityError, match="backup_label"):
        verify_base(work, backup_id, share=1)
    assert work.store.get(key) == mark


def test_damage_beside_it_is_found(taken: tuple[Work, BaseSummary]) -> None:
    work, summary = copied(taken[0]), taken[1]
    change_manifest(work.store, summary, with_link)
    work.store.delete([names.base_key(BackupId.parse(summary.id), names.LABEL)])
    with pytest.raises(IntegrityError, match=r"backup_label\.zst"):
        verify_base(work, BackupId.parse(summary.id), share=1)
