"""Taking the leases that commands work under."""

import uuid
from contextlib import ExitStack

from clipper_backup.ops.work import Work, step, this_process
from clipper_backup.repository.leases import Lease, acquire_lease

DUMP_LEASE = "dump"
"""Of whoever makes or deletes a dump."""
BASE_LEASE = "base"
"""Of whoever makes a base backup: two runs would only load the server twice."""
SNAPSHOT_LEASE = "snapshot"
"""Of whoever takes or deletes volume snapshots."""
PRUNE_LEASE = "prune"
"""Of whoever deletes or rewrites in base/, packs/, keys/ and wal/."""
LEASES = (DUMP_LEASE, BASE_LEASE, SNAPSHOT_LEASE, PRUNE_LEASE)


def take_lease(work: Work, name: str, purpose: str) -> Lease:
    """Take a lease that commands work under, waiting for a stale one to free itself; whom it waits for is told."""
    with ExitStack() as waiting:

        def told(held: str) -> None:
            waiting.enter_context(step(work, "lease", f"wait: {held}")).done = f"the lease {name} is free"

        return acquire_lease(
            work.store,
            work.clock,
            name,
            lease_seconds=work.settings.lease_seconds,
            wait_seconds=work.settings.lease_seconds + 5,
            holder=this_process(),
            run_id=uuid.uuid4().hex,
            purpose=purpose,
            waiting=told,
        )
