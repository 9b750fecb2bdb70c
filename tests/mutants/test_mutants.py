"""Each patch in this folder breaks a rule, and the tests that it names find it; one that no longer applies is made anew."""

from pathlib import Path

import pytest

from fixtures.mutants import ROOT, Mutant, all_mutants, try_mutant

CORRECTNESS = (ROOT / "docs/design/correctness-rules.md").read_text(encoding="utf-8")


@pytest.mark.soak(over=["path"])
@pytest.mark.parametrize("path", all_mutants(), ids=lambda path: path.stem)
def test_a_mutant_is_found(path: Path, tmp_path: Path) -> None:
    try_mutant(Mutant.read(path), tmp_path)


def test_each_says_what_it_breaks() -> None:
    mutants = [Mutant.read(path) for path in all_mutants()]
    assert mutants
    for mutant in mutants:
        assert all(f"\n{rule}. " in CORRECTNESS for rule in mutant.rules), mutant.path.name
        for test in mutant.tests:
            module, _, name = test.partition("::")
            assert f"def {name.partition('[')[0]}(" in (ROOT / module).read_text(encoding="utf-8"), test


HARMLESS = """Rule: 76
Breaks: nothing.
Tests: tests/test_wal_names.py::{test}

--- a/src/clipper_backup/wal_names.py
+++ b/src/clipper_backup/wal_names.py
@@ -1,2 +1,2 @@
-{old}
+{new}
{blank}
"""


def test_a_mutant_that_no_test_finds_and_one_that_does_not_apply(tmp_path: Path) -> None:
    """The runner itself: who survives is told, and so is a patch for another text."""
    survivor = tmp_path / "survivor.patch"
    first = (ROOT / "src/clipper_backup/wal_names.py").read_text().splitlines()[0]
    test = next(line for line in (ROOT / "tests/test_wal_names.py").read_text().splitlines() if line.startswith("def test_"))
    name = test.removeprefix("def ").partition("(")[0]
    survivor.write_text(HARMLESS.format(test=name, old=first, new='"""Names."""', blank=" "))
    with pytest.raises(AssertionError, match=r"survivor.patch: pytest ended with 0"):
        try_mutant(Mutant.read(survivor), tmp_path / "one")
    survivor.write_text(HARMLESS.format(test=name, old='"""Other names."""', new='"""Names."""', blank=" "))
    with pytest.raises(AssertionError, match="does not apply any more"):
        try_mutant(Mutant.read(survivor), tmp_path / "other")
    survivor.write_text("Rule: 1\n")
    with pytest.raises(AssertionError, match="does not begin with Rule"):
        Mutant.read(survivor)
