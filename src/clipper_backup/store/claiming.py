"""The wrapper that creates objects on servers without conditional create: claim, list, then put.

Who wants to create a key first puts a claim (an object of its own in a folder of the key's), then lists the claims. Only
who sees no other claim, and after that no object, puts the object, and takes its claim away last. Of two at once each
would have to list before the other's claim was put, and put its own before that: never both. Who sees an earlier name
among the claims gives way.

It holds as long as a listing shows what was put before it, and nobody sleeps for CLAIM_SECONDS between its last look and
its write: a claim of that age, by the store's clock, counts as left behind. docs/design/store.md says what that means.
"""

import random
from collections.abc import Iterator
from datetime import timedelta
from hashlib import blake2b

from clipper_backup.clock import Clock
from clipper_backup.errors import ObjectExistsError, ObjectMissingError
from clipper_backup.store.protocol import ObjectInfo, Store
from clipper_backup.store.wrapper import WrapperStore

CLAIMS = "creating/"
"""The folder of all claims. No caller may use it; no listing shows it."""

CLAIM_SECONDS = 60
_RENEW_SECONDS = CLAIM_SECONDS / 4
_PAUSE_SECONDS = 0.2


class ClaimingStore(WrapperStore):
    """Every other call is the inner store's."""

    def __init__(self, inner: Store, clock: Clock, rng: random.Random) -> None:
        super().__init__(inner)
        self._clock = clock
        self._rng = rng

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        """See `Store.put`. Repeated with the same bytes, it goes on with the claim it has."""
        if create:
            _Claim(self._inner, self._clock, self._rng, key, data).create()
        else:
            self._inner.put(key, data)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Store.list`."""
        return (info for info in self._inner.list(prefix) if not info.key.startswith(CLAIMS))


class _Claim:
    """One attempt to create *key*."""

    def __init__(self, store: Store, clock: Clock, rng: random.Random, key: str, data: bytes) -> None:
        self._store, self._clock, self._rng = store, clock, rng
        self._key, self._data = key, data
        self._folder = f"{CLAIMS}{blake2b(key.encode(), digest_size=16).hexdigest()}/"
        self._mine = self._folder + blake2b(data, digest_size=16).hexdigest()
        self._placed_at: float | None = None

    def create(self) -> None:
        """ObjectExistsError when somebody else was first."""
        while True:
            self._refuse_if_taken()
            rivals = self._rivals()
            if self._placed_at is None:
                if rivals:
                    self._pause()
                else:
                    self._place()
            elif rivals:
                if min(rivals) < self._mine:
                    self._withdraw()
                self._pause()
            elif self._clock.monotonic() - self._placed_at > _RENEW_SECONDS:
                self._place()
            else:
                # The one before us may have taken its claim away between our look for the object and that for claims.
                self._refuse_if_taken()
                self._store.put(self._key, self._data)
                self._withdraw()
                return

    def _refuse_if_taken(self) -> None:
        try:
            self._store.head(self._key)
        except ObjectMissingError:
            return
        # Also a claim of an earlier attempt with the same bytes, whose answer got lost.
        self._store.delete([self._mine])
        raise ObjectExistsError(f"there is an object {self._store.url}/{self._key} already")

    def _rivals(self) -> list[str]:
        others = [info for info in self._store.list(self._folder) if info.key != self._mine]
        if not others:
            return []
        oldest = self._store.now() - timedelta(seconds=CLAIM_SECONDS)
        if left_behind := [info.key for info in others if info.modified_at < oldest]:
            self._store.delete(left_behind)
        return [info.key for info in others if info.modified_at >= oldest]

    def _place(self) -> None:
        began = self._clock.monotonic()
        self._store.put(self._mine, b"claimed\n")
        self._placed_at = began

    def _withdraw(self) -> None:
        if self._placed_at is not None:
            self._placed_at = None
            self._store.delete([self._mine])

    def _pause(self) -> None:
        self._clock.sleep(self._rng.uniform(_PAUSE_SECONDS / 4, _PAUSE_SECONDS))
