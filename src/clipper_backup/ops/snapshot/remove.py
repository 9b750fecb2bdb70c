"""VolumeSnapshots deleted, and with them what a deletionPolicy of Retain would leave behind in the storage."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from clipper_backup.errors import ClipperError, IncompleteError, MissingError
from clipper_backup.kubernetes.api import Api, Object
from clipper_backup.kubernetes.objects import Snapshot, content_of, snapshot_of
from clipper_backup.kubernetes.resources import VOLUME_SNAPSHOT_CONTENTS, VOLUME_SNAPSHOTS
from clipper_backup.kubernetes.watch import wait_for
from clipper_backup.ops.snapshot.take import SELECTOR

GONE_SECONDS = 300.0
"""A storage that takes longer to delete a snapshot is looked at again by the next prune."""
_LOOK_SECONDS, _LONGEST_LOOK_SECONDS = 0.5, 10.0


@dataclass(frozen=True, slots=True)
class Doomed:
    """One VolumeSnapshot to delete: its name, and its uid and content as far as they were written down."""

    name: str
    uid: str | None = None
    content: str | None = None


def ours(api: Api) -> dict[str, Snapshot]:
    """Every VolumeSnapshot of this namespace that carries our labels, by name."""
    return {found["metadata"]["name"]: snapshot_of(found) for found in api.list(VOLUME_SNAPSHOTS, labels=SELECTOR)}


def delete_all(api: Api, doomed: Iterable[Doomed]) -> dict[str, ClipperError]:
    """Delete them with their contents and the storage's own snapshots; what is left of which, by name. Asks all, then waits."""
    left: dict[str, ClipperError] = {}
    contents: dict[str, str] = {}
    for each in doomed:
        try:
            content = _begin(api, each)
        except ClipperError as error:
            left[each.name] = error
        else:
            if content is not None:
                contents[each.name] = content
    if contents:
        left |= _wait(api, contents)
    return left


def _begin(api: Api, each: Doomed) -> str | None:
    """Ask for the end of one; the content that goes with it, None where nothing of it is there any more."""
    try:
        found = snapshot_of(api.get(VOLUME_SNAPSHOTS, each.name))
    except MissingError:
        return _begin_orphan(api, each)
    if each.uid not in {None, found.uid}:  # another one has its name by now
        return _begin_orphan(api, each)
    uid = each.uid or found.uid
    content = found.content or each.content or f"snapcontent-{uid}"
    _tell_delete(api, content, uid)
    api.delete(VOLUME_SNAPSHOTS, each.name, uid=uid)
    return content


def _begin_orphan(api: Api, each: Doomed) -> str | None:
    """The same where the VolumeSnapshot is gone, as with its namespace, and its content was retained."""
    content = each.content or (None if each.uid is None else f"snapcontent-{each.uid}")
    if content is None or not _tell_delete(api, content, each.uid):
        return None
    api.delete(VOLUME_SNAPSHOT_CONTENTS, content)
    return content


def _tell_delete(api: Api, content: str, uid: str | None) -> bool:
    """See to it that the storage's snapshot goes with the content; False where there is no such content, or it is another's."""
    try:
        found = api.get(VOLUME_SNAPSHOT_CONTENTS, content)
    except MissingError:
        return False
    if uid is not None and ((found.get("spec") or {}).get("volumeSnapshotRef") or {}).get("uid") not in {None, uid}:
        return False
    if content_of(found).deletion_policy != "Delete":
        api.patch(VOLUME_SNAPSHOT_CONTENTS, content, {"spec": {"deletionPolicy": "Delete"}})
    return True


def _wait(api: Api, contents: Mapping[str, str]) -> dict[str, ClipperError]:
    """What of them is still there when the time is over. All are looked at together: one list, and a watch of one of them."""
    end = api.clock.monotonic() + GONE_SECONDS

    def gone(found: Object | None) -> bool | None:
        return True if found is None else None

    left: dict[str, ClipperError] = {}
    pending = sorted(contents)
    try:
        while pending := sorted(contents.keys() & ours(api).keys()):
            wait_for(api, VOLUME_SNAPSHOTS, pending[-1], gone, timeout_seconds=max(1.0, end - api.clock.monotonic()))
    except ClipperError as error:
        left = dict.fromkeys(pending, error)
    for name in sorted(contents.keys() - left.keys()):
        pause = _LOOK_SECONDS
        try:
            while api.clock.monotonic() < end:
                if content_of(api.get(VOLUME_SNAPSHOT_CONTENTS, contents[name])).deletion_policy != "Delete":
                    _begin_orphan(api, Doomed(name, content=contents[name]))  # made while its snapshot was going
                api.clock.sleep(pause)  # the storage takes its time, and nobody may watch contents
                pause = min(2 * pause, _LONGEST_LOOK_SECONDS)
        except MissingError:
            continue
        except ClipperError as error:
            left[name] = error
            continue
        left[name] = IncompleteError(
            f"VolumeSnapshotContent {contents[name]} is still there",
            hints=[f"kubectl describe volumesnapshotcontent {contents[name]}", "the next `snapshot prune` looks again"],
        )
    return left
