"""Databases and collations that were made with another version of the library that sorts text than this server has."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from clipper_backup.errors import ClipperError
from clipper_backup.postgres.connection import Connection, Login, connect, rows, translated


@dataclass(frozen=True, slots=True)
class Drift:
    """Of *database*, its own order of text (`collation` is None) or a collation that its columns use: made with, and found."""

    database: str
    collation: str | None
    recorded: str
    actual: str


@dataclass(frozen=True, slots=True)
class Compared:
    """What differs, and in words which databases could not be asked."""

    drifts: Sequence[Drift]
    left_out: Sequence[str]


def compare_collations(login: Login) -> Compared:
    """Ask each database that lets anybody in. An error where the first cannot be asked."""
    drifts: list[Drift] = []
    left_out: list[str] = []
    with closing(connect(login)) as connection:
        databases = _databases(connection)
    for name, recorded, actual in databases:
        if recorded is not None and actual is not None and recorded != actual:
            drifts.append(Drift(name, None, recorded, actual))
        try:
            with closing(connect(login, name)) as connection:
                drifts += _of_columns(connection, name)
        except ClipperError as error:
            left_out.append(f"{name}: {error.message}")
    return Compared(drifts, left_out)


def _databases(connection: Connection) -> list[tuple[str, str | None, str | None]]:
    with translated("listing the databases"):
        return [
            (name, recorded, actual)
            for name, recorded, actual in rows(
                connection,
                "SELECT datname::text, datcollversion, pg_database_collation_actual_version(oid) FROM pg_database"
                " WHERE datallowconn ORDER BY 1",
            )
        ]


def _of_columns(connection: Connection, database: str) -> list[Drift]:
    with translated("comparing the collations"):
        return [
            Drift(database, name, recorded, actual)
            for name, recorded, actual in rows(
                connection,
                "SELECT * FROM (SELECT c.oid::regcollation::text, c.collversion, pg_collation_actual_version(c.oid) AS actual"
                " FROM pg_collation c WHERE c.collversion IS NOT NULL"
                " AND EXISTS (SELECT FROM pg_attribute a WHERE a.attcollation = c.oid)) found"
                " WHERE collversion <> actual ORDER BY 1",
            )
        ]
