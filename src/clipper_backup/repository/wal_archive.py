"""Writing into the WAL archive: claim, put, compare; acknowledged is what both are there for (docs/design/repository-wal.md).

Step 1, the reading, is `WalFile`'s. Whoever archives a timeline takes its claims one after the other, in order (W3).
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

from blake3 import blake3
from msgspec import UNSET, UnsetType

from clipper_backup.clock import Clock
from clipper_backup.errors import (
    AccessError,
    IntegrityError,
    MissingError,
    ObjectExistsError,
    ObjectMissingError,
    StoreUnavailableError,
)
from clipper_backup.format import wal_objects
from clipper_backup.format.base_documents import Claim
from clipper_backup.format.documents import decode, encode_compact
from clipper_backup.format.names import SEALED
from clipper_backup.format.physical_names import CLAIM, LINK, STORED, archive_key
from clipper_backup.format.wal_objects import NO_LINK, Header, ObjectKind, Place, place_of
from clipper_backup.postgres.history import Ancestor
from clipper_backup.postgres.wal_files import ChangedError
from clipper_backup.repository.root import check_same_repository
from clipper_backup.store.protocol import STREAM_CHUNK_BYTES, Store
from clipper_backup.values import Lsn, Timeline

CLAIM_SECONDS = 3600
"""How long after it was answered a claim may be relied on: a sleeper's may have been pruned (step 4)."""

_WHOLE_BYTES = STREAM_CHUNK_BYTES - (64 << 10)
"""A compressed file of up to this goes up in one request, whatever sealing adds to it."""
_KEPT_BYTES = (16 << 20) + (64 << 10)
"""A larger one is read and compressed again while it goes up; up to this it is kept. Segments of 16 MiB full of whole pages come
to about _WHOLE_BYTES, and those above it would take twice the CPU."""
_COMPRESSED_AT_ONCE = 2
"""Two cores of today compress 600 MB of WAL a second: no server writes so much."""
_SMALL_BYTES = 64 << 10
_AGE_MAGIC = b"age-encryption.org/v1\n"
_TRIES = 3


class Signer(Protocol):
    """What signs headers."""

    @property
    def raw(self) -> bytes:
        """Its public key, 32 bytes."""
        ...

    def sign(self, document: bytes) -> bytes:
        """The signature of *document*."""
        ...


class Source(Protocol):
    """A file that PostgreSQL wants archived, as `WalFile` is one."""

    @property
    def name(self) -> str:
        """What PostgreSQL calls it."""
        ...

    @property
    def size_bytes(self) -> int:
        """Its size."""
        ...

    @property
    def begins_anew(self) -> bool:
        """Whether no WAL leads to it, as far as it was read."""
        ...

    def read(self) -> Iterator[bytes]:
        """Its content, each time the same, or an error at the end at the latest."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveKeys:
    """How objects are sealed, opened and signed; each is None where nothing is.

    `opened` makes of the chunks of an object what they were before they were sealed; AccessError where the identity at hand is
    another. `trusted` are the public keys that a restore will ask for.
    """

    seal: Callable[[Iterable[bytes]], Iterator[bytes]] | None = None
    opened: Callable[[Iterable[bytes], str], Iterator[bytes]] | None = None
    signer: Signer | None = None
    trusted: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A file that was read once: what it is, its digest under a salt of ours, and it compressed where that is not too large."""

    source: Source
    place: Place
    salt: bytes
    digest: bytes
    body: tuple[bytes, ...] | None = field(repr=False)

    @property
    def is_small(self) -> bool:
        """Whether it goes up in one request."""
        return self.body is not None and sum(map(len, self.body)) <= _WHOLE_BYTES


@dataclass(frozen=True, slots=True)
class Claimed:
    """A file whose name is ours in the archive: the claim lies there and holds its plaintext.

    `found`: somebody made the claim before. `at`: when it was asked for, by the clock that counts the machine's sleep.
    """

    prepared: Prepared
    name: str
    header: Header
    claim: Claim | None
    found: bool
    at: float


class _Memory:
    """What segments are compressed from, used again for the next: new pages, zeroed by the kernel, would cost half of the gain.

    For _COMPRESSED_AT_ONCE at a time: with what zstd writes into, each takes twice AT_ONCE_BYTES.
    """

    def __init__(self) -> None:
        self._room = threading.Semaphore(_COMPRESSED_AT_ONCE)
        self._free: list[memoryview] = []

    @contextmanager
    def taken(self, size_bytes: int) -> Iterator[memoryview | None]:
        """Memory for a file of that size, holding anything; None where it is too large, or so small that new one is as good."""
        if not _SMALL_BYTES < size_bytes <= wal_objects.AT_ONCE_BYTES:
            yield None
            return
        with self._room:
            memory = self._free.pop() if self._free else memoryview(b"")
            if len(memory) < size_bytes:
                memory = memoryview(bytearray(size_bytes))
            try:
                yield memory
            finally:
                self._free.append(memory)


class WalArchive:
    """The archive of one system. Errors of the class IntegrityError are refusals: nothing may be acknowledged."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        repository_id: bytes,
        system_id: str,
        segment_bytes: int,
        writer: str,
        keys: ArchiveKeys,
    ) -> None:
        self._store, self._clock, self._keys, self._writer = store, clock, keys, writer
        self._repository_id, self._system_id, self._segment_bytes = repository_id, system_id, segment_bytes
        self._memory = _Memory()

    # -- reading claims

    def read_claim(self, name: str) -> Claim | None:
        """The claim of a file; None when there is none. IntegrityError when it cannot be understood or is another file's."""
        key = self._key(name, CLAIM)
        try:
            claim = decode(self._store.get(key), Claim, key)
        except ObjectMissingError:
            return None
        if (claim.name, claim.system_id) != (name, self._system_id):
            raise IntegrityError(f"{key} is damaged: it is the claim of {claim.name} of the system {claim.system_id}")
        return claim

    def is_stored(self, name: str) -> bool:
        """Whether an object lies at that name, sealed or not."""
        return any(self._is_there(self._key(name, suffix)) for suffix in self._suffixes())

    # -- the steps

    def prepare(self, source: Source) -> Prepared:
        """Step 1: read *source* once. It writes nothing, so any number may be prepared at a time."""
        place = place_of(source.name, self._segment_bytes)
        salt = (
            wal_objects.partial_salt(self._repository_id)
            if place.kind is ObjectKind.PARTIAL
            else os.urandom(wal_objects.SALT_BYTES)
        )
        hasher = blake3(key=salt)

        def hashed() -> Iterator[bytes]:
            for piece in source.read():
                hasher.update(piece)
                yield piece

        pieces = hashed()
        body, body_bytes = [], 0
        with self._memory.taken(source.size_bytes) as memory:
            for compressed in wal_objects.compress_body(pieces, source.size_bytes, memory):
                body.append(compressed)
                body_bytes += len(compressed)
                if body_bytes > _KEPT_BYTES:
                    for _ in pieces:
                        pass
                    return Prepared(source, place, salt, hasher.digest(), None)
        return Prepared(source, place, salt, hasher.digest(), tuple(body))

    def claim(self, prepared: Prepared, previous: bytes = NO_LINK, ancestors: Sequence[Ancestor] | None = None) -> Claimed:
        """Step 2: take the name, or find that it was taken for this very plaintext; IntegrityError for another one.

        *previous* is the link of the segment before, which a segment that begins anew does not get; *ancestors* are those of a
        history, and of nothing else.
        """
        source, name = prepared.source, prepared.source.name
        previous = NO_LINK if source.begins_anew else previous
        began = self._clock.since_boot()
        if prepared.place.kind is ObjectKind.PARTIAL:
            stored_name = wal_objects.partial_name(name, prepared.digest)
            header = self._header(prepared, prepared.salt, prepared.digest, NO_LINK)
            return Claimed(prepared, stored_name, header, None, found=True, at=began)
        for _ in range(_TRIES):
            made = Claim(
                name=name,
                system_id=self._system_id,
                plain_bytes=source.size_bytes,
                salt=prepared.salt.hex(),
                digest=prepared.digest.hex(),
                previous=previous.hex(),
                writer=self._writer,
                # A history's is read by retention, so it is the store's clock.
                claimed_at=self._clock.now() if ancestors is None else self._store.now(),
                ancestors=UNSET if ancestors is None else [(int(each.timeline), str(each.left_at)) for each in ancestors],
            )
            with suppress(ObjectExistsError):
                self._store.put(self._key(name, CLAIM), encode_compact(made), create=True)
                header = self._header(prepared, prepared.salt, prepared.digest, previous)
                return Claimed(prepared, name, header, made, found=False, at=began)
            claim = self.read_claim(name)
            if claim is not None:
                self._check_same_plaintext(source, claim)
                header = self._header(prepared, *(bytes.fromhex(text) for text in (claim.salt, claim.digest, claim.previous)))
                return Claimed(prepared, name, header, claim, found=True, at=began)
        raise StoreUnavailableError(f"{self._key(name, CLAIM)} comes and goes")

    def store(self, claimed: Claimed) -> bool:
        """Step 3: put the object, or compare what is there. Whether it was put now.

        IntegrityError when what is there is not what the claim says; it is never written over.
        """
        own, other = (self._key(claimed.name, suffix) for suffix in self._suffixes())
        if claimed.found:
            for key in (other,) if claimed.prepared.is_small else (other, own):
                if self._is_there(key):
                    return self._compare(key, claimed)
        if not claimed.prepared.is_small:
            self._store.put_stream(
                own, self._guarded(self._object(claimed, own), claimed), expected_bytes=claimed.header.plain_bytes
            )
            return True
        try:
            self._store.put(own, b"".join(self._object(claimed, own)), create=True)
        except ObjectExistsError:
            return self._compare(own, claimed)
        return True

    def is_fresh(self, claimed: Claimed) -> bool:
        """Step 4: whether it may be acknowledged still; else everything is asked again, from step 1."""
        return self._clock.since_boot() - claimed.at < CLAIM_SECONDS

    def check_place(self) -> None:
        """Step 4 too: IntegrityError when the store is no longer the repository that this archive was opened in."""
        check_same_repository(self._store, self._repository_id.hex())

    def heal(self, late: Claimed, behind: Source, claim: Claim) -> bool:
        """Link *behind*, whose *claim* was made while *late* was not there yet; the caller has proved that both are one server's.

        Whether it is linked now: not when *behind* is no longer the file that was claimed. IntegrityError when it was linked
        to something else.
        """
        salt, digest = bytes.fromhex(claim.salt), bytes.fromhex(claim.digest)
        try:
            if wal_objects.digest_of(behind.read(), salt) != digest:
                return False
        except (IntegrityError, MissingError, ChangedError):  # it was recycled: nothing is proved
            return False
        if behind.begins_anew:
            return False
        place = place_of(behind.name, self._segment_bytes)
        header = Header(
            kind=ObjectKind.LINK, timeline=place.timeline, system_id=int(self._system_id), lsn=place.lsn, plain_bytes=0,
            repository_id=self._repository_id, salt=salt, digest=digest, previous=late.header.link,
        )  # fmt: skip
        key = self._key(behind.name, LINK)
        data = b"".join(wal_objects.encode_object(self._signed(header), []))
        try:
            self._store.put(key, data, create=True)
        except ObjectExistsError:
            found, _ = wal_objects.decode_object([self._store.get(key)], key)
            if found.unsigned() != header:
                raise IntegrityError(
                    f"{key} links {behind.name} to another segment than the {late.name} of this server"
                ) from None
            if self._lacks_signature(found):
                self._store.put(key, data)
        return True

    # -- what is asked of others' objects

    def _check_same_plaintext(self, source: Source, claim: Claim) -> None:
        same = claim.plain_bytes == source.size_bytes
        if not same or wal_objects.digest_of(source.read(), bytes.fromhex(claim.salt)).hex() != claim.digest:
            raise IntegrityError(
                f"{source.name} is in the archive with other bytes, claimed by {claim.writer}",
                hints=[
                    "another server archives here, or this one was set back to an older copy: it cannot go on under these names",
                    "restore or promote the one that is wrong here: that begins a timeline with names of its own",
                ],
            )

    def _is_there(self, key: str) -> bool:
        try:
            self._store.head(key)
        except ObjectMissingError:
            return False
        return True

    def _compare(self, key: str, claimed: Claimed) -> bool:
        """Whether the object at *key* had to be put again, signed; IntegrityError when it is not what was claimed."""
        found = self._opened(key)
        if found is None:
            self._look_from_outside(key, claimed)
        elif found.unsigned() != claimed.header:
            raise IntegrityError(f"{key} does not hold what its claim says", hints=_DAMAGE_HINTS)
        if self._keys.signer is None or (found is not None and not self._lacks_signature(found)):
            return False
        # A restore would refuse it. A plain one stays plain, it has shown all there is to see; who cannot seal puts one beside.
        target = key if self._keys.seal is not None or not key.endswith(SEALED) else self._key(claimed.name, STORED)
        self._store.put_stream(target, self._guarded(self._object(claimed, target), claimed))
        return True

    def _opened(self, key: str) -> Header | None:
        """The header of a whole object; None of one that is sealed to nobody at hand. IntegrityError when it is damaged."""
        chunks: Iterator[bytes] = self._store.get_stream(key)
        if key.endswith(SEALED):
            if self._keys.opened is None:
                return None
            chunks = self._keys.opened(chunks, key)
        try:
            header, plain = wal_objects.decode_object(chunks, key)
            for _ in plain:
                pass
        except AccessError:
            return None
        except IntegrityError as error:
            raise IntegrityError(error.message, hints=_DAMAGE_HINTS) from error
        return header

    def _look_from_outside(self, key: str, claimed: Claimed) -> None:
        """All that can be seen of a sealed object: a store shows no half ones, so who put it had passed step 2."""
        begins = self._store.get(key, length=len(_AGE_MAGIC))
        least = len(_AGE_MAGIC) + len(wal_objects.encode_header(claimed.header))
        if begins != _AGE_MAGIC or self._store.head(key).size_bytes < least:
            raise IntegrityError(f"{key} is no sealed object of an archive", hints=_DAMAGE_HINTS)
        self._check_claim(claimed)

    def _check_claim(self, claimed: Claimed) -> None:
        """The claim is still there, and says what it said."""
        if claimed.claim is not None and self.read_claim(claimed.name) != claimed.claim:
            raise StoreUnavailableError(f"the claim of {claimed.name} is gone, or another one", hints=["PostgreSQL asks again"])

    # -- what is written

    def _object(self, claimed: Claimed, key: str) -> Iterator[bytes]:
        prepared, header = claimed.prepared, self._signed(claimed.header)
        body: Iterable[bytes] = prepared.body if prepared.body is not None else self._compressed_again(claimed)
        chunks = chain([wal_objects.encode_header(header)], body)
        return self._keys.seal(chunks) if self._keys.seal is not None and key.endswith(SEALED) else chunks

    def _compressed_again(self, claimed: Claimed) -> Iterator[bytes]:
        hasher = blake3(key=claimed.header.salt)

        def hashed() -> Iterator[bytes]:
            for piece in claimed.prepared.source.read():
                hasher.update(piece)
                yield piece
            if hasher.digest() != claimed.header.digest:
                raise IntegrityError(f"{claimed.name} was read twice, and its bytes differ")

        return wal_objects.compress_body(hashed(), claimed.header.plain_bytes)

    def _guarded(self, chunks: Iterable[bytes], claimed: Claimed) -> Iterator[bytes]:
        """The same chunks; before the last one, which completes the object, another look at claim and hour."""
        held = b""
        for chunk in chunks:
            if held:
                yield held
            held = chunk or held
        if not self.is_fresh(claimed):
            raise StoreUnavailableError(f"{claimed.name} took longer than an hour to store", hints=["PostgreSQL asks again"])
        self._check_claim(claimed)
        yield held

    def _header(self, prepared: Prepared, salt: bytes, digest: bytes, previous: bytes) -> Header:
        place = prepared.place
        return Header(
            kind=place.kind, timeline=place.timeline, system_id=int(self._system_id), lsn=place.lsn,
            plain_bytes=prepared.source.size_bytes, repository_id=self._repository_id,
            salt=salt, digest=digest, previous=previous,
        )  # fmt: skip

    def _signed(self, header: Header) -> Header:
        signer = self._keys.signer
        return header if signer is None else header.signed(signer.raw, signer.sign)

    def _lacks_signature(self, found: Header) -> bool:
        return self._keys.signer is not None and wal_objects.signed_by(found, self._keys.trusted) is None

    def _key(self, name: str, suffix: str) -> str:
        return archive_key(self._system_id, name, suffix)

    def _suffixes(self) -> tuple[str, str]:
        """Of objects: first the one that our settings write."""
        plain, sealed = STORED, STORED + SEALED
        return (plain, sealed) if self._keys.seal is None else (sealed, plain)


_DAMAGE_HINTS = ("nothing is written over it; with versioning on, the bucket may still hold what was there",)


def link_in(claim: Claim | None) -> bytes:
    """The link of the segment with that claim: what the next one has as `previous`."""
    return NO_LINK if claim is None else wal_objects.link_of(bytes.fromhex(claim.salt), bytes.fromhex(claim.digest))


def lacks_link(claim: Claim) -> bool:
    """Whether its segment came before the one that it should link to."""
    return bytes.fromhex(claim.previous) == NO_LINK


def ancestors_in(claim: Claim) -> list[Ancestor]:
    """The ancestors that a history's claim names; IntegrityError when it names none."""
    if isinstance(claim.ancestors, UnsetType) or not claim.ancestors:
        raise IntegrityError(f"the claim of {claim.name} is damaged: it names no ancestors")
    return [Ancestor(Timeline(timeline), Lsn.parse(left_at)) for timeline, left_at in claim.ancestors]
