"""Every command of the guides and the runbook is run, in order, page by page, and prints what the page says it prints.

`pytest tests/docs --update` writes what was really printed into the pages; the diff is then what to review.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from fixtures.docs import PREPARATIONS, ROOT, Block, Command, Names, Scenario, commands, normal, scenario, visible
from fixtures.stores import StorePlace, place_in

RUNBOOK = ROOT / "docs/operations/backup-recovery-runbook.md"
GUIDES = sorted((ROOT / "docs/guides").glob("*.md"))
PAGES = [*GUIDES, *([RUNBOOK] if RUNBOOK.stat().st_size else [])]
by_name = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)

NOT_RUN = {
    "kubernetes shell": "starts a Pod: needs a cluster; the names and paths in it are compared with the manifests",
    "inside the pod": "the same",
    "kubernetes shell ends": "the same",
    "kubernetes job by hand": "the same",
    "kubernetes suspend": "the same",
    "kubernetes nightly job off": "the same",
    "kubernetes nightly job on": "the same",
    "kubernetes keys": "the same",
    "google bucket": "makes one in a project of Google Cloud",
    "google identity": "the same",
    "s3 bucket": "makes one in an account of AWS",
    "s3 identity": "ties an account to it in a cluster",
    "azure container": "makes one in a subscription of Azure",
    "azure identity": "the same",
    "base backup by hand": "tests/base/test_reader.py runs both programs, and starts a server with them",
    "archive command": "changes the settings of a server of yours; tests/wal/test_archive_server.py archives with both ways",
    "first base backup": "needs a server that archives, which the one of the pages does not; tests/base runs it",
    "as root": "makes a folder of root's outside of the test's, and gives it to another user",
}
"""Blocks that cannot run here, by the name in their `not run` note, each with the reason."""

BUCKETS = {
    RUNBOOK.stem: ("s3", "s3://YOUR_BUCKET/production"),
    "backups-in-s3": ("s3", "s3://YOUR_BUCKET/production"),
    "backups-in-google-cloud-storage": ("gcs", "gs://YOUR_BUCKET/production"),
    "backups-in-azure": ("azure", "az://YOUR_CONTAINER/production"),
}
"""The kind of bucket with which a page is followed, and what the page calls it."""

SETTINGS = {"PGHOST": "/var/run/postgresql", "PGUSER": "postgres"}
WITHOUT_SETTINGS = {"first-dump"}
"""Pages that begin with setting them."""


class CommandFailedError(AssertionError):
    pass


@pytest.fixture
def place(page: Path, request: pytest.FixtureRequest, local_place: StorePlace) -> StorePlace:
    """The runbook is followed with a bucket, as in production; the guides with a folder, but for those about buckets."""
    if page.stem not in BUCKETS:
        return local_place
    return place_in(request, BUCKETS[page.stem][0])


@pytest.mark.soak(share=0.3)
@by_name
def test_commands_do_what_the_page_says(page: Path, place: StorePlace, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if page.stem in BUCKETS:
        places = {BUCKETS[page.stem][1]: place.url}
    else:
        places = {"file:///var/backups/clipper": place.url, "/var/backups/clipper": place.url.removeprefix("file://")}
    variables = {} if page.stem in WITHOUT_SETTINGS else {**place.environment, **SETTINGS}
    with scenario(tmp_path, place, places, variables) as here:
        printed = {command: said for command in commands(page) if (said := run(page, command, here)) is not None}
        if request.config.getoption("--update"):
            rewrite(page, printed, here.names)
            return
    for command, said in printed.items():
        if command.shown is not None:
            shown = normal(command.shown.text)
            assert normal(here.names.on_page(said)) == shown, f"{page}:{command.shown.line}: this is not what is printed"


def run(page: Path, command: Command, here: Scenario) -> str | None:
    """What a person sees of the block; None for one that is not run."""
    block = command.block
    if block.said("not run"):
        return None
    for preparation in block.said("before"):
        PREPARATIONS[preparation](here)
    outcome = here.shell.run(here.names.here(block.text))
    said = visible(outcome)
    (expected,) = block.said("exits") or ["0"]
    if outcome.code != int(expected):
        raise CommandFailedError(
            f"{page}:{block.line}: exit code {outcome.code}, not {expected}:\n{block.text}\n{said}{outcome.stderr}"
        )
    if command.shown is not None:
        here.names.learn(command.shown.text, said)
    return said


def rewrite(page: Path, printed: Mapping[Command, str], names: Names) -> None:
    """Put what was printed into the page, where it differs in more than times and sizes."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for command, said in reversed(list(printed.items())):
        shown, actual = command.shown, names.on_page(said).strip("\n")
        if shown is not None and normal(actual) != normal(shown.text):
            end = shown.line - 1 + len(shown.text.splitlines())
            lines[shown.line - 1 : end] = actual.splitlines()
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def every_block() -> list[tuple[Path, Block]]:
    return [(page, command.block) for page in PAGES for command in commands(page)]


def test_what_is_not_run_is_named_here_with_its_reason() -> None:
    named = [name for _, block in every_block() for name in block.said("not run")]
    assert sorted(named) == sorted(NOT_RUN)
    assert len(NOT_RUN) <= 18


def test_every_preparation_is_known_and_used() -> None:
    assert {name for _, block in every_block() for name in block.said("before")} == set(PREPARATIONS)


@by_name
def test_nothing_else_looks_like_a_command(page: Path) -> None:
    """A block in another language would not be run."""
    for block in commands(page):
        assert block.block.text.strip()
    languages = set(re.findall(r"^```(\w*)$", page.read_text(encoding="utf-8"), re.MULTILINE)) - {""}
    assert languages <= {"bash", "text"}
