"""`wal verify`: every claim and link of the archive compared, and the header of every file that a key at hand opens.

With *read_data* every file is read to its end, opened and compared.
"""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from clipper_backup.errors import AccessError, IntegrityError, ObjectMissingError, StoreError
from clipper_backup.format import physical_names as keys
from clipper_backup.format.base_documents import Claim, SystemEntry
from clipper_backup.format.documents import NewerError, decode
from clipper_backup.format.names import SEALED, is_sealed
from clipper_backup.format.sealing import HEAD_BYTES, unseal_head
from clipper_backup.format.time_maps import decode_map, parse_map_key
from clipper_backup.format.wal_objects import (
    HEADER_BYTES_MAX,
    HEADER_BYTES_MIN,
    Header,
    ObjectKind,
    check_header,
    decode_object,
    place_of,
    signed_by,
)
from clipper_backup.ops.keys import IDENTITY_HINTS, opener_of, read_identities
from clipper_backup.ops.wal.look import Looker, SystemSeen, WalSeen
from clipper_backup.ops.work import Step, Work, step
from clipper_backup.postgres.history import parse_history
from clipper_backup.repository.wal_archive import ancestors_in
from clipper_backup.repository.wal_reader import UnopenedError
from clipper_backup.store.protocol import ObjectInfo
from clipper_backup.values import show_bytes, show_count
from clipper_backup.wal_names import Kind, classify

_FILES_AT_ONCE = 4
_STORED = (keys.STORED, keys.STORED + SEALED)
_PARTIAL = ".partial-"


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found. `stored_bytes` of `files` are there, and were `read` or only looked at.

    `damage` says of each file that is not what it must be what is wrong with it, `newer` of each that a newer version wrote that.
    `unopened` are the files that ENCRYPTION_IDENTITY_FILE does not open, in order; `unopened_histories` are apart: they are
    kept for ever, and a restore from a base backup of their timeline or a later one does without them.
    """

    seen: WalSeen
    files: int
    stored_bytes: int
    read: bool
    damage: Sequence[str]
    newer: Sequence[str] = ()
    unopened: Sequence[str] = ()
    unopened_histories: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the archive, as a listing shows it."""

    entry: SystemEntry
    name: str
    objects: Mapping[str, ObjectInfo]

    @property
    def stored(self) -> list[ObjectInfo]:
        """Its object; two where it lies there plain and sealed."""
        return [info for suffix, info in self.objects.items() if suffix in _STORED]


@dataclass(frozen=True, slots=True)
class FileSeen:
    """What a look at a file of the archive found. `read` are the objects that were read to their end and compared.

    `damaged` is the key of the object of which `damage` speaks, None where that is the claim, or all of them.
    `closed`: no key at hand opens it, so that it was not read. `newer`: a newer version wrote it.
    """

    system_id: str
    name: str
    stored: Sequence[ObjectInfo]
    damage: str | None = None
    damaged: str | None = None
    read: Sequence[ObjectInfo] = ()
    closed: AccessError | None = None
    newer: NewerError | None = None


Chooser = Callable[[Sequence[ObjectInfo]], Collection[str]]
"""The keys of those of a folder's objects that are to be read to their end."""


def verify_wal(work: Work, *, read_data: bool) -> Verified:
    """Verify the whole archive; damage is no error here. AccessError when a sealed file is to be read without an identity."""
    looker, seen = look_at_links(work)
    files = stored_bytes = 0
    damage: list[str] = []
    newer: list[str] = []
    unopened: dict[bool, list[str]] = {True: [], False: []}
    with step(work, "files", "read every file" if read_data else "look at every file") as running:
        for file in look_at_files(work, looker, seen, _all_of if read_data else _none_of, running):
            if file.closed is not None:
                if work.settings.encryption_identity_file is None:
                    raise file.closed
                unopened[classify(file.name) is Kind.HISTORY].append(file.name)
            damage += [] if file.damage is None else [file.damage]
            newer += [] if file.newer is None else [file.newer.message]
            files += bool(file.stored)
            stored_bytes += sum(info.size_bytes for info in file.stored)
        damage += maps_not_used(work, seen)
        running.done = f"{show_count(files, 'file')}, {show_bytes(stored_bytes)}" + (", all read" if read_data else "")
    return Verified(seen, files, stored_bytes, read_data, damage, sorted(newer), sorted(unopened[False]), sorted(unopened[True]))


def _all_of(objects: Sequence[ObjectInfo]) -> Collection[str]:
    return {info.key for info in objects}


def _none_of(_: Sequence[ObjectInfo]) -> Collection[str]:
    return ()


def look_at_links(work: Work) -> tuple[Looker, WalSeen]:
    """Compare every claim and link."""
    looker = Looker(work, whole=True)
    with step(work, "links", "compare claims and links") as running:
        seen = looker.look()
        running.done = f"{show_count(len(seen.gaps), 'gap')} in the window"
    return looker, seen


def look_at_files(work: Work, looker: Looker, seen: WalSeen, choose: Chooser, running: Step) -> Iterator[FileSeen]:
    """Look at the claim and header of every file, and read those to their end that *choose* names."""
    with ThreadPoolExecutor(_FILES_AT_ONCE, thread_name_prefix="files") as pool:
        verifier = _Verifier(work, looker.repository_id, running)
        for listed in (listed for system in seen.systems for listed in _folders(work, system)):
            chosen = choose([info for file in listed for info in file.stored])
            yield from pool.map(partial(verifier.look_at, chosen=chosen), listed)


def maps_not_used(work: Work, seen: WalSeen) -> list[str]:
    """What is wrong with time maps: no restore needs one."""
    return [problem for system in seen.systems for problem in _maps_not_used(work, system)]


def _folders(work: Work, system: SystemSeen) -> Iterator[list[_File]]:
    """Every file of a system's archive, folder by folder: no other command lists a whole timeline."""
    system_id = system.entry.system_id
    below = [keys.timeline_folder(system_id, each.timeline) for each in system.timelines]
    folders = (f"{timeline}{name}/" for timeline in below for name in work.store.folders(timeline))
    for folder in (keys.histories_folder(system_id), *folders):
        found: dict[str, dict[str, ObjectInfo]] = {}
        for info in work.store.list(folder):
            if (key := keys.parse_archive_key(info.key)) is not None:
                found.setdefault(key.name, {})[key.suffix] = info
        yield [_File(system.entry, name, objects) for name, objects in found.items()]


def _maps_not_used(work: Work, system: SystemSeen) -> Iterator[str]:
    """Of the time maps those that nobody can use: no restore needs one, and what they told is read from segments."""
    system_id, size = system.entry.system_id, system.entry.segment_bytes
    for timeline in system.timelines:
        for info in work.store.list(keys.times_folder(system_id, timeline.timeline)):
            if (name := parse_map_key(info.key, size)) is not None:
                try:
                    decode_map(work.store.get(info.key), name, system_id)
                except ObjectMissingError:  # a longer one took its place
                    continue
                except IntegrityError as error:
                    yield f"{error.message}: a time map, which may be removed"


class _Verifier:
    def __init__(self, work: Work, repository_id: bytes, running: Step) -> None:
        self._work, self._repository_id, self._running = work, repository_id, running
        self._opener = opener_of(work.settings, work.settings.encryption_recipients)
        identity_file = work.settings.encryption_identity_file
        self._identities = [] if identity_file is None else read_identities(identity_file)
        self._passed, self._lock = 0, threading.Lock()

    def look_at(self, file: _File, chosen: Collection[str]) -> FileSeen:
        """What there is to say of a file; its objects of which the keys are *chosen* are read."""
        seen = FileSeen(file.entry.system_id, file.name, file.stored)
        if keys.CLAIM not in file.objects and file.stored and _PARTIAL not in file.name:
            return replace(seen, damage=f"{file.name} has no claim: nobody can say that it is what was archived")
        read: list[ObjectInfo] = []
        closed: AccessError | None = None
        at: str | None = None
        try:
            claim = self._claim(file)
            for info in file.stored:
                at = info.key
                if info.key not in chosen or (is_sealed(info.key) and not self._identities):
                    self._look(file, info, claim)
                    if info.key in chosen:
                        closed = AccessError(f"{info.key} is sealed, and there is no identity to open it", hints=IDENTITY_HINTS)
                    continue
                read.append(info)  # damaged or not
                try:
                    self._read(file, info.key, claim)
                except UnopenedError as error:
                    closed = error
                    read.pop()
                    continue
                with self._lock:  # files are read side by side
                    self._passed += info.size_bytes
                    self._running.progress(self._passed, None)
        except ObjectMissingError:  # pruned meanwhile
            return replace(seen, stored=())
        except NewerError as error:
            return replace(seen, newer=error)
        except (IntegrityError, StoreError) as error:
            if error.temporary:
                raise
            return replace(seen, damage=error.message, damaged=at, read=read)
        return replace(seen, read=read, closed=closed)

    def _claim(self, file: _File) -> Claim | None:
        if keys.CLAIM not in file.objects:
            return None
        key = file.objects[keys.CLAIM].key
        claim = decode(self._work.store.get(key), Claim, key)
        if (claim.name, claim.system_id) != (file.name, file.entry.system_id):
            raise IntegrityError(f"{key} is damaged: it is the claim of {claim.name} of system {claim.system_id}")
        if classify(file.name) is Kind.HISTORY:
            ancestors_in(claim)
        return claim

    def _look(self, file: _File, info: ObjectInfo, claim: Claim | None) -> None:
        """Compare an object's header with its place and its claim; of a sealed one without an identity at hand only its size."""
        if info.size_bytes < HEADER_BYTES_MIN:
            raise IntegrityError(f"{info.key} has {info.size_bytes} bytes: it holds nothing")
        if is_sealed(info.key):
            data = self._work.store.get(info.key, length=HEAD_BYTES)
            try:
                head = unseal_head(data, self._identities, info.key)
            except AccessError:  # sealed to others
                return
        else:
            head = self._work.store.get(info.key, length=HEADER_BYTES_MAX)
        header, _ = decode_object([head], info.key)
        self._compare(file, info.key, header, claim)

    def _read(self, file: _File, key: str, claim: Claim | None) -> None:
        """Read an object to its end, and compare it with its place and its claim."""
        source = iter(self._work.store.get_stream(key))
        first = next(source, b"")  # what the store refuses is no question of keys
        try:
            header, plain = decode_object(self._opener(chain([first], source), key), key)
        except AccessError as error:
            raise UnopenedError(error.message, hints=error.hints) from error
        history = header.kind is ObjectKind.HISTORY
        content = b"".join(chunk for chunk in plain if history)
        self._compare(file, key, header, claim)
        if history and claim is not None and parse_history(content, file.name) != ancestors_in(claim):
            raise IntegrityError(f"{key} names other ancestors than its claim")

    def _compare(self, file: _File, key: str, header: Header, claim: Claim | None) -> None:
        place = place_of(file.name.partition("-")[0], file.entry.segment_bytes)
        system_id = int(file.entry.system_id)
        check_header(header, place, system_id=system_id, repository_id=self._repository_id, name=key)
        if self._work.trusted and signed_by(header, self._work.trusted) is None:
            raise IntegrityError(f"{key} is not signed by any of SIGNATURE_KEYS: a restore takes it with --unsigned alone")
        if claim is None:
            named = file.name.partition(_PARTIAL)[2]
            if not header.digest.hex().startswith(named):
                raise IntegrityError(f"{key} does not hold what its name says")
            return
        if (header.salt.hex(), header.digest.hex(), header.previous.hex()) != (claim.salt, claim.digest, claim.previous):
            raise IntegrityError(f"{key} does not hold what its claim says")
