"""Leases: one holder at a time, told apart by epochs, judged by the store's clock (docs/design/dumps.md)."""

import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Self

from clipper_backup.clock import Clock
from clipper_backup.errors import ClipperError, LeaseLostError, LockedError, ObjectExistsError, ObjectMissingError
from clipper_backup.format import names
from clipper_backup.format.documents import LeaseHolder, decode, encode
from clipper_backup.store.protocol import Store
from clipper_backup.values import show_seconds

_KEY = re.compile(r"(\d{10})/(holder|released|renewal-\d+)")

RENEWALS_PER_LEASE = 3
MAX_LEASE_SECONDS = 3600
"""The most that LEASE_SECONDS may be, and that a holder's record is believed: a forged one blocks nobody for longer."""
_POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class _Epoch:
    number: int
    taken_at: datetime
    last_sign_at: datetime
    released: bool


@dataclass(frozen=True, slots=True)
class Held:
    """A lease that nobody has released: who took it, for what, and its signs of life, by the store's clock.

    Who it was is empty where it cannot be read, and the LEASE_SECONDS that they renew by is 0.
    """

    holder: str
    purpose: str
    taken_at: datetime
    last_sign_at: datetime
    lease_seconds: float

    @property
    def who(self) -> str:
        """The holder, for messages."""
        return f"{self.holder} ({self.purpose})" if self.holder else "somebody"

    def stale_after(self, lease_seconds: float) -> float:
        """Seconds of silence after which one whose own LEASE_SECONDS is *lease_seconds* may take it: the larger of the two."""
        return max(self.lease_seconds, lease_seconds)


def _folder(name: str) -> str:
    return f"{names.LOCKS_FOLDER}{name}/"


def _key(name: str, epoch: int, part: str) -> str:
    return f"{_folder(name)}{epoch:010d}/{part}"


def _highest(store: Store, name: str) -> _Epoch | None:
    epochs: dict[int, _Epoch] = {}
    for info in store.list(_folder(name)):
        match = _KEY.fullmatch(info.key.removeprefix(_folder(name)))
        if match is None:
            continue
        number = int(match[1])
        before = epochs.get(number) or _Epoch(number, info.modified_at, info.modified_at, released=False)
        epochs[number] = _Epoch(
            number,
            min(info.modified_at, before.taken_at),
            max(info.modified_at, before.last_sign_at),
            released=match[2] == "released" or before.released,
        )
    return epochs[max(epochs)] if epochs else None


class Lease:
    """A held lease; renewed by a thread of its own until released. Leaving the context releases it."""

    def __init__(self, store: Store, clock: Clock, name: str, epoch: int, holder: bytes, lease_seconds: float) -> None:
        self._store, self._clock, self._name, self._epoch, self._seconds = store, clock, name, epoch, lease_seconds
        self._holder = holder
        self._renewed_at = clock.monotonic()
        self._lost: str | None = None
        self._idle = threading.Event()
        self._idle.set()
        self._stop = threading.Event()
        self._released = False
        self._renewals = 0
        self._thread = threading.Thread(target=self._renew_until_released, name=f"lease-{name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.release()
        finally:
            self.release()  # a signal that came meanwhile must not leave the next one waiting until it is stale

    def check(self) -> None:
        """Ask the store that it is still ours; LeaseLostError otherwise. Call it before every commit.

        Always ends with a look that began after the renewal it counts on.
        """
        renewed_at = self._renewed_at
        if self._lost is None:
            self._look()
        if self._lost is None and self._is_overdue(renewed_at):
            # The store answers again: a renewal that waits for it is about to succeed, or to learn who took the lease.
            self._clock.wait(self._idle, self._seconds)
            if self._is_overdue(self._renewed_at):
                self._renew()  # a single renewal without an answer took all the time there was; nobody took the lease for that
            renewed_at = self._renewed_at
            if self._lost is None:
                self._look()
        if self._lost is None and self._is_overdue(renewed_at):
            self._lost = f"it could not be renewed for {show_seconds(self._seconds)}"
        if self._lost is not None:
            raise LeaseLostError(
                f"the lease {self._name} was lost: {self._lost}",
                hints=["nothing was committed; look for another job that runs at the same time, then run this one again"],
            )

    def release(self) -> None:
        """Stop renewing and free it at once. A store that does not answer now leaves it to go stale."""
        if self._released:
            return
        try:
            self._release()
        except KeyboardInterrupt:  # told to stop amid it, which happens once
            self._release()
            raise

    def _release(self) -> None:
        self._stop.set()
        self._thread.join()
        self._released = True
        if self._lost is not None:
            return  # of an epoch that has another holder the renewals are that one's too
        _free(self._store, self._name, self._epoch)
        with suppress(ClipperError):
            own = [_key(self._name, self._epoch, f"renewal-{n}") for n in range(1, self._renewals + 1)]
            self._store.delete(own)

    def _renew_until_released(self) -> None:
        while not self._clock.wait(self._stop, self._seconds / RENEWALS_PER_LEASE):
            if self._lost is not None:
                return
            self._idle.clear()
            self._renew()
            self._idle.set()

    def _renew(self) -> None:
        # One that fails is tried again at the next third; `check` counts how long none succeeded. Two at once, of the thread and
        # of `check`, are as good as one: they may even have one number.
        with suppress(ClipperError):
            self._look()
            if self._lost is None:
                self._renewals += 1
                began = self._clock.monotonic()  # the answer may take long; the store counts from when it was written
                self._store.put(_key(self._name, self._epoch, f"renewal-{self._renewals}"), b"renewed\n")
                self._renewed_at = max(began, self._renewed_at)

    def _is_overdue(self, renewed_at: float) -> bool:
        return self._clock.monotonic() - renewed_at > self._seconds

    def _look(self) -> None:
        highest = _highest(self._store, self._name)
        if highest is None or highest.number > self._epoch:
            self._lost = "somebody else took it after it went stale"
        elif not _holds(self._store, self._name, self._epoch, self._holder):
            self._lost = "somebody else took the same epoch: the store did not create exclusively"


def acquire_lease(
    store: Store,
    clock: Clock,
    name: str,
    *,
    lease_seconds: float,
    wait_seconds: float,
    holder: str,
    run_id: str,
    purpose: str,
    waiting: Callable[[str], None] = lambda _: None,
) -> Lease:
    """Take the lease *name*, waiting for its present holder for at most *wait_seconds*; *waiting* hears for whom, once.

    A holder whose own *lease_seconds* are more keeps it for so long. LockedError names the holder, the age of its last sign of
    life and when it frees itself.
    """
    deadline = clock.monotonic() + wait_seconds
    mine = encode(LeaseHolder(run_id=run_id, holder=holder, purpose=purpose, lease_seconds=lease_seconds))
    pause, told = threading.Event(), False
    while True:
        current = _highest(store, name)
        if current is None or current.released or _is_stale(store, name, current, lease_seconds):
            epoch = current.number + 1 if current else 1
            began = clock.monotonic()
            try:
                store.put(_key(name, epoch, "holder"), mine, create=True)
            except ObjectExistsError:
                continue
            # Since our listing somebody may have taken this very epoch, ended, and been swept away by the next holder.
            try:
                if (highest := _highest(store, name)) is None or highest.number != epoch:
                    continue
                if not _holds(store, name, epoch, mine):
                    continue
                _sweep(store, name, epoch)
            except BaseException:
                _free(store, name, epoch)
                raise
            lease = Lease(store, clock, name, epoch, mine, lease_seconds)
            lease._renewed_at = began  # noqa: SLF001  the put may have taken long; the lease runs from before it
            return lease
        if clock.monotonic() >= deadline:
            raise _locked(store, name, current, lease_seconds)
        if not told:
            told = True
            error = _locked(store, name, current, lease_seconds)
            waiting("; ".join([error.message, *error.hints]))
        clock.wait(pause, min(_POLL_SECONDS, max(0.05, deadline - clock.monotonic())))


def _is_stale(store: Store, name: str, seen: _Epoch, lease_seconds: float) -> bool:
    silent_seconds = _silent_seconds(store, seen)
    if silent_seconds <= lease_seconds:
        return False
    by = _read_holder(store, name, seen)  # it may renew by more seconds than ours
    if by is not None and silent_seconds <= _believed_seconds(by):
        return False
    # The answers may have taken long: whoever gave a sign of life meanwhile keeps it.
    return _highest(store, name) == seen


def _holds(store: Store, name: str, epoch: int, holder: bytes) -> bool:
    # A store whose create is not exclusive after all lets two take one epoch: then the bytes that stayed decide. Who is told of
    # other bytes looks again: of what was only misread nobody else would ever let go.
    try:
        return any(store.get(_key(name, epoch, "holder")) == holder for _ in range(2))
    except ObjectMissingError:
        return False


def held_lease(store: Store, name: str) -> Held | None:
    """Who holds the lease *name* or has left it without releasing it; None when it is free. Only reads."""
    epoch = _highest(store, name)
    return None if epoch is None or epoch.released else _held(store, name, epoch)


def _held(store: Store, name: str, epoch: _Epoch) -> Held:
    by = None
    with suppress(ClipperError):  # whoever it is holds it all the same
        by = _read_holder(store, name, epoch)
    if by is None:
        return Held("", "", epoch.taken_at, epoch.last_sign_at, 0)
    return Held(by.holder, by.purpose, epoch.taken_at, epoch.last_sign_at, _believed_seconds(by))


def _believed_seconds(by: LeaseHolder) -> float:
    return min(by.lease_seconds or 0, MAX_LEASE_SECONDS)


def _read_holder(store: Store, name: str, epoch: _Epoch) -> LeaseHolder | None:
    # None of a record that is gone or makes no sense: that will not get better. A store that does not answer raises.
    try:
        data = store.get(_key(name, epoch.number, "holder"))
    except ObjectMissingError:
        return None
    with suppress(ClipperError):
        return decode(data, LeaseHolder, name)
    return None


def _free(store: Store, name: str, epoch: int) -> None:
    with suppress(ClipperError):
        store.put(_key(name, epoch, "released"), b"released\n")


def _silent_seconds(store: Store, epoch: _Epoch) -> float:
    return (store.now() - epoch.last_sign_at).total_seconds()


def _locked(store: Store, name: str, epoch: _Epoch, lease_seconds: float) -> LockedError:
    held = _held(store, name, epoch)
    age = _silent_seconds(store, epoch)
    return LockedError(
        f"the lease {name} is held by {held.who}, last seen {show_seconds(max(0.0, age))} ago",
        hints=[
            "wait for it to end; if it is dead, the lease frees itself in "
            + show_seconds(max(0.0, held.stale_after(lease_seconds) - age))
        ],
    )


def _sweep(store: Store, name: str, epoch: int) -> None:
    # Older epochs are of no use to anybody. A writer that may not delete leaves them.
    with suppress(ClipperError):
        old = [info.key for info in store.list(_folder(name)) if info.key < _key(name, epoch, "")]
        if old:
            store.delete(old)
