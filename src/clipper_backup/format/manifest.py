"""The manifest of a base backup: its table of files as JSON lines, written and read as a stream and taken whole or refused (M1).

Its form and order stand in docs/design/repository-format.md. Neither side holds more than a line and the names of the folders.
"""

import base64
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from clipper_backup.errors import IntegrityError
from clipper_backup.format.documents import written_by_newer
from clipper_backup.format.frames import SMALL_BYTES_MAX, STRETCH_BYTES, FilePart, Reference, Small, is_stretch

SCHEMA = 1

_Number = Annotated[int, msgspec.Meta(ge=0)]
_PackName = Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{8}-[0-9]{6}-[0-9a-f]{8}/[0-9]{8}\Z")]
_Hex128 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
_Hex256 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]

ReferenceForm = tuple[_PackName, _Number, _Number, _Number, _Number, _Hex128]
"""A reference in JSON: pack with its run, offset, stored bytes, plain bytes, frame number, digest of the stored bytes."""
SmallForm = tuple[ReferenceForm, _Number, _Hex256]
"""Where a small file lies: the frame, where it begins in the frame's plaintext, the BLAKE3 of its content."""


class Head(msgspec.Struct, kw_only=True, frozen=True):
    """The first line: whose manifest it is. All but `stretch_bytes` must be as its reader, who knows backup.json, expects it."""

    schema: int = SCHEMA
    kind: Literal["manifest"] = "manifest"
    id: str
    repository_id: str
    page_bytes: int
    stretch_bytes: int = STRETCH_BYTES
    sealed: bool


class Foot(msgspec.Struct, kw_only=True, frozen=True):
    """The last line: the lines between head and foot, those of files (inside and outside), and the files' bytes."""

    lines: _Number
    files: _Number
    size_bytes: _Number


class Entry(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True, tag_field="kind"):
    """What a line for any kind of thing has; `named` is its path as bytes.

    One of `path` and `path_base64` is set, the second for bytes that are not UTF-8. `mode` is the low 12 bits, `mtime_ns`
    counts from 1970.
    """

    path: str = ""
    path_base64: str = ""
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o7777)]
    uid: _Number
    gid: _Number
    mtime_ns: int

    @property
    def named(self) -> bytes:
        """The path, relative to PGDATA, with `/`; absolute of a file outside."""
        return _bytes_of(self.path, self.path_base64)

    @property
    def order(self) -> tuple[bool, bytes]:
        """By this lines rise."""
        return False, self.named


class Folder(Entry, kw_only=True, frozen=True, omit_defaults=True, tag="folder", tag_field="kind"):
    """A folder; `pg_wal` always is one, also where it was a link."""


class Tablespace(Entry, kw_only=True, frozen=True, omit_defaults=True, tag="tablespace", tag_field="kind"):
    """`pg_tblspc/<oid>`: a link to the tablespace's folder; the files in it follow below the link's own path."""

    target: str = ""
    target_base64: str = ""

    @property
    def leads_to(self) -> bytes:
        """Where the link leads."""
        return _bytes_of(self.target, self.target_base64)


class File(Entry, kw_only=True, frozen=True, omit_defaults=True, tag="file", tag_field="kind"):
    """A file: `maps` has one reference a stretch, `small` says where a small one lies; an empty one has neither.

    `damaged_pages` are numbers of pages in the file whose checksum stayed wrong when the server read them again. `ctime_ns` and
    `inode` stand there only where the file was read in its folder: the next backup knows by them that nobody wrote it since.
    """

    size_bytes: _Number
    maps: tuple[ReferenceForm, ...] = ()
    small: SmallForm | None = None
    damaged_pages: tuple[_Number, ...] = ()
    ctime_ns: int = 0
    inode: _Number = 0

    @property
    def part(self) -> FilePart:
        """Where its content lies; IntegrityError where no frame can lie."""
        maps = tuple(Reference.from_json(list(each)) for each in self.maps)
        small = None if self.small is None else Small.from_json([list(self.small[0]), *self.small[1:]])
        return FilePart(self.size_bytes, maps, small)


class Outside(File, kw_only=True, frozen=True, omit_defaults=True, tag="outside", tag_field="kind"):
    """A configuration file outside PGDATA, by its absolute path."""

    @property
    def order(self) -> tuple[bool, bytes]:
        """They follow all others."""
        return True, self.named


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """A manifest that is being read: its head, and its entries in order, once; they count only when they end without an error."""

    head: Head
    entries: Iterator[Entry]

    def __iter__(self) -> Iterator[Entry]:
        return self.entries


class Schema(msgspec.Struct):
    """What is read of a head before anything else."""

    schema: int = SCHEMA


class Kind(msgspec.Struct):
    """What is read of a line that is no entry: of a kind that is not known here it may be a later version's."""

    kind: Annotated[str, msgspec.Meta(pattern=r"\A[a-z_]+\Z")]


# Made while this is imported: see format/documents.py.
_SCHEMA, _HEAD, _FOOT = (msgspec.json.Decoder(kind) for kind in (Schema, Head, Foot))
_KIND = msgspec.json.Decoder(Kind)
_KINDS = frozenset({"folder", "tablespace", "file", "outside"})
_ENTRY: msgspec.json.Decoder[Folder | Tablespace | File | Outside] = msgspec.json.Decoder(Folder | Tablespace | File | Outside)
_ENCODER = msgspec.json.Encoder()


def as_path(path: bytes) -> dict[str, Any]:
    """The fields of an entry with this path."""
    return _fields("path", path)


def as_target(target: bytes) -> dict[str, Any]:
    """The fields of a tablespace that leads there."""
    return _fields("target", target)


def as_part(part: FilePart) -> dict[str, Any]:
    """The fields of a file whose content lies there."""
    fields: dict[str, Any] = {"size_bytes": part.size_bytes, "maps": tuple(each.to_json() for each in part.maps)}
    return fields if part.small is None else fields | {"small": part.small.to_json()}


def _fields(name: str, value: bytes) -> dict[str, Any]:
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode()}


def encode_entry(entry: Entry) -> bytes:
    """The line of an entry, with its line feed."""
    return _ENCODER.encode(entry) + b"\n"


def decode_entry(line: bytes, where: str) -> Entry:
    """A line without its line feed; IntegrityError, naming *where*, when it is no entry, or one of the wrong form.

    NewerError for one of a kind that this version does not know.
    """
    try:
        entry: Entry = _decoded(_ENTRY, line, where)
    except IntegrityError:
        with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            if (kind := _KIND.decode(line).kind) not in _KINDS:
                raise written_by_newer(where, f"it is of the kind {kind!r}") from None
        raise
    return entry


def write_manifest(head: Head, entries: Iterable[Entry], key: str) -> Iterator[bytes]:
    """The lines, head and foot included; *entries* come in order. IntegrityError for what a reader would refuse."""
    checks = _Checks(head, key)
    yield _ENCODER.encode(head) + b"\n"
    for entry in entries:
        checks.take(entry)
        yield encode_entry(entry)
    yield _ENCODER.encode(checks.foot) + b"\n"


def read_manifest(chunks: Iterable[bytes], expected: Head, key: str) -> Manifest:
    """Its head now, the entries as they are asked for; it is whole only when these end without an error.

    IntegrityError, naming *key* and where known the path, when anything of it is not as the page says, or its head is not the
    *expected* one, whose stretches may have any size that the page allows; NewerError when a newer version wrote it, or any of
    its lines.
    """
    lines = _lines(chunks, key)
    first = next(lines, b"")
    where = f"{key}: its head"
    if (number := _decoded(_SCHEMA, first, where).schema) > SCHEMA:
        raise written_by_newer(key, f"schema {number}, this one reads up to {SCHEMA}")
    head: Head = _decoded(_HEAD, first, where)
    expected = msgspec.structs.replace(expected, stretch_bytes=head.stretch_bytes)
    if head != expected:
        raise IntegrityError(f"{key} is not the manifest that backup.json speaks of: {_difference(head, expected)}")
    return Manifest(head, _entries(lines, _Checks(head, key), key))


def _entries(lines: Iterator[bytes], checks: "_Checks", key: str) -> Iterator[Entry]:
    held = next(lines, None)
    for line in lines:
        assert held is not None  # noqa: S101  there is one behind it
        entry = decode_entry(held, f"{key}: line {checks.lines + 2}")
        checks.take(entry)
        yield entry
        held = line
    if held is None:
        raise IntegrityError(f"{key} has no foot: it ends too early")
    foot = _decoded(_FOOT, held, f"{key}: its last line is no foot")
    if foot != checks.foot:
        raise IntegrityError(f"{key}: its foot says {foot}, it holds {checks.foot}")


def _lines(chunks: Iterable[bytes], key: str) -> Iterator[bytes]:
    rest: list[bytes] = []
    for chunk in chunks:
        head, *lines = chunk.split(b"\n")
        rest.append(head)
        for line in lines:
            yield b"".join(rest)
            rest = [line]
    if any(rest):
        raise IntegrityError(f"{key}: something stands behind its last line feed")


def _decoded(decoder: "msgspec.json.Decoder[Any]", line: bytes, where: str) -> Any:
    try:
        found = decoder.decode(line)
        # Lines as we write them need no second look: it costs more than the first.
        if _ENCODER.encode(found) != line:
            json.loads(line, object_pairs_hook=_once)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{where} is damaged: {error}") from error
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _bytes_of(text: str, encoded: str) -> bytes:
    return base64.b64decode(encoded, validate=True) if encoded else text.encode()


def _difference(head: Head, expected: Head) -> str:
    said, meant = msgspec.to_builtins(head), msgspec.to_builtins(expected)
    return ", ".join(f"{name} is {said[name]!r}, not {meant[name]!r}" for name in meant if said[name] != meant[name])


class _Checks:
    """What writer and reader refuse, and what the foot counts."""

    def __init__(self, head: Head, key: str) -> None:
        self._key = key
        self._folders = {b""}
        self._last: tuple[bool, bytes] = (False, b"")
        self.lines = self._files = self._size_bytes = 0
        self._stretch_bytes = head.stretch_bytes
        if not is_stretch(head.stretch_bytes, head.page_bytes):
            raise IntegrityError(f"{key}: no stretch has {head.stretch_bytes} bytes, of pages of {head.page_bytes}")

    @property
    def foot(self) -> Foot:
        return Foot(lines=self.lines, files=self._files, size_bytes=self._size_bytes)

    def take(self, entry: Entry) -> None:
        """Count *entry*, which follows those before; IntegrityError naming its path when it must not stand there."""
        try:
            self._check(entry)
        except ValueError as error:
            shown = (entry.path or entry.path_base64).encode(errors="backslashreplace").decode()
            raise IntegrityError(f"{self._key}: {shown!r}: {error}") from error
        self.lines += 1
        if isinstance(entry, File):
            self._files += 1
            self._size_bytes += entry.size_bytes

    def _check(self, entry: Entry) -> None:
        _check_form("path", entry.path, entry.path_base64)
        path, order = entry.named, entry.order
        if order <= self._last:
            raise ValueError("stands there twice" if order == self._last else f"is out of order behind {self._last[1]!r}")
        self._last = order
        _check_path(path, outside=isinstance(entry, Outside))
        if not isinstance(entry, Outside) and path.rpartition(b"/")[0] not in self._folders:
            raise ValueError("its folder has no line before it")
        if isinstance(entry, File):
            _check_parts(entry, self._stretch_bytes)
        else:
            self._folders.add(path)
        if isinstance(entry, Tablespace):
            _check_form("target", entry.target, entry.target_base64)
            if b"\0" in entry.leads_to:
                raise ValueError("it leads to a path with a NUL")


def _check_form(name: str, text: str, encoded: str) -> None:
    if bool(text) == bool(encoded):
        raise ValueError(f"it has not one of {name} and {name}_base64")
    if encoded and _fields(name, _bytes_of("", encoded)) != {f"{name}_base64": encoded}:
        raise ValueError(f"its {name} is no base64 of bytes that are not UTF-8")


def _check_path(path: bytes, *, outside: bool) -> None:
    if path.startswith(b"/") != outside:
        raise ValueError("begins with /" if not outside else "does not begin with /")
    parts = path.split(b"/")[1 if outside else 0 :]
    if b"\0" in path or not {b"", b".", b".."}.isdisjoint(parts):
        raise ValueError("is no path: it has a NUL or an empty part, or goes up")


def _check_parts(entry: File, stretch_bytes: int) -> None:
    count = -(-entry.size_bytes // stretch_bytes)
    if entry.small is not None:
        if entry.maps or not 0 < entry.size_bytes <= SMALL_BYTES_MAX:
            raise ValueError(f"has {entry.size_bytes} bytes and cannot lie among small files, or has page maps too")
    elif len(entry.maps) != count:
        raise ValueError(f"has {len(entry.maps)} page maps, not the {count} of its {entry.size_bytes} bytes")
