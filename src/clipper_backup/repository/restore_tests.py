"""`restore-tests/<id>/report.json`: what each restore test did. Written once, changed by nobody, removed by no prune."""

from clipper_backup.format import physical_names as names
from clipper_backup.format.documents import RestoreTestReport, decode, encode
from clipper_backup.store.protocol import Store
from clipper_backup.values import BackupId


def write_report(store: Store, report: RestoreTestReport) -> str:
    """Store it under its id; the key. ObjectExistsError when there is one."""
    key = names.restore_test_key(BackupId.parse(report.id))
    store.put(key, encode(report), create=True)
    return key


def read_report(store: Store, test_id: BackupId) -> RestoreTestReport:
    """The report; ObjectMissingError, IntegrityError when it is damaged, NewerError when a newer version wrote it."""
    key = names.restore_test_key(test_id)
    return decode(store.get(key), RestoreTestReport, key)
