"""`base/<id>/intent.json`: the sign that a run lives, and the rule by which it ends itself when a prune may have buried it.

Who slept through half of the grace must not commit: a prune may have taken the rest of it for a dead run's (B1, G3).
"""

import threading
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Self

from clipper_backup.clock import Clock
from clipper_backup.errors import ClipperError, IntegrityError, ObjectMissingError
from clipper_backup.format import physical_names as names
from clipper_backup.format.base_documents import BaseIntent
from clipper_backup.format.documents import encode
from clipper_backup.store.protocol import Store
from clipper_backup.values import BackupId, show_seconds

GRACE = timedelta(hours=24)
"""A constant of the format: how long lies between dooming and deleting, and the age at which an intent is dead."""
RENEW_SECONDS = 3600.0
_DEAD_SECONDS = GRACE.total_seconds() / 2


class LiveIntent:
    """An intent that this process wrote, renewed by a thread of its own until the context is left."""

    def __init__(self, store: Store, clock: Clock, intent: BaseIntent) -> None:
        """Write it; ObjectExistsError when the id is taken."""
        self.backup_id = BackupId.parse(intent.id)
        self._store, self._clock = store, clock
        self._key = names.base_key(self.backup_id, names.BASE_INTENT)
        self._document = encode(intent)
        self._dead: IntegrityError | None = None
        self._stop = threading.Event()
        store.put(self._key, self._document, create=True)
        self._thread = threading.Thread(target=self._renew_until_stopped, name=f"intent-{intent.id}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """Ask the store that it is there and young; IntegrityError when this run must end."""
        if self._dead is not None:
            raise self._dead
        try:
            info = self._store.head(self._key)
        except ObjectMissingError:
            raise self._end(f"{self._key} is gone: a prune took this run for dead") from None
        silent_seconds = (self._store.now() - info.modified_at).total_seconds()
        if silent_seconds > _DEAD_SECONDS:
            raise self._end(f"{self._key} was not renewed for {show_seconds(silent_seconds)}: a prune may take this run for dead")

    def renew(self) -> None:
        """Look, then write the same bytes again."""
        looked = self._clock.since_boot()
        self.check()
        self._store.put(self._key, self._document)
        took_seconds = self._clock.since_boot() - looked
        if took_seconds > _DEAD_SECONDS:
            raise self._end(f"renewing {self._key} took {show_seconds(took_seconds)}: a prune may have taken this run for dead")

    def withdraw(self) -> None:
        """Remove it, so that the next prune need not wait; as far as the store lets us. Nothing may be committed after."""
        self._stop.set()
        self._thread.join()
        with suppress(ClipperError):
            self._store.delete([self._key])

    def _renew_until_stopped(self) -> None:
        while not self._clock.wait(self._stop, RENEW_SECONDS) and self._dead is None:
            # One that fails for another reason than death is tried again; `check` counts since the last that succeeded.
            with suppress(ClipperError):
                self.renew()

    def _end(self, why: str) -> IntegrityError:
        self._dead = IntegrityError(why, hints=["nothing was committed; the next base backup begins anew"])
        return self._dead
