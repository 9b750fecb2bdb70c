"""`job …`: what the CronJobs run, each the whole of its task."""

from clipper_backup.cli import show_dump
from clipper_backup.cli.app import group
from clipper_backup.cli.context import Context
from clipper_backup.ops.job_dump import run_postgres_backup
from clipper_backup.ops.work import open_work

app = group("job", "What the CronJobs run: the whole of a task, with pruning and metrics.")


@app.command
def postgres_backup(*, context: Context) -> None:
    """Take a dump, prune old ones, report to the Pushgateway."""
    done = run_postgres_backup(open_work(context.settings, context.clock, context.emit, read_only=False))
    summary = done.written.summary
    document = {
        "schema": 1,
        **show_dump.summary_document(summary),
        "pruned": [str(decision.dump_id) for decision in done.pruned.going],
    }
    context.answer(document, show_dump.summary_text(summary) + f"pruned: {len(done.pruned.going)} dumps\n")
