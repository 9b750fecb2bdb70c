"""`snapshot …`: volume snapshots of a database in Kubernetes."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from clipper_backup.cli.app import group
from clipper_backup.cli.cluster_arguments import Kubeconfig, Namespace, StatefulSet
from clipper_backup.cli.context import Context
from clipper_backup.kubernetes.api import Api
from clipper_backup.ops.snapshot.cluster import open_cluster
from clipper_backup.ops.work import Work, open_work

app = group("snapshot", "Volume snapshots of a database in Kubernetes: fast to take, and no off-site backup.")


def _work(context: Context, *, read_only: bool = True) -> Work:
    return open_work(context.settings, context.clock, context.emit, read_only=read_only)


def _cluster(context: Context, namespace: str | None, kubeconfig: Path | None) -> Api:
    return open_cluster(context.clock, context.emit, kubeconfig=kubeconfig, namespace=namespace)


@app.command
def create(
    *,
    stateful_set: StatefulSet = "postgres",
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context,
) -> None:
    """Take snapshots of all volumes of the database, within one backup of its server; done once they are ready.

    Exit 3 when its WAL did not reach the archive: it is good to the instant it was taken, and no further.

    Settings that matter most; `clipper-backup settings` shows them all:
      --volume-snapshot-class (VOLUME_SNAPSHOT_CLASS)    the class they are taken with
      --snapshot-taken-seconds (SNAPSHOT_TAKEN_SECONDS)  how long the server is held in a backup at most
      --snapshot-ready-seconds (SNAPSHOT_READY_SECONDS)  how long to wait until they are ready
      --base-wal-wait-seconds (BASE_WAL_WAIT_SECONDS)    how long to wait for the WAL
    """
    from clipper_backup.cli import show_snapshot
    from clipper_backup.ops.snapshot import create as creating

    work = _work(context, read_only=False)
    with _cluster(context, namespace, kubeconfig) as api:
        made = creating.create_snapshot(work, api, stateful_set)
    context.answer({"schema": 1, **show_snapshot.made_document(made)}, show_snapshot.made_text(made))
    if made.incomplete is not None:
        raise made.incomplete


@app.command(name="list")
def list_(*, namespace: Namespace = None, kubeconfig: Kubeconfig = None, context: Context) -> None:
    """Every volume snapshot, oldest first, with what it restores to; unfinished ones too, and those that are gone."""
    from clipper_backup.cli import show_snapshot
    from clipper_backup.ops.snapshot import read as reading

    work = _work(context)
    with _cluster(context, namespace, kubeconfig) as api:
        catalog = reading.snapshot_catalog(work, api)
    items = [show_snapshot.shown_document(shown) for shown in catalog]
    context.answer({"schema": 1, "items": items, "off_site": False}, show_snapshot.catalog_text(catalog))


@app.command
def prune(
    *,
    dry_run: Annotated[bool, Parameter(help="show what would go and why, change nothing")] = False,
    yes: Annotated[bool, Parameter(help="do not ask")] = False,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context,
) -> None:
    """Delete what SNAPSHOT_RETENTION_DAYS no longer keeps; the newest good one stays however old it is.

    Contents that their class retains go too, with the storage's own snapshots. Exit 3 when some of that could not be deleted.
    """
    from clipper_backup.cli import show_snapshot
    from clipper_backup.ops.snapshot import prune as pruning

    work = _work(context, read_only=dry_run)
    with _cluster(context, namespace, kubeconfig) as api:
        decisions = pruning.look_at_snapshots(work, api)
        if not dry_run:
            if any(not decision.keep for decision in decisions):
                context.confirm(show_snapshot.question(decisions), yes=yes)
            decisions = pruning.prune_snapshots(work, api)
    context.answer(
        {"schema": 1, **show_snapshot.pruned_document(decisions, dry_run=dry_run)},
        show_snapshot.pruned_text(decisions, dry_run=dry_run),
    )
