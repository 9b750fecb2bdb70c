"""The cluster that a command works in: that of the Pod it runs in, or of a kubeconfig."""

import random
from pathlib import Path

from clipper_backup.clock import Clock
from clipper_backup.kubernetes.api import Api
from clipper_backup.ops.events import Emit, Warned


def open_cluster(clock: Clock, emit: Emit, *, kubeconfig: Path | None, namespace: str | None) -> Api:
    """A client of it; close it at the end. Nothing is asked yet. UsageError where no cluster is configured."""
    from clipper_backup.kubernetes.transport import open_transport  # noqa: PLC0415  150 ms that only such commands need

    transport = open_transport(kubeconfig=kubeconfig, namespace=namespace)
    rng = random.Random()  # noqa: S311  of pauses
    return Api(transport, clock=clock, rng=rng, tell=lambda text: emit(Warned(text)))
