"""Each of the correctness rules is shown by a test with its number, or stands in limits.md with the reason."""

import re

from fixtures.docs import ROOT

RULES = (ROOT / "docs/design/correctness-rules.md").read_text(encoding="utf-8")
LIMITS = (ROOT / "docs/design/limits.md").read_text(encoding="utf-8")

_DASH = "\u2013"


def numbers() -> list[int]:
    return [int(number) for number in re.findall(r"^(\d+)\. \S", RULES, re.MULTILINE)]


def marked() -> set[int]:
    """The rules that tests carry the number of."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    return {int(number) for text in texts for number in re.findall(r"^ *@pytest\.mark\.rule\((\d+)\)", text, re.MULTILINE)}


def rules_of(heading: str) -> list[int]:
    """The rules in the first column of a section's table: numbers, and ranges from one to another."""
    section = LIMITS.split(f"## {heading}\n")[1].split("\n## ")[0]
    found: list[int] = []
    for cell in re.findall(r"^\| rules? ([\d\u2013, ]+) \|", section, re.MULTILINE):
        for part in cell.split(","):
            first, _, last = part.strip().partition(_DASH)
            found += range(int(first), int(last or first) + 1)
    return found


def test_rules_are_numbered_from_1_to_105() -> None:
    assert numbers() == list(range(1, 106))


def test_every_rule_has_a_test_or_a_limit() -> None:
    not_yet, in_part = rules_of("Rules that do not apply yet"), rules_of("Rules that are kept in part")
    assert sorted({*not_yet, *in_part}) == sorted([*not_yet, *in_part]), "a rule stands in limits.md twice"
    assert set(numbers()) - set(not_yet) - set(in_part) - marked() == set(), "neither a test nor an entry in limits.md"
    assert set(not_yet) & marked() == set(), "a test shows what limits.md says does not apply"


def test_no_test_carries_a_number_that_is_no_rule() -> None:
    assert marked() <= set(numbers())


def test_the_rules_of_this_release_have_tests() -> None:
    assert {80, 81, 82, 83, 84, 103} <= marked()
