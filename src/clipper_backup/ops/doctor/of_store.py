"""Checks of the settings and the store: can it be read and written, does it keep what it took and refuse what it must."""

import uuid
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

from clipper_backup.config import repository_url
from clipper_backup.errors import ObjectExistsError
from clipper_backup.format import names
from clipper_backup.kinds import show_url
from clipper_backup.linux import kind_of_filesystem
from clipper_backup.ops.doctor.declared import Declaring, Surroundings
from clipper_backup.ops.findings import Finding, green, judge_skew, red, yellow
from clipper_backup.ops.work import skew
from clipper_backup.repository.dumps import is_ahead, list_dumps, newest

PROBE = "doctor/probe"
"""How the keys begin of what is written to see that it can be; one that ran at the same time would find that in its way."""
_LEFTOVER_AGE = timedelta(hours=1)
"""A probe is there for as long as its check takes; older ones are left by a run that was killed, and removed."""

_IN_MEMORY = frozenset({"tmpfs", "ramfs"})
_ELSEWHERE = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "glusterfs"})


check = Declaring()


@check(
    "settings",
    "whether every setting can be read and makes sense",
    "`clipper-backup settings` shows each with where it comes from",
)
def _settings(here: Surroundings) -> Finding:
    return green(f"{show_url(repository_url(here.settings))} is the repository")


@check(
    "store",
    "whether the store of BACKUP_URL answers, and lets us list",
    "check BACKUP_URL, BACKUP_ENDPOINT, the keys or the identity of this machine, and the network",
    needs=["settings"],
)
def _store(here: Surroundings) -> Finding:
    found = sum(1 for _ in here.store.list(names.HOLDS_FOLDER))
    return green(f"{here.store.url} answers" + (f", {found} holds" if found else ""))


@check(
    "write",
    "whether an object can be written, read back and removed",
    "let this identity write and delete objects below the repository's prefix; for a folder, its owner must be us",
    needs=["store"],
)
def _write(here: Surroundings) -> Finding:
    data, probe = uuid.uuid4().bytes, _probe()
    here.store.put(probe, data)
    try:
        if here.store.get(probe) != data:
            return red(
                f"{probe}: the store gave back other bytes than it was given", "use another store: this one keeps nothing safe"
            )
    finally:
        here.store.delete([probe])
    now = here.store.now()
    left = [info.key for info in here.store.list(f"{PROBE.partition('/')[0]}/") if now - info.modified_at > _LEFTOVER_AGE]
    if left:
        here.store.delete(left)
    return green(f"{probe} was written, read back and removed")


def _probe() -> str:
    return f"{PROBE}-{uuid.uuid4().hex[:16]}"


@check(
    "conditional create",
    "whether the store refuses to create an object where one is: leases and ids rest on that",
    "use a store that knows conditional create (If-None-Match); `clipper-backup bucket check` tries it harder",
    needs=["store", "write"],
)
def _conditional_create(here: Surroundings) -> Finding:
    probe = _probe()
    here.store.put(probe, uuid.uuid4().bytes)
    try:
        here.store.put(probe, uuid.uuid4().bytes, create=True)
    except ObjectExistsError:
        return green("an object that is there is not created again")
    else:
        return red("the store created an object where one was: two jobs could write one dump")
    finally:
        here.store.delete([probe])


@check(
    "durable",
    "whether what the store took survives a power loss",
    "keep the repository on a disk or in a bucket, and not on the disk of the database",
    needs=["store"],
)
def _durable(here: Surroundings) -> Finding:
    if not here.store.capabilities.durable:
        return red(f"{here.store.url} keeps nothing over a power loss")
    if not here.store.url.startswith("file://"):
        return green("a bucket keeps what it acknowledged")
    kind = kind_of_filesystem(Path(unquote(urlsplit(here.store.url).path)))
    if kind in _IN_MEMORY:
        return red(f"{here.store.url} lies in memory ({kind})")
    if kind == "overlay":
        return yellow(f"{here.store.url} lies in a container's own layer, which is gone with the container")
    if kind in _ELSEWHERE:
        return green(f"{here.store.url} lies on another machine ({kind})")
    return yellow(
        f"{here.store.url} is a folder on {kind}: it is lost with this machine", "copy it to another place, or use a bucket"
    )


@check(
    "clock",
    "whether the store's clock and ours agree, and the newest dump does not lie ahead of them",
    "correct this machine's clock (`timedatectl`), or the store's: ages, leases and ids go by the store's",
    needs=["store", "write"],
)
def _clock(here: Surroundings) -> Finding:
    if (last := newest(list_dumps(here.store))) is not None and is_ahead(last, here.store.now()):
        return red(
            f"the newest dump, {last}, lies ahead of the store's clock: no dump can be taken",
            f"if a clock ran wrong when it was taken: `clipper-backup dump delete {last}`",
        )
    return judge_skew(skew(here.store, here.clock))


CHECKS = check.all
