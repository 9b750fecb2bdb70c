"""`doctor` and `bucket check` as text: what is red is never hidden among what it keeps from being looked at."""

import pytest

from clipper_backup.cli.show_findings import Row, finding_items, findings_text
from clipper_backup.ops.findings import Colour, Finding, green, red


def waiting(count: int) -> list[Row]:
    found = Finding(Colour.YELLOW, "not looked at before this is right: store", waits_for="store")
    return [(f"check {number}", found, ()) for number in range(count)]


@pytest.mark.parametrize("count", [1, 3, 4, 40])
def test_what_waits_is_told_together_where_it_is_much(count: int) -> None:
    rows: list[Row] = [("settings", green("as they should be"), ()), ("store", red("away"), ("mend it",)), *waiting(count)]
    shown = findings_text(rows)
    assert [line.split()[:2] for line in shown.splitlines()[1:3]] == [["green", "settings"], ["RED", "store"]]
    assert shown.endswith(f"\n1 green, {count} yellow, 1 red\n")
    assert all(f"check {number}" in " ".join(shown.split()) for number in range(count))
    assert max(map(len, shown.splitlines())) < 120
    one_by_one = [line for line in shown.splitlines() if "not looked at before" in line]
    assert len(one_by_one) == (count if count <= 3 else 0)
    assert (f"{count} checks are made when what is red is right:" in shown) == (count > 3)


def test_for_programs_each_has_its_item() -> None:
    document = finding_items(waiting(5))
    assert [item["id"] for item in document["items"]] == [f"check {number}" for number in range(5)]
    assert document["yellow"] == 5
