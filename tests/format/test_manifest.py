import json
import zlib
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipper_backup.errors import IntegrityError, StoreError
from clipper_backup.format.documents import NewerError
from clipper_backup.format.frames import STRETCH_BYTES
from clipper_backup.format.manifest import (
    Entry,
    File,
    Folder,
    Head,
    Outside,
    Tablespace,
    as_part,
    as_path,
    as_target,
    encode_entry,
    read_manifest,
    write_manifest,
)

KEY = "base/20261122-020000-7f3a9c2e/manifest.zst"
HEAD = Head(id="20261122-020000-7f3a9c2e", repository_id="4f1a0c9e" * 4, page_bytes=8192, sealed=True)
REFERENCE = ("20261123-020000-0c4d9b61/00000004", 64, 237, 272, 259, "03eb699fcd8742f1f4de90e9fcb04b6c")
SMALL = (
    ("20261122-020000-7f3a9c2e/00000000", 90, 12, 3, 1, "513857c4a7e017f1a574e5476f48b016"),
    0,
    "5ea7145ddd2608b296062f570782e2ab39d75374d832f27c7fdac19b83b7bb9a",
)
OWNED: Any = {"mode": 0o700, "uid": 101, "gid": 103, "mtime_ns": 1_700_000_000_000_000_000}
ENTRIES: list[Entry] = [
    File(**as_path(b"PG_VERSION"), **OWNED, size_bytes=3, small=SMALL),
    Folder(**as_path(b"base"), **OWNED),
    Folder(**as_path(b"base/5"), **OWNED),
    File(**as_path(b"base/5/16385"), **OWNED, size_bytes=24676, maps=(REFERENCE,), damaged_pages=(3,)),
    File(**as_path(b"base/5/16386"), **OWNED, size_bytes=STRETCH_BYTES + 1, maps=(REFERENCE, REFERENCE)),
    Folder(**as_path(b"base-2"), **OWNED),
    File(**as_path(b"caf\xe9"), **OWNED, size_bytes=0),
    Folder(**as_path(b"pg_tblspc"), **OWNED),
    Tablespace(**as_path(b"pg_tblspc/16384"), **OWNED, **as_target(b"/ts\xff")),
    Folder(**as_path(b"pg_tblspc/16384/PG_15_202209061"), **OWNED),
    Outside(**as_path(b"/etc/postgresql/pg_hba.conf"), **OWNED, size_bytes=3, small=SMALL),
]
ENTRIES.sort(key=lambda entry: entry.order)


def written(entries: Iterable[Entry] = ENTRIES, head: Head = HEAD) -> bytes:
    return b"".join(write_manifest(head, entries, KEY))


def read(data: bytes) -> list[Entry]:
    return list(read_manifest([data], HEAD, KEY))


def test_a_manifest_is_read_as_it_was_written_however_it_is_cut() -> None:
    data = written()
    assert read(data) == ENTRIES
    assert list(read_manifest((bytes([byte]) for byte in data), HEAD, KEY)) == ENTRIES
    assert [entry.named for entry in ENTRIES][:4] == [b"PG_VERSION", b"base", b"base-2", b"base/5"]
    assert ENTRIES[-1].named == b"/etc/postgresql/pg_hba.conf"


@pytest.mark.rule(36)
def test_every_line_is_json_that_other_programs_read() -> None:
    head, *lines, foot = map(json.loads, written().splitlines())
    assert head == {"schema": 1, "kind": "manifest", "id": HEAD.id, "repository_id": HEAD.repository_id, "page_bytes": 8192,
                    "stretch_bytes": 67108864, "sealed": True}  # fmt: skip
    assert foot == {"lines": 11, "files": 5, "size_bytes": 24676 + STRETCH_BYTES + 1 + 3 + 3}
    by_path = {line.get("path") or line["path_base64"]: line for line in lines}
    assert by_path["base/5/16385"] == OWNED | {
        "kind": "file", "path": "base/5/16385", "size_bytes": 24676, "maps": [list(REFERENCE)], "damaged_pages": [3]
    }  # fmt: skip
    assert by_path["PG_VERSION"]["small"] == [list(SMALL[0]), *SMALL[1:]]
    assert by_path["Y2Fm6Q=="]["kind"] == "file"
    assert by_path["pg_tblspc/16384"]["target_base64"] == "L3Rz/w=="


def test_a_file_says_where_its_content_lies_and_is_made_from_that() -> None:
    for entry in ENTRIES:
        if isinstance(entry, File):
            made = type(entry)(**as_path(entry.named), **OWNED, **as_part(entry.part), damaged_pages=entry.damaged_pages)
            assert encode_entry(made) == encode_entry(entry)


def line(**fields: Any) -> str:
    """A file's line, with *fields* of its own; None leaves one out."""
    whole: dict[str, Any] = {"kind": "file", "path": "a", **OWNED, "size_bytes": 0} | fields
    return json.dumps({name: value for name, value in whole.items() if value is not None})


FOLDER = line(kind="folder", path="f", size_bytes=None)
MAP: list[Any] = list(REFERENCE)
REFUSED: dict[str, list[str]] = {
    "no object": ["[]"],
    "no JSON": ["{"],
    "a key twice": ['{"mode":1,' + line()[1:]],
    "a key twice, unknown": ['{"new":1,"new":2,' + line()[1:]],
    "a kind that is no word": [line(kind="link 2")],
    "a kind that is a number": [line(kind=1)],
    "a number as text": [line(mode="1")],
    "a number with a fraction": [line().replace('"size_bytes": 0', '"size_bytes": 0.0')],
    "a number with an exponent": [line().replace('"size_bytes": 0', '"size_bytes": 0e0')],
    "a mode beyond 12 bits": [line(mode=0o10000)],
    "a size below 0": [line(size_bytes=-1)],
    "no size": [line(size_bytes=None)],
    "a reference of another form": [line(size_bytes=1, maps=[MAP[:-1]])],
    "a digest of another form": [line(size_bytes=1, maps=[[*MAP[:-1], MAP[-1] + "\n"]])],
    "a pack of another form": [line(size_bytes=1, maps=[["20261123-020000-0c4d9b61/4", *MAP[1:]]])],
    "out of order": [line(path="b"), line(path="a")],
    "a path twice": [line(), line()],
    "something behind outside": [line(kind="outside", path="/a"), line()],
    "..": [FOLDER, line(path="f/..")],
    ".": [line(path=".")],
    "an empty part": [FOLDER, line(path="f//a")],
    "a / at the end": [FOLDER, line(path="f/")],
    "a NUL": [line(path="a\0")],
    "a leading /": [line(path="/a")],
    "outside without a leading /": [line(kind="outside")],
    ".. in outside": [line(kind="outside", path="/etc/../a")],
    "no path": [line(path=None)],
    "two paths": [line(path_base64="/w==")],
    "base64 of UTF-8": [line(path=None, path_base64="YQ==")],
    "no base64": [line(path=None, path_base64="=")],
    "a path that cannot be encoded": [line(path="\ud800")],
    "its folder is missing": [line(path="f/a")],
    "its folder is a file": [line(path="f"), line(path="f/a")],
    "a tablespace that leads nowhere": [FOLDER, line(kind="tablespace", path="f/1", size_bytes=None)],
    "too few maps": [line(size_bytes=1)],
    "too many maps": [line(maps=[MAP])],
    "maps and small": [line(size_bytes=3, maps=[MAP], small=[list(SMALL[0]), *SMALL[1:]])],
    "small and large": [line(size_bytes=(1 << 20) + 1, small=[list(SMALL[0]), *SMALL[1:]])],
    "small and empty": [line(size_bytes=0, small=[list(SMALL[0]), *SMALL[1:]])],
}  # fmt: skip


@pytest.mark.parametrize("lines", REFUSED.values(), ids=REFUSED)
def test_manifest_lines_refused(lines: list[str]) -> None:
    """M1: each sentence of the page's order; the writer refuses what can be said to it at all."""
    kinds = [json.loads(each).get("kind") if each.startswith("{") and each != "{" else "" for each in lines]
    files = [each for each, kind in zip(lines, kinds, strict=True) if kind in {"file", "outside"}]
    sizes = sum(json.loads(each).get("size_bytes") or 0 for each in files if isinstance(json.loads(each), dict))
    foot = json.dumps({"lines": len(lines), "files": len(files), "size_bytes": sizes})
    head = written([]).splitlines()[0].decode()
    with pytest.raises(IntegrityError, match=r"manifest\.zst"):
        read("".join(f"{each}\n" for each in [head, *lines, foot]).encode())


def test_a_line_of_an_unknown_kind_is_a_newer_versions_and_nothing_is_taken_of_it() -> None:
    head, folder, foot = written([Folder(**as_path(b"f"), **OWNED)]).splitlines()
    link = b'{"path":"link","kind":"link","target":"/etc","mode":511,"uid":0,"gid":0,"mtime_ns":0}'
    with pytest.raises(NewerError, match=r"manifest\.zst: line 3 was written by a newer version \(it is of the kind 'link'\)"):
        read(b"".join(each + b"\n" for each in (head, folder, link, foot)))


def test_unknown_fields_are_ignored() -> None:
    head, *_, foot = written([Folder(**as_path(b"f"), **OWNED)]).splitlines()
    more = [head[:-1] + b',"new":{}}', FOLDER[:-1].encode() + b',"new":1.5}', foot[:-1] + b',"new":[]}']
    assert [entry.named for entry in read(b"".join(each + b"\n" for each in more))] == [b"f"]


def test_a_writer_refuses_what_a_reader_would() -> None:
    for entries in (ENTRIES[::-1], [ENTRIES[0], ENTRIES[0]], ENTRIES[3:4], [File(path="a", **OWNED, size_bytes=1)]):
        with pytest.raises(IntegrityError, match=r"manifest\.zst"):
            written(entries)


def test_a_head_that_is_not_of_this_backup_is_refused() -> None:
    others: dict[str, Any] = {
        "id": "20261122-020000-7f3a9c2f", "repository_id": "0" * 32, "page_bytes": 4096, "sealed": False
    }  # fmt: skip
    for name, value in others.items():
        with pytest.raises(IntegrityError, match=f"{name} is "):
            read(written(head=msgspec.structs.replace(HEAD, **{name: value})))
    with pytest.raises(StoreError, match="newer version"):
        read(written().replace(b'"schema":1', b'"schema":2'))
    with pytest.raises(IntegrityError, match="head"):
        read(written()[1:])


@pytest.mark.parametrize("stretch_bytes", [1 << 20, 32 << 20, 1 << 30])
def test_stretches_may_have_another_size(stretch_bytes: int) -> None:
    """M2: the head says which, and each file has as many maps as it has stretches then."""
    head = msgspec.structs.replace(HEAD, stretch_bytes=stretch_bytes)
    for size_bytes, maps in ((stretch_bytes, 1), (stretch_bytes + 1, 2)):
        file = File(path="a", **OWNED, size_bytes=size_bytes, maps=(REFERENCE,) * maps)
        found = read_manifest([written([file], head=head)], HEAD, KEY)
        assert (found.head, list(found)) == (head, [file])
        for wrong in (maps - 1, maps + 1):
            lines = written([file], head=head).splitlines()
            other = json.loads(lines[1]) | {"maps": [REFERENCE] * wrong}
            with pytest.raises(IntegrityError, match=f"has {wrong} page maps, not the {maps} of its"):
                read(b"".join(line + b"\n" for line in (lines[0], json.dumps(other).encode(), lines[2])))


@pytest.mark.parametrize("stretch_bytes", [-1, 0, 1 << 19, 3 << 20, 65 << 20, 1 << 31])
def test_a_size_that_no_stretch_has_is_refused(stretch_bytes: int) -> None:
    with pytest.raises(IntegrityError, match=rf"manifest\.zst: no stretch has {stretch_bytes} bytes"):
        read(written().replace(b"67108864", str(stretch_bytes).encode()))


def test_a_manifest_without_its_foot_is_refused_wherever_it_ends() -> None:
    data = written()
    for end in range(len(data)):
        with pytest.raises(IntegrityError):
            read(data[:end])
    for behind in (b"\n", b"{}\n", b" ", data):
        with pytest.raises(IntegrityError):
            read(data + behind)


def test_a_foot_that_does_not_count_right_is_refused() -> None:
    for wrong in (b'"lines":10', b'"lines":12'):
        with pytest.raises(IntegrityError, match="foot"):
            read(written().replace(b'"lines":11', wrong))
    with pytest.raises(IntegrityError, match="foot"):
        read(written().replace(b'"files":5', b'"files":4'))


NAMES = st.binary(min_size=1, max_size=6).filter(lambda name: not set(name) & set(b"/\0") and name not in {b".", b".."})


@given(st.sets(st.lists(NAMES, min_size=1, max_size=3).map(tuple), max_size=12))
def test_any_tree_survives(leaves: set[tuple[bytes, ...]]) -> None:
    folders = {path[:end] for path in leaves for end in range(1, len(path))}
    entries: list[Entry] = [Folder(**as_path(b"/".join(path)), **OWNED) for path in folders]
    for path in leaves - folders:
        size_bytes = zlib.crc32(b"/".join(path)) % (3 * STRETCH_BYTES)
        maps = (REFERENCE,) * -(-size_bytes // STRETCH_BYTES)
        entries.append(File(**as_path(b"/".join(path)), **OWNED, size_bytes=size_bytes, maps=maps))
    entries.sort(key=lambda entry: entry.order)
    assert read(written(entries)) == entries
