"""Databases that are not UTF-8: names and values come back as they were, and the archive's names are those that were counted."""

import contextlib
from pathlib import Path

import pytest

from clipper_backup.ops.dump.create import create_dump
from clipper_backup.ops.dump.restore import Request, restore_dump
from clipper_backup.ops.dump.verify import verify_dump
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.values import DumpId
from fixtures.oracle import settings_for, work_for
from fixtures.postgres import connect, sql

pytestmark = pytest.mark.soak(share=0.25)

LETTERS = {"LATIN1": "é", "EUC_JP": "日本", "SQL_ASCII": "é"}
RESTORED = "restored_encoding"


@pytest.mark.parametrize("mode", ["counts", "hash"])
@pytest.mark.parametrize("encoding", LETTERS)
def test_a_database_of_another_encoding(postgres15: PrivateServer, tmp_path: Path, encoding: str, mode: str) -> None:
    name, letters = f"dumped_{encoding.lower()}", LETTERS[encoding]
    sql(postgres15, "postgres", f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy ENCODING {encoding} LOCALE 'C'")
    with contextlib.ExitStack() as at_last:
        for database in (name, RESTORED):
            at_last.callback(sql, postgres15, "postgres", f"DROP DATABASE IF EXISTS {database}")
        with connect(postgres15, name, options="-c client_encoding=UTF8") as connection:
            for statement in (
                f'CREATE TABLE "t {letters}" (id serial, "{letters}" text)',
                f'INSERT INTO "t {letters}" ("{letters}") VALUES (\'{letters}\'), (NULL)',
                f'CREATE SEQUENCE "s {letters}" START 7',
            ):
                connection.execute(statement.encode())
        if encoding == "SQL_ASCII":  # bytes that are no text of any one encoding
            with connect(postgres15, name, options="-c client_encoding=SQL_ASCII") as connection:
                connection.execute(b'INSERT INTO "t \xc3\xa9" ("\xc3\xa9") VALUES (\'\xe9\xff\')')
        work = work_for(settings_for(postgres15, tmp_path / "repository", name, dump_fingerprint=mode))
        written = create_dump(work)
        (record,) = written.details.databases
        assert [table.name for table in record.tables] == [f"t {letters}"]
        assert {sequence.name for sequence in record.sequences} == {f"s {letters}", f"t {letters}_id_seq"}
        dump_id = DumpId.parse(written.summary.id)
        assert verify_dump(work, dump_id).rows == written.summary.rows
        restored = restore_dump(work, Request(dump_id, RESTORED))
        assert restored.comparison.differences == ()
        assert restored.comparison.hashed is (mode == "hash")
        assert sql(postgres15, RESTORED, "SELECT getdatabaseencoding()::bytea") == [(encoding.encode(),)]
