"""The wrapper that creates objects on servers without conditional create: claim, list, then put.

Who wants to create a key puts a claim (an object of its own in a folder of the key's), then lists the claims. Only who
sees no other claim, and after that no object, puts the object, and takes its claim away last. Who sees another claim
withdraws its own, and starts again a little later with a new one.

It holds as long as a listing shows what was put before it, and nobody sleeps for half of CLAIM_SECONDS between its last
look and its write: a claim of CLAIM_SECONDS, by the store's clock, counts as left behind. docs/design/store.md says why.
"""

import random
from collections.abc import Iterator, Sequence
from datetime import timedelta
from hashlib import blake2b

from clipper_backup.clock import Clock
from clipper_backup.errors import ObjectExistsError, ObjectMissingError
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.store.wrapper import WrapperStore

CLAIMS = "creating/"
"""The folder of all claims. No caller may use it; no listing shows it."""

CLAIM_SECONDS = 60
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 3.2


class ClaimingStore(WrapperStore):
    """Every other call is the inner store's."""

    def __init__(self, inner: Store, clock: Clock, rng: random.Random) -> None:
        super().__init__(inner)
        self._clock = clock
        self._rng = rng
        self._unanswered: dict[tuple[str, bytes], _Claim] = {}

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        """See `Store.put`. Repeated with the same bytes, it is not kept waiting by the claim of the attempt that failed."""
        if not create:
            self._inner.put(key, data)
            return
        claim = self._unanswered.pop((key, data), None) or _Claim(self._inner, self._clock, self._rng, key, data)
        try:
            claim.create()
        except ObjectExistsError:
            raise
        except BaseException:
            self._unanswered[key, data] = claim
            raise

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Store.list`."""
        return (info for info in self._inner.list(prefix) if not info.key.startswith(CLAIMS))

    def folders(self, prefix: str) -> Sequence[str]:
        """See `Store.folders`."""
        return [name for name in self._inner.folders(prefix) if prefix or f"{name}/" != CLAIMS]


class _Claim:
    """The attempts of one creator at *key*."""

    def __init__(self, store: Store, clock: Clock, rng: random.Random, key: str, data: bytes) -> None:
        self._store, self._clock, self._rng = store, clock, rng
        self._key, self._data = key, data
        self._folder = f"{CLAIMS}{blake2b(key.encode(), digest_size=16).hexdigest()}/"
        self._mine: list[str] = []
        self._longest_pause_seconds = _FIRST_PAUSE_SECONDS

    def create(self) -> None:
        """ObjectExistsError when somebody else was first."""
        while True:
            self._refuse_if_taken()
            if self._is_alone() and self._wins():
                self._withdraw()
                return
            self._withdraw()
            self._pause()

    def _wins(self) -> bool:
        """Put the object, or find out that somebody else may."""
        began = self._clock.monotonic()
        # Never under a name that was there before: who judged that one left behind may remove it only now.
        self._mine.append(f"{self._folder}{self._rng.getrandbits(128):032x}")
        self._store.put(self._mine[-1], b"claimed\n")
        if not self._is_alone():
            return False
        # The one before us may have taken its claim away between our look for the object and that for claims.
        self._refuse_if_taken()
        if self._clock.monotonic() - began > CLAIM_SECONDS / 2:
            return False
        self._store.put(self._key, self._data)
        return True

    def _refuse_if_taken(self) -> None:
        try:
            self._store.head(self._key)
        except ObjectMissingError:
            return
        self._withdraw()
        raise ObjectExistsError(f"there is an object {self._store.url}/{self._key} already")

    def _is_alone(self) -> bool:
        others = [info for info in self._store.list(self._folder) if info.key not in self._mine]
        if not others:
            return True
        oldest = self._store.now() - timedelta(seconds=CLAIM_SECONDS)
        if left_behind := [info.key for info in others if info.modified_at < oldest]:
            self._store.delete(left_behind)
        return len(left_behind) == len(others)

    def _withdraw(self) -> None:
        if self._mine:
            self._store.delete(self._mine)
            self._mine.clear()

    def _pause(self) -> None:
        self._clock.sleep(self._rng.uniform(0, self._longest_pause_seconds))
        self._longest_pause_seconds = min(2 * self._longest_pause_seconds, _LONGEST_PAUSE_SECONDS)
