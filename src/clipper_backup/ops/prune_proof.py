"""The proof of a prune, with the settings of this one: nothing is removed that it did not see (docs/design/prune.md)."""

from collections.abc import Callable

from clipper_backup.ops.work import Work
from clipper_backup.repository.proof.check import Promises, Proof, permitted, prove
from clipper_backup.repository.proof.documents import Trust
from clipper_backup.repository.proof.dumps import DumpPromise
from clipper_backup.repository.proof.removal import Removal
from clipper_backup.repository.root import open_repository
from clipper_backup.store.permitting import PermittingStore
from clipper_backup.store.protocol import Store


def prove_removal(
    work: Work, removal: Removal, *, with_dumps: bool = False, with_base: bool = False, with_wal: bool = False
) -> Proof:
    """What the check finds of a removal, of those parts; nothing is raised for what it finds."""
    settings = work.settings
    promises = Promises(
        settings.pitr_window_days,
        DumpPromise(settings.retention_days, settings.retention_min_dumps),
        Trust(open_repository(work.store).id, work.trusted),
    )
    now = work.store.now()
    return prove(work.store, removal, promises, now=now, with_dumps=with_dumps, with_base=with_base, with_wal=with_wal)


def permitting(work: Work, removal: Removal) -> Store:
    """The store, through which nothing but a *removal* that was proven can be removed."""
    return PermittingStore(work.store, permitted(removal))


def prover(
    work: Work, *, with_dumps: bool = False, with_base: bool = False, with_wal: bool = False
) -> Callable[[Removal], Store]:
    """Shows that a removal takes nothing that is promised, else IntegrityError; the answer is `permitting`."""

    def proven(removal: Removal) -> Store:
        prove_removal(work, removal, with_dumps=with_dumps, with_base=with_base, with_wal=with_wal).refuse()
        return permitting(work, removal)

    return proven
