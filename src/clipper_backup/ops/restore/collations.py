"""After a restore on another machine: whether text is sorted there as it was where the indexes were built (rule 67)."""

from pathlib import Path

from clipper_backup.errors import ClipperError
from clipper_backup.ops.events import Warned
from clipper_backup.ops.work import Work, login_of
from clipper_backup.postgres.collations import Drift, compare_collations
from clipper_backup.postgres.connection import Login

_ROLE = "postgres"
_SHOWN = 5


def tell_collations(work: Work, socket_folder: Path, port: int) -> None:
    """Warn of each database of the server there whose text is sorted by another version now. Nothing is changed."""
    ours = login_of(work.settings)
    login = Login({"host": str(socket_folder), "port": str(port), "user": ours.keywords.get("user", _ROLE)})
    try:
        compared = compare_collations(login)
    except ClipperError as error:
        work.emit(Warned(f"versions of collations were not compared: {error.message}", error.hints))
        return
    if compared.left_out:
        work.emit(Warned(f"versions of collations were not compared in {'; '.join(compared.left_out)}"))
    if compared.drifts:
        names = sorted({drift.database for drift in compared.drifts})
        shown = "; ".join(map(_show, compared.drifts[:_SHOWN]))
        more = f" (and {len(compared.drifts) - _SHOWN} more)" if len(compared.drifts) > _SHOWN else ""
        work.emit(
            Warned(
                f"this machine sorts text otherwise than the source: {shown}{more}. Indexes of text may find too little",
                (
                    "see which: `pg_amcheck --heapallindexed`, with --install-missing where amcheck is not installed",
                    "or build them anew in each of " + ", ".join(names) + ": REINDEX DATABASE, then ALTER DATABASE … REFRESH"
                    " COLLATION VERSION and ALTER COLLATION … REFRESH VERSION",
                    "or restore on the source's operating system",
                ),
            )
        )


def _show(drift: Drift) -> str:
    what = f"database {drift.database}" if drift.collation is None else f"collation {drift.collation} in {drift.database}"
    return f"{what} was made with version {drift.recorded}, here it is {drift.actual}"
