"""Every relative link of every page leads somewhere, to a heading too."""

import re
from functools import cache
from pathlib import Path

import pytest

from fixtures.docs import ROOT, pages, prose

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {slug if n == 0 else f"{slug}-{n}" for slug, last in found.items() for n in range(last + 1)}


def links(page: Path) -> list[str]:
    text = re.sub(r"`[^`]*`(?!\])", "", prose(page))
    return [target for target in LINK.findall(text) if not re.match(r"[a-z]+:", target)]


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.relative_to(ROOT)}: {target}: there is no such file"
        assert there.is_relative_to(ROOT), f"{page.relative_to(ROOT)}: {target} lies outside the project"
        if anchor:
            assert anchor in anchors(there), f"{page.relative_to(ROOT)}: {target}: there is no such heading"


def test_links_are_found_at_all() -> None:
    assert sum(len(links(page)) for page in pages()) > 50


def test_anchors_are_those_of_github() -> None:
    runbook = anchors(ROOT / "docs/operations/backup-recovery-runbook.md")
    assert {"full-database-restore", "2-get-a-shell-in-which-everything-works", "troubleshooting"} <= runbook
    assert "what-proven-means" in anchors(ROOT / "docs/concepts/proof.md")


def test_every_page_of_docs_is_on_the_map() -> None:
    linked = {(ROOT / "docs" / target.partition("#")[0]).resolve() for target in links(ROOT / "docs/README.md")}
    folders = {path for path in linked if path.is_dir()}
    missing = [
        page for page in pages() if page.is_relative_to(ROOT / "docs") and page not in linked and page.parent not in folders
    ]
    assert missing == [ROOT / "docs/README.md"]
