"""`demo`: the whole story on this machine."""

from typing import Annotated

from cyclopts import Parameter

from clipper_backup.cli.context import Context
from clipper_backup.cli.tables import table
from clipper_backup.errors import UsageError
from clipper_backup.values import show_seconds


def demo(
    *,
    scale: Annotated[float, Parameter(help="size of the generated database; 1 is about 230 MB")] = 1.0,
    context: Context,
) -> None:
    """Back up a real PostgreSQL, destroy it, restore it and prove it, in a temporary folder of this machine."""
    from clipper_backup.ops.demo.story import run_demo

    if not 0.01 <= scale <= 100:
        raise UsageError("--scale must lie between 0.01 and 100")
    story = run_demo(context.clock, context.emit, scale=scale)
    rows = [
        (chapter.title, show_seconds(chapter.seconds) if chapter.seconds else "", chapter.result) for chapter in story.chapters
    ]
    document = {
        "schema": 1,
        "server_version": story.server_version,
        "id": str(story.restored.dump_id),
        "items": [{"id": c.title, "duration_seconds": round(c.seconds, 3), "result": c.result} for c in story.chapters],
    }
    context.answer(
        document, "\n" + table(("STEP", "TOOK", "RESULT"), rows, right=("TOOK",)) + "\nNothing was left running or behind.\n"
    )
