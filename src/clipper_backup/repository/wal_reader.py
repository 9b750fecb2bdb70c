"""Files of the archive, read and checked: whatever is handed on has the name, system, timeline, LSN and bytes it must have."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from clipper_backup.errors import AccessError, IntegrityError, ObjectMissingError
from clipper_backup.format import physical_names as keys
from clipper_backup.format.names import SEALED
from clipper_backup.format.wal_objects import NO_LINK, Header, ObjectKind, check_header, decode_object, place_of, signed_by
from clipper_backup.postgres.history import is_made, parse_history
from clipper_backup.store.protocol import Store
from clipper_backup.values import Timeline
from clipper_backup.wal_names import Segment, history_name

Opener = Callable[[Iterable[bytes], str], Iterator[bytes]]
"""Makes of the chunks of the object at a key what they were before they were sealed, if they were."""


class UnopenedError(AccessError):
    """An object that is there and is sealed to keys that we do not have: the store refused nothing."""


_WHOLE_BYTES = 64 << 20
"""Objects of files up to this size are read by one request and lie in memory; larger ones come as a stream."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A file of the archive: what its header says, and its bytes, which count only when the iterator came to its end."""

    key: str
    header: Header
    chunks: Iterator[bytes]


class WalReader:
    """The archive of one system, as a restore reads it.

    Its errors: IntegrityError for an object that is not what it must be (`trusted` asks for a signature by one of those public
    keys), AccessError for one that is sealed to others; the store's own pass through. `seals` says under which of its two names
    an object is asked for first.
    """

    def __init__(
        self,
        store: Store,
        *,
        repository_id: str,
        system_id: str,
        segment_bytes: int,
        opener: Opener,
        seals: bool = False,
        trusted: Sequence[str] = (),
    ) -> None:
        self.store = store
        self.system_id = system_id
        self.segment_bytes = segment_bytes
        self.repository_id = repository_id
        self._opener = opener
        self._suffixes = (f"{keys.STORED}{SEALED}", keys.STORED) if seals else (keys.STORED, f"{keys.STORED}{SEALED}")
        self._trusted = tuple(trusted)

    def segment(self, segment: Segment) -> Opened | None:
        """A segment; None when there is no such object."""
        opened = self._open(segment.name, whole=self.segment_bytes <= _WHOLE_BYTES)
        if opened is not None and opened.header.plain_bytes != self.segment_bytes:
            raise IntegrityError(f"{opened.key} holds a segment of {opened.header.plain_bytes} bytes, not {self.segment_bytes}")
        return opened

    def file(self, name: str) -> bytes | None:
        """A small file, a `.backup` or `.history`, whole; None when there is no such object."""
        opened = self._open(name, whole=True)
        return None if opened is None else b"".join(opened.chunks)

    def history(self, timeline: Timeline) -> bytes | None:
        """A timeline's history as PostgreSQL wrote it; None when there is no such object."""
        name = history_name(timeline)
        data = self.file(name)
        if data is not None:
            if is_made(data):
                raise IntegrityError(f"{name} in the archive is one that a restore made: PostgreSQL never wrote it")
            parse_history(data, name)
        return data

    def previous(self, segment: Segment, header: Header) -> bytes:
        """The link that the segment before must have: the header's, or where that knew none, that of the healing `.link`."""
        if header.previous != NO_LINK:
            return header.previous
        key = keys.archive_key(self.system_id, segment.name, keys.LINK)
        try:
            data = self.store.get(key)
        except ObjectMissingError:
            return NO_LINK
        found, rest = decode_object([data], key)
        for _ in rest:
            raise IntegrityError(f"{key} holds more than a header")
        self._check(found, segment.name, key, ObjectKind.LINK)
        if (found.salt, found.digest) != (header.salt, header.digest):
            raise IntegrityError(f"{key} speaks of another segment than the one that lies beside it")
        return found.previous

    def _open(self, name: str, *, whole: bool) -> Opened | None:
        for suffix in self._suffixes:
            key = keys.archive_key(self.system_id, name, suffix)
            try:
                stored = [self.store.get(key)] if whole else self.store.get_stream(key, same_as=self.store.head(key))
            except ObjectMissingError:
                continue
            header, chunks = decode_object(self._unsealed(stored, key), key)
            self._check(header, name, key)
            return Opened(key, header, chunks)
        return None

    def _unsealed(self, stored: Iterable[bytes], key: str) -> Iterator[bytes]:
        source = iter(stored)
        first = next(source, b"")  # what the store refuses, it refuses here
        try:
            yield from self._opener(chain([first], source), key)
        except AccessError as error:
            raise UnopenedError(error.message, hints=error.hints) from error

    def _check(self, header: Header, name: str, key: str, kind: ObjectKind | None = None) -> None:
        place = place_of(name, self.segment_bytes)
        wanted = place if kind is None else type(place)(kind, place.timeline, place.lsn)
        repository_id = bytes.fromhex(self.repository_id)
        check_header(header, wanted, system_id=int(self.system_id), repository_id=repository_id, name=key)
        if self._trusted and signed_by(header, self._trusted) is None:
            raise IntegrityError(
                f"{key} is not signed by any of SIGNATURE_KEYS",
                hints=[
                    "was it archived before signing was switched on? A restore takes it with --unsigned",
                    "or somebody else wrote it",
                ],
            )
