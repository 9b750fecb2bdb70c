"""`job …`: what the CronJobs run, each the whole of its task."""

from clipper_backup.cli.app import group
from clipper_backup.cli.cluster_arguments import Kubeconfig, Namespace, StatefulSet
from clipper_backup.cli.context import Context
from clipper_backup.ops.snapshot.cluster import open_cluster
from clipper_backup.ops.work import open_work
from clipper_backup.values import show_count

app = group("job", "What the CronJobs run: the whole of a task, with pruning and metrics.")


@app.command
def postgres_backup(*, context: Context) -> None:
    """Take a dump, prune old ones, report to the Pushgateway; and a base backup, where the server archives its WAL."""
    from clipper_backup.cli import show_base, show_dump
    from clipper_backup.ops.job_backup import run_postgres_backup

    done = run_postgres_backup(open_work(context.settings, context.clock, context.emit, read_only=False))
    summary, base = done.dump.written.summary, done.base
    pruned = () if done.pruned is None else done.pruned.going
    document = {
        "schema": 1,
        **show_dump.summary_document(summary),
        "pruned": [*(str(decision.dump_id) for decision in done.dump.pruned.going), *(str(item.backup_id) for item in pruned)],
        "base": None if base is None else show_base.summary_document(base.summary),
    }
    text = show_dump.summary_text(summary) + f"pruned: {show_count(len(done.dump.pruned.going), 'dump')}\n"
    if base is not None:
        backups = sum(item.kind == "base backup" for item in pruned)
        text += f"\n{show_base.summary_text(base.summary)}pruned: {show_count(backups, 'base backup')}\n"
    context.answer(document, text)


@app.command
def restore_test(*, context: Context) -> None:
    """Restore the newest good dump into a private server, compare it with what was recorded, report how long it took.

    The server is made on this machine, in SCRATCH_DIR, and removed with all its files. PGHOST and the like are not asked.
    """
    from clipper_backup.cli import show_restore_test
    from clipper_backup.ops.job_restore_test import run_restore_test

    test = run_restore_test(open_work(context.settings, context.clock, context.emit, read_only=False))
    context.answer({"schema": 1, **show_restore_test.document(test)}, show_restore_test.text(test))
    if test.error is not None:
        raise test.error


@app.command
def volume_snapshot(
    *,
    stateful_set: StatefulSet = "postgres",
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context,
) -> None:
    """Take a volume snapshot of the database, report to the Pushgateway, delete old ones.

    Exit 3 when it is good, but its WAL did not reach the archive, or an old one could not be deleted.
    """
    from clipper_backup.cli import show_snapshot
    from clipper_backup.ops.job_snapshot import run_volume_snapshot

    work = open_work(context.settings, context.clock, context.emit, read_only=False)
    done = run_volume_snapshot(
        work, lambda: open_cluster(context.clock, context.emit, kubeconfig=kubeconfig, namespace=namespace), stateful_set
    )
    pruned = [str(decision.snapshot_id) for decision in done.pruned if not decision.keep]
    context.answer(
        {"schema": 1, **show_snapshot.made_document(done.made), "pruned": pruned},
        show_snapshot.made_text(done.made) + f"pruned: {show_count(len(pruned), 'volume snapshot')}\n",
    )
    if done.incomplete is not None:
        raise done.incomplete
