"""How a restore test is shown: the source document's six lines as headings, each with what came of it."""

from typing import Any

from clipper_backup.ops.job_restore_test import RestoreTest
from clipper_backup.values import json_time, show_seconds

Document = dict[str, Any]


def document(test: RestoreTest) -> Document:
    """What was done, and how long each step took. Counts stand in no report of the store, but here."""
    counted = [each.rows for each in test.compared]
    return {
        "id": str(test.id),
        "begun_at": json_time(test.begun_at),
        "dump": None if test.dump is None else test.dump.id,
        "result": test.result,
        "duration_seconds": None if test.seconds is None else round(test.seconds, 3),
        "target_seconds": test.target_seconds,
        "target_met": test.target_met,
        "databases": [] if test.dump is None else test.dump.databases,
        "tables": sum(each.tables for each in test.compared),
        "rows": None if None in counted else sum(rows or 0 for rows in counted),
        "queries": sum(each.queries for each in test.compared),
        "report": test.report,
        "steps": [
            {"name": each.name, "heading": each.heading, "result": each.result, "seconds": round(each.seconds, 3)}
            for each in test.steps
        ],
    }


def text(test: RestoreTest) -> str:
    """The same for people."""
    return "".join(f"{each.heading}\n  {each.result or 'failed'}, in {show_seconds(each.seconds)}\n" for each in test.steps)
