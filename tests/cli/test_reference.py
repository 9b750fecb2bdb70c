"""The generated pages of the reference are those that the declarations make."""

import sys
from pathlib import Path

import pytest

from clipper_backup.cli.exits import exit_codes
from clipper_backup.cli.reference import PAGES
from clipper_backup.config import DECLARED
from clipper_backup.errors import every_error
from fixtures.cli import RunCli

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


@pytest.mark.parametrize("name", PAGES)
def test_the_committed_page_is_up_to_date(name: str) -> None:
    made = PAGES[name]()
    assert (REFERENCE / name).read_text(encoding="utf-8") == made, "run: python -m clipper_backup.cli.reference docs/reference"


def test_the_generator_writes_every_page(run_cli: RunCli, tmp_path: Path) -> None:
    run_cli("-m", "clipper_backup.cli.reference", str(tmp_path), program=[sys.executable], check=True)
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {name: PAGES[name]() for name in PAGES}


def test_the_settings_page_has_a_row_for_each_setting_under_a_section() -> None:
    lines = PAGES["settings.md"]().splitlines()
    assert all(declared.section for declared in DECLARED)
    for declared in DECLARED:
        (row,) = [line for line in lines if line.startswith(f"| `{declared.name}` |")]
        assert declared.meaning in row
        assert ("none: secret" if declared.secret else f"`{declared.flag}`") in row
        assert row.count(" | ") - row.count("\\|") <= 6
    assert "| `DUMP_FINGERPRINT` | `--dump-fingerprint` | counts \\| hash \\| off | `counts` |" in "\n".join(lines)


def test_the_exit_code_page_has_a_row_for_each_code_and_error() -> None:
    page = PAGES["exit-codes.md"]()
    for code, meaning in exit_codes():
        assert f"\n| {code} | {meaning} |\n" in page
    for error in every_error():
        assert f"\n| `{error.__name__}` |" in page


def test_exit_codes_are_those_of_the_design() -> None:
    assert exit_codes() == [
        ("0", "done"),
        ("1", "failed"),
        ("2", "usage"),
        ("3", "done but incomplete"),
        ("10", "no repository"),
        ("11", "locked"),
        ("12", "key or login"),
        ("13", "integrity"),
        ("14", "WAL gap"),
        ("15", "not found"),
        ("128 + n", "ended by signal n"),
    ]


def json_examples() -> list[tuple[str, str]]:
    """Commands in docs/reference/json.md, each with the line that it says it prints."""
    lines = [line.strip() for line in (REFERENCE / "json.md").read_text(encoding="utf-8").splitlines()]
    return [(line[2:], lines[at + 1]) for at, line in enumerate(lines) if line.startswith("$ clipper-backup ")]


@pytest.mark.parametrize(("command", "line"), json_examples())
def test_examples_of_the_json_page_are_what_the_program_says(run_cli: RunCli, command: str, line: str) -> None:
    outcome = run_cli(*command.split()[1:])
    assert outcome.stdout + outcome.stderr == f"{line}\n"
