"""Data keys: one for each run that seals, made in memory, kept only sealed (docs/design/repository-format.md, K1, P2).

A key is used by the process that made it and never again for sealing: the counter of its frame numbers dies with it.
"""

import os
import secrets
import threading
from collections.abc import Iterable, Iterator
from typing import Protocol

from clipper_backup.errors import AccessError, IntegrityError, ObjectMissingError, StoreError
from clipper_backup.format.base_documents import DataKey
from clipper_backup.format.documents import decode, encode
from clipper_backup.format.frames import KEY_BYTES, Bytes, FrameCipher, FrameKind
from clipper_backup.format.physical_names import data_key_key
from clipper_backup.repository.dumps import Opener, other_bytes
from clipper_backup.store.protocol import Store
from clipper_backup.values import BackupId


class Sealer(Protocol):
    """What seals to the configured recipients and to an identity of this run's own, which reads it back."""

    def seal(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """One age file."""
        ...

    def unseal(self, chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
        """What was sealed in this run."""
        ...


class RunFrames:
    """The frames of one run: gives each its number, and seals it where the run seals. Safe for many threads."""

    def __init__(self, run: BackupId, repository_id: bytes, cipher: FrameCipher | None) -> None:
        self.run, self.repository_id = run, repository_id
        self._cipher = cipher
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._next = 0

    @property
    def sealed(self) -> bool:
        """Whether this run seals."""
        return self._cipher is not None

    def make(self, packed: Bytes, kind: FrameKind) -> tuple[bytes, int]:
        """What is stored of a compressed frame, and its number: a new one at each call, also for the same bytes (P2).

        RuntimeError in a process that was forked off: its numbers would be those of this one.
        """
        if os.getpid() != self._process:
            raise RuntimeError("the frames of a run are made by the process that began it")
        with self._lock:
            number = self._next
            self._next += 1
        return bytes(packed) if self._cipher is None else self._cipher.seal(packed, kind, number), number


def begin_frames(store: Store, repository_id: str, run: BackupId, sealer: Sealer | None) -> RunFrames:
    """The frames of a new *run*; with a *sealer* after its key lies in the store, was read back and opened (K1).

    ObjectExistsError when the run is not new, StoreError when the store gives back anything else than it was given.
    """
    identity = bytes.fromhex(repository_id)
    if sealer is None:
        return RunFrames(run, identity, None)
    key = secrets.token_bytes(KEY_BYTES)
    name = data_key_key(run)
    document = encode(DataKey(repository_id=repository_id, run=str(run), key=key.hex()))
    stored = b"".join(sealer.seal([document]))
    store.put(name, stored, create=True)
    if store.get(name) != stored:
        raise other_bytes(name)
    if b"".join(sealer.unseal([stored], name)) != document:
        raise StoreError(f"{name}: what was sealed opens to something else")
    return RunFrames(run, identity, FrameCipher(key, identity, run))


class DataKeys:
    """The data keys of a repository's runs, each opened when it is first asked for. Safe for many threads."""

    def __init__(self, store: Store, repository_id: str, opened: Opener) -> None:
        """*opened* makes of a sealed object's chunks what they were before, with the identities at hand."""
        self._store, self._repository_id, self._opened = store, repository_id, opened
        self._lock = threading.Lock()
        self._ciphers: dict[BackupId, FrameCipher | AccessError] = {}

    def cipher(self, run: BackupId) -> FrameCipher:
        """What opens the frames of a run. AccessError when no identity fits, IntegrityError when the key is lost or another."""
        with self._lock:
            if run not in self._ciphers:
                try:
                    self._ciphers[run] = self._open(run)
                except AccessError as error:  # nor will it open the next time
                    self._ciphers[run] = error
            found = self._ciphers[run]
        if isinstance(found, AccessError):
            raise found
        return found

    def _open(self, run: BackupId) -> FrameCipher:
        name = data_key_key(run)
        try:
            stored = self._store.get(name)
        except ObjectMissingError as error:
            raise IntegrityError(f"{name} is missing from the store: nobody can open what its run sealed") from error
        key = decode(b"".join(self._opened([stored], name)), DataKey, name)
        if (key.repository_id, key.run) != (self._repository_id, str(run)):
            raise IntegrityError(f"{name} holds the key of the run {key.run} of the repository {key.repository_id}")
        return FrameCipher(bytes.fromhex(key.key), bytes.fromhex(self._repository_id), run)
