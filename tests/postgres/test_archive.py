"""Archives that pg_dump really wrote, of tables and sequences whose names are made to be misread."""

import itertools
import os
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg import sql as compose

from clipper_backup.errors import IntegrityError
from clipper_backup.postgres.archive import (
    LONGEST_STATEMENT_BYTES,
    CopyCounter,
    Head,
    parse_setvals,
    read_contents,
    split_qualified,
)
from clipper_backup.postgres.server import PrivateServer
from fixtures.postgres import client_environment, connect, fresh_database, major_of, server_binaries, sql

MIB = 1 << 20
SCHEMAS = ["public", "a.b", 'quo"te', "new\nline"]
NAMES = [
    "plain",
    "UPPER",
    'quo"te',
    'a"."b',
    "a.b",
    "new\nline",
    "COPY public.plain (id) FROM stdin;\n1\n\\.\n",
    "x (y",
    "x) FROM stdin;",
    "semi;\ncolon;",
    "it's",
    "-- comment",
    "\\.",
    "separators \x0b\x0c\x1c\x85\u2028\u2029",
    "Größe 🦊",
    " ",
    "select",
]
COLUMNS = ["id", 'quo"te', "a) FROM stdin;", "new\nline", "a, b", "it's;\n"]
VALUES = [
    "",
    "\\.",
    "\\.\n\\.",
    "\n",
    "\n\\.\n",
    "tab\there",
    "\\N",
    "\\\\",
    "cr\r\n",
    "COPY public.plain (id) FROM stdin;",
    "--",
    "é\x85",
]


@dataclass(frozen=True)
class Archived:
    """A database full of such names, and what pg_dump made of it."""

    server: PrivateServer
    major: int
    database: str
    archive: bytes

    @property
    def pg_restore(self) -> Path:
        return server_binaries(self.major).program("pg_restore")

    @property
    def environment(self) -> dict[str, str]:
        return client_environment(self.server, PGDATABASE=self.database)

    def script(self) -> bytes:
        command: list[str | Path] = [self.pg_restore, "--data-only", "--file=-"]
        return subprocess.run(command, input=self.archive, env=self.environment, capture_output=True, check=True).stdout

    def tables(self) -> dict[tuple[str, str], tuple[int, int]]:
        """By the server's own words: oid and exact count of rows."""
        listed = sql(
            self.server,
            self.database,
            "SELECT n.nspname, c.relname, c.oid::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE relkind = 'r' AND nspname !~ '^pg_' AND nspname <> 'information_schema'",
        )
        counts = {}
        with connect(self.server, self.database) as connection:
            for schema, name, oid in listed:
                count = connection.execute(compose.SQL("SELECT count(*) FROM ONLY {}").format(compose.Identifier(schema, name)))
                counts[schema, name] = (oid, count.fetchall()[0][0])
        return counts


def dump(server: PrivateServer, major: int, database: str, *options: str) -> bytes:
    command: list[str | Path] = [server_binaries(major).program("pg_dump"), "--compress=0", *options]
    return subprocess.run(command, env=client_environment(server, PGDATABASE=database), capture_output=True, check=True).stdout


def misnamed(server: PrivateServer, database: str) -> None:
    """Tables of every such name in every such schema, with some rows or none; sequences; and tables of every kind."""
    with connect(server, database) as connection:

        def run(statement: LiteralString, *parts: compose.Composable) -> None:
            connection.execute(compose.SQL(statement).format(*parts))

        def number(value: int) -> compose.Composable:
            return compose.SQL(str(value))

        rows = [compose.SQL("({})").format(value) for value in VALUES]
        for schema in SCHEMAS:
            run("CREATE SCHEMA IF NOT EXISTS {}", compose.Identifier(schema))
        columns = compose.SQL(", ").join(compose.SQL("{} text").format(compose.Identifier(column)) for column in COLUMNS)
        for schema, name in itertools.product(SCHEMAS, NAMES):
            table = compose.Identifier(schema, name)
            run("CREATE TABLE {} ({})", table, columns)
            if len(name) % 5:
                run("INSERT INTO {} VALUES {}", table, compose.SQL(", ").join(rows[: len(name) % 5]))
        for place, name in enumerate(NAMES):
            sequence = compose.Identifier("public", f"s {name}"[:60])
            run("CREATE SEQUENCE {} MINVALUE {} MAXVALUE {}", sequence, number(-(2**63)), number(2**63 - 1))
            value = (-(2**63), 2**63 - 1, None)[place % 3]
            if value is not None:
                called = compose.Literal(place % 2 == 0)
                run("SELECT setval({}::regclass, {}, {})", compose.Literal(sequence.as_string()), number(value), called)
        run("CREATE TABLE zero (); INSERT INTO zero DEFAULT VALUES; INSERT INTO zero DEFAULT VALUES; CREATE TABLE nothing ()")
        run("CREATE TABLE parent (id int); CREATE TABLE child (extra text) INHERITS (parent); INSERT INTO parent VALUES (1)")
        run("INSERT INTO child VALUES (2, 'x'), (3, 'y')")
        run("CREATE TABLE whole (id int) PARTITION BY RANGE (id); CREATE TABLE leaf PARTITION OF whole DEFAULT")
        run("INSERT INTO whole VALUES (1)")
        run("CREATE TABLE counted (id serial, twice int GENERATED ALWAYS AS (id * 2) STORED)")
        run("INSERT INTO counted (id) VALUES (default)")
        run("CREATE TABLE lines (text text)")
        run("INSERT INTO lines VALUES {}", compose.SQL(", ").join(rows))
        blob = "';\nCOPY public.plain (id) FROM stdin;\n1\n\\.\n" * 999
        run("SELECT lo_from_bytea(0, convert_to({}, 'UTF8'))", compose.Literal(blob))


@pytest.fixture(scope="module")
def archived(postgres: PrivateServer) -> Iterator[Archived]:
    major = major_of(postgres)
    with fresh_database(postgres) as database:
        misnamed(postgres, database)
        yield Archived(postgres, major, database, dump(postgres, major, database, "--format=custom"))


def in_pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[place : place + size] for place in range(0, len(data), size))


# -- contents


@pytest.mark.parametrize("size", [1 << 20, 1000])
def test_the_contents_are_what_the_server_has(archived: Archived, size: int) -> None:
    contents = read_contents(archived.pg_restore, archived.environment, in_pieces(archived.archive, size), "it")
    assert set(contents.data_tables) == {oid for oid, _ in archived.tables().values()}
    sequences = sql(archived.server, archived.database, "SELECT schemaname, sequencename FROM pg_sequences")
    assert len(sequences) == len(NAMES) + 1
    assert {(each.schema, each.name) for each in contents.sequences} == set(sequences)
    with connect(archived.server, archived.database) as connection:
        for each in contents.sequences:
            statement = compose.SQL("SELECT last_value, is_called FROM {}").format(compose.Identifier(each.schema, each.name))
            assert connection.execute(statement).fetchall() == [(each.last_value, each.is_called)], each


def test_a_directory_says_the_same(archived: Archived, tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    dump(archived.server, archived.major, archived.database, "--format=directory", f"--file={folder}", "--jobs=2")
    contents = read_contents(archived.pg_restore, archived.environment, folder, "it")
    of_stream = read_contents(archived.pg_restore, archived.environment, [archived.archive], "it")
    assert set(contents.data_tables) == set(of_stream.data_tables)
    assert sorted(contents.sequences, key=repr) == sorted(of_stream.sequences, key=repr)
    assert contents.entries == of_stream.entries
    for oid, number in contents.data_tables.items():
        assert (folder / f"{number}.dat").exists(), oid


def test_thousands_of_sequences(postgres18: PrivateServer) -> None:
    with fresh_database(postgres18) as database:
        sql(
            postgres18,
            database,
            "DO $$ BEGIN FOR n IN 1..3000 LOOP EXECUTE format('CREATE SEQUENCE %I', 's''' || n);"
            " PERFORM setval(quote_ident('s''' || n), n, n % 2 = 0); END LOOP; END $$",
        )
        archive = dump(postgres18, 18, database, "--format=custom")
        environment = client_environment(postgres18)
        contents = read_contents(server_binaries(18).program("pg_restore"), environment, in_pieces(archive, 65536), "it")
    assert {(each.name, each.last_value, each.is_called) for each in contents.sequences} == {
        (f"s'{n}", n, n % 2 == 0) for n in range(1, 3001)
    }


def test_only_its_head_is_read_and_the_rest_can_be_read_on(archived: Archived) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        for piece in itertools.chain(in_pieces(archived.archive, 10_000), itertools.repeat(bytes(10_000), 2000)):
            taken += len(piece)
            yield piece

    head = Head(endless())
    contents = read_contents(archived.pg_restore, archived.environment, head, "it")
    assert contents.sequences
    assert taken < len(archived.archive) + (8 << 20), "it read on, far beyond what the pipe holds"
    whole = b"".join(head.last_time())
    assert whole.startswith(archived.archive)
    assert len(whole) == len(archived.archive) + 20_000_000


@pytest.mark.parametrize("data", [b"", b"no archive", bytes(10_000), b"PGDMP" + bytes(100), b"-- PostgreSQL database dump\n"])
def test_what_is_no_archive_is_refused(archived: Archived, data: bytes) -> None:
    with pytest.raises(IntegrityError, match="the key is no archive that pg_restore accepts"):
        read_contents(archived.pg_restore, archived.environment, [data], "the key")


def test_contents_that_were_cut_are_refused(archived: Archived) -> None:
    end = archived.archive.index(b"COPY") // 2  # in the middle of the table of contents
    for length in (5, 12, 40, 200, end):
        with pytest.raises(IntegrityError, match="the key"):
            read_contents(archived.pg_restore, archived.environment, [archived.archive[:length]], "the key")


def test_a_name_that_is_no_text_is_an_error_not_another_name(postgres18: PrivateServer) -> None:
    name = "of_bytes"
    sql(postgres18, "postgres", f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy ENCODING SQL_ASCII LOCALE 'C'")
    try:
        with connect(postgres18, name, options="-c client_encoding=SQL_ASCII") as connection:
            connection.execute(b'CREATE SEQUENCE "\xe9"')
        archive = dump(postgres18, 18, name, "--format=custom")
        with pytest.raises(IntegrityError, match="it names a sequence in bytes that are not UTF-8"):
            read_contents(server_binaries(18).program("pg_restore"), client_environment(postgres18), [archive], "it")
    finally:
        sql(postgres18, "postgres", f"DROP DATABASE {name}")


HEADING = ";\n; Selected TOC Entries:\n;\n"
SEQUENCE = "7; 0 0 SEQUENCE SET public s postgres"


@pytest.mark.parametrize(
    ("listing", "script", "words"),
    [
        ("", "", "lists nothing that can be understood"),
        ("; a new kind of listing\n", "", "lists nothing that can be understood"),
        (f"{HEADING}{SEQUENCE}\nsomething: else\n", "", "lists nothing that can be understood"),
        (f"{HEADING}{SEQUENCE}\n", "SELECT setval('public.s', 1);", "1 sequence is listed, 0 are set"),
        (f"{HEADING}{SEQUENCE}\n", "SELECT pg_catalog.setval('s', 1, true);", "a sequence is named 's'"),
    ],
)
def test_a_pg_restore_that_says_something_else_is_not_believed(tmp_path: Path, listing: str, script: str, words: str) -> None:
    (tmp_path / "listing").write_text(listing)
    (tmp_path / "script").write_text(script)
    fake = tmp_path / "pg_restore"
    fake.write_text(f'#!/bin/sh\n[ "$1" = --list ] && exec cat {tmp_path}/listing\nexec cat {tmp_path}/script\n')
    fake.chmod(0o755)
    with pytest.raises(IntegrityError, match=words):
        read_contents(fake, {"PATH": os.environ["PATH"]}, [b"PGDMP"], "the key")


def test_an_error_of_the_source_is_the_source_s(archived: Archived) -> None:
    def breaking() -> Iterator[bytes]:
        yield archived.archive[:100]
        raise IntegrityError("the object ended early")

    with pytest.raises(IntegrityError, match="the object ended early"):
        read_contents(archived.pg_restore, archived.environment, breaking(), "the key")


@given(st.text(min_size=1), st.text(min_size=1))
@example("a.b", 'c"."d')
def test_a_quoted_name_is_split_where_its_dot_is(schema: str, name: str) -> None:
    def quote(part: str) -> str:
        return '"' + part.replace('"', '""') + '"'

    assert split_qualified(f"{quote(schema)}.{quote(name)}") == (schema, name)


@pytest.mark.parametrize("text", ["", "a", "a.b.c", '"a.b', 'a"."b', '"".a', "."])
def test_what_is_no_qualified_name(text: str) -> None:
    assert split_qualified(text) is None


def test_a_sequence_whose_name_cannot_be_understood_is_an_error() -> None:
    with pytest.raises(IntegrityError, match="a sequence is named 'a' in the archive"):
        parse_setvals("SELECT pg_catalog.setval('a', 1, true);")


# -- counting rows in a script


def counted(pieces: Iterable[bytes]) -> dict[tuple[str, str], int]:
    counter = CopyCounter()
    for piece in pieces:
        counter.feed(piece)
    return counter.rows


@pytest.fixture(scope="module")
def script(archived: Archived) -> bytes:
    return archived.script()


def test_the_rows_in_a_script_are_those_on_the_server(archived: Archived, script: bytes) -> None:
    expected = {name: count for name, (_, count) in archived.tables().items()}
    assert expected["public", "lines"] == len(VALUES)
    assert expected["public", "zero"] == 2
    for size in (1, 2, 3, 5, 7, 64, 1000, 65536, len(script)):
        assert counted(in_pieces(script, size)) == expected, size


@given(st.data())
def test_they_are_whatever_the_pieces(script: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(script)), max_size=30)))
    pieces = [script[start:end] for start, end in itertools.pairwise([0, *cuts, len(script)])]
    assert counted(pieces) == counted([script])


_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
cells = st.none() | st.text("\\.\n\t\rNa;'\"-é", max_size=6)
names = st.text("ab.\"\n;'()- C", min_size=1, max_size=8)


@st.composite
def tables_of_a_script(draw: st.DrawFn) -> list[tuple[str, list[str], list[list[str | None]]]]:
    found = []
    for name in draw(st.lists(names, max_size=4, unique=True)):
        columns = draw(st.lists(names, max_size=3, unique=True))
        rows = draw(st.lists(st.lists(cells, min_size=len(columns), max_size=len(columns)), max_size=6))
        found.append((name, columns, rows))
    return found


def written(name: str, columns: list[str], rows: list[list[str | None]]) -> str:
    """A table as pg_restore writes it; source: COPY's page, text format."""

    def quote(part: str) -> str:
        return '"' + part.replace('"', '""') + '"'

    def cell(value: str | None) -> str:
        return "\\N" if value is None else "".join(_ESCAPES.get(letter, letter) for letter in value)

    listed = f"({', '.join(map(quote, columns))})" if columns else ""
    lines = "".join("\t".join(map(cell, row)) + "\n" for row in rows)
    comment = " ".join(name.split())
    heading = f"--\n-- Data for Name: {comment}; Type: TABLE DATA\n--\n\n"
    return f"{heading}COPY public.{quote(name)} {listed} FROM stdin;\n{lines}\\.\n\n\n"


@given(tables_of_a_script(), st.lists(st.integers(1, 40), min_size=1))
@example([("a", [], [[], [], []])], [1])
@example([("a", ["b"], [["\\."], ["."], [None]])], [1])
@example([("COPY b", ["c"], []), ("b", ["c"], [[""]])], [2, 3])
def test_every_row_is_counted_once(tables: list[tuple[str, list[str], list[list[str | None]]]], sizes: list[int]) -> None:
    script = "\\restrict abc\n\nSET statement_timeout = 0;\nSELECT pg_catalog.set_config('search_path', '', false);\n\n"
    script += "".join(written(*table) for table in tables) + "\\unrestrict abc\n\n"
    data = script.encode()
    cuts = [0, *itertools.takewhile(lambda cut: cut < len(data), itertools.accumulate(itertools.cycle(sizes))), len(data)]
    assert counted(data[start:end] for start, end in itertools.pairwise(cuts)) == {
        ("public", name): len(rows) for name, _, rows in tables
    }


def test_a_long_statement_in_small_pieces_takes_no_long_time() -> None:
    blob = b"SELECT pg_catalog.lowrite(0, '\\x" + b"6a" * 16_384 + b"');\n"
    script = blob * 50 + b"COPY public.a (b) FROM stdin;\n1\n\\.\n"
    assert counted(in_pieces(script, 8192)) == {("public", "a"): 1}


def test_a_row_of_any_length_is_counted_without_being_kept() -> None:
    piece, counter = b"6a" * (MIB // 2), CopyCounter()
    counter.feed(b"COPY public.a (b) FROM stdin;\nshort\n\\\\x")
    for _ in range(64):
        counter.feed(piece)
        assert len(counter._rest) < 4
    counter.feed(b"\nshort\n\\.\n\nCOPY public.b (c) FROM stdin;\n1\n\\.\n")
    assert counter.rows == {("public", "a"): 3, ("public", "b"): 1}


def test_a_statement_without_end_is_an_error_before_it_fills_the_memory() -> None:
    counter = CopyCounter()
    counter.feed(b"SELECT '")
    with pytest.raises(IntegrityError, match="a statement in the archive does not end: b\"SELECT 'xxx"):  # noqa: PT012  after how much matters
        for number in range(64):
            counter.feed(b"x" * MIB)
            assert number < LONGEST_STATEMENT_BYTES // MIB
