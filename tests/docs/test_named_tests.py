"""Every test that a page of the design names is there: an invariant is as good as what shows it."""

import re

import pytest

from fixtures.docs import ROOT

PAGES = sorted((ROOT / "docs/design").glob("*.md"))


def defined() -> set[str]:
    """The names of all tests."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    return {name for text in texts for name in re.findall(r"^ *def (test_\w+)\(", text, re.MULTILINE)}


def named(text: str) -> set[str]:
    """The tests that a page names; a file of tests is none."""
    return set(re.findall(r"`(test_\w+)`", text))


@pytest.mark.parametrize("page", [page.name for page in PAGES])
def test_named_tests_are_there(page: str) -> None:
    files = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert named((ROOT / "docs/design" / page).read_text(encoding="utf-8")) - defined() - files == set()


def test_the_invariants_name_tests() -> None:
    assert len(named((ROOT / "docs/design/repository-format.md").read_text(encoding="utf-8"))) > 30
    assert named("`test_one`, `tests/two`, test_three") == {"test_one"}
