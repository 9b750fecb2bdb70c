"""What both catalogs say of the state of an id, of dumps and of base backups."""

from clipper_backup.ops.dump.read import Entry
from clipper_backup.repository.base_backups import BaseEntry

_SHOWN_AS = {"damaged": "DAMAGED", "untrusted": "NOT TRUSTED", "unreadable": "NOT READABLE"}


def state_of(entry: Entry | BaseEntry) -> str:
    """`committed` or `unfinished`; of one with a problem `untrusted`, `unreadable` or `damaged`."""
    if entry.problem:
        return "untrusted" if entry.untrusted else "unreadable" if entry.unreadable else "damaged"
    return "committed" if entry.listed.committed else "unfinished"


def notes_of(entry: Entry | BaseEntry, held: str | None) -> list[str]:
    """The same for people, where there is something to say; *held*: the reason of a hold, None without one."""
    state = state_of(entry)
    notes = [f"{_SHOWN_AS[state]}: {entry.problem}"] if entry.problem else ["unfinished"] if state == "unfinished" else []
    return notes if held is None else [*notes, f"held: {held}"]
