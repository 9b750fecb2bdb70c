"""No page names a command, an option, a setting, a target or a file that does not exist."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import cyclopts
import pytest

from clipper_backup.cli.app import make_app
from clipper_backup.cli.arguments import known_flags
from clipper_backup.config import DECLARED
from fixtures.docs import ROOT, blocks, pages, prose

by_page = pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))

PLACEHOLDERS = {"COMMAND", "…"}
OTHER_NAMES = {
    "AWS_ACCESS_KEY_ID": "of the AWS tools, understood by the store",
    "AWS_SECRET_ACCESS_KEY": "the same",
    "AWS_REGION": "of the AWS tools, understood by the store",
    "GOOGLE_APPLICATION_CREDENTIALS": "of Google's tools, understood by the store",
    "AZURE_STORAGE_ACCOUNT_KEY": "of Azure's tools, understood by the store",
    "AZURE_STORAGE_SAS_TOKEN": "the same",
    "AZURE_CLIENT_ID": "the same",
    "AZURE_TENANT_ID": "the same",
    "AZURE_CLIENT_SECRET": "the same",
    "AZURE_FEDERATED_TOKEN_FILE": "the same",
    "HTTPS_PROXY": "everybody's",
    "HTTP_PROXY": "everybody's",
    "ALL_PROXY": "everybody's",
    "NO_PROXY": "everybody's",
    "CLIPPER_BACKUP_CONFIG": "no setting: says where they are",
    "CLIPPER_BACKUP_DEBUG": "no setting: see the reference page",
    "CLIPPER_BACKUP_PROGRESS_SECONDS": "the same",
    "CLIPPER_BACKUP_FAULTS": "of the test suite",
    "CLIPPER_BACKUP_SEED": "of the test suite",
    "CLIPPER_BACKUP_SOAK": "of the test suite",
    "NO_COLOR": "everybody's",
    "POSTGRES_USER": "a key of the Secret",
    "POSTGRES_PASSWORD": "the same",
    "NAME_DEFAULT": "any setting's name, with this ending",
}
"""Names in capitals that are no settings of ours, each with the reason."""


def snippets(page: Path) -> Iterator[str]:
    """Everything on a page that is to be typed: commands in fences, examples after a `$`, and code within sentences."""
    for block in blocks(page):
        if block.language in {"bash", "sh", "console"}:
            yield from block.text.replace("\\\n", " ").splitlines()
    text = prose(page)
    yield from (line.strip().removeprefix("$ ") for line in text.splitlines() if line.startswith("    $ "))
    yield from spans(page)


def spans(page: Path) -> list[str]:
    """Code within sentences."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def command_lines(page: Path) -> Iterator[list[str]]:
    """The words after `clipper-backup`, wherever it is called."""
    for snippet in snippets(page):
        for call in re.findall(r"(?:^|[\s(])clipper-backup ([^|&;)#<>]+)", snippet):
            words = call.replace('"', " ").replace("'", " ") if call.count('"') % 2 or call.count("'") % 2 else call
            yield shlex.split(words)


def options(app: cyclopts.App) -> set[str]:
    """What a command takes beside the flags of every command."""
    if app.default_command is None:
        return set()
    return {name for argument in app.assemble_argument_collection() if argument.parse for name in argument.names}


def mistake(words: list[str]) -> str | None:
    """What is wrong with a command line, if anything is."""
    app = make_app()
    rest = list(words)
    while rest and not rest[0].startswith("-") and app.default_command is None:
        word = rest.pop(0)
        if word in PLACEHOLDERS:
            return None
        if word not in app.resolved_commands():
            return f"there is no command {word}"
        app = app[word]
    known = options(app) | set(known_flags()) | {"--help", "-h", "--version"}
    flags = [word.partition("=")[0].rstrip(",.") for word in rest if word.startswith("-")]
    return next((f"there is no option {flag}" for flag in flags if flag not in known), None)


@by_page
def test_commands_and_options_exist(page: Path) -> None:
    for words in command_lines(page):
        assert (wrong := mistake(words)) is None, f"{page.relative_to(ROOT)}: clipper-backup {' '.join(words)}: {wrong}"


def test_wrong_commands_would_be_found() -> None:
    assert mistake(["dump", "list", "--json"]) is None
    assert mistake(["COMMAND", "--help"]) is None
    assert mistake(["dump", "restore", "ID", "--into", "x", "--retention-days", "3"]) is None
    assert mistake(["dump", "lists"]) == "there is no command lists"
    assert mistake(["wal", "pull"]) == "there is no command pull"
    assert mistake(["dump", "restore", "ID", "--intro", "x"]) == "there is no option --intro"
    assert mistake(["dump", "list", "--jobs", "2"]) == "there is no option --jobs"


def test_commands_are_found_at_all() -> None:
    assert sum(len(list(command_lines(page))) for page in pages()) > 50


def names_in_capitals(page: Path) -> set[str]:
    return {
        name for span in spans(page) for name in re.findall(r"(?<![\w.-])(?:[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+|PG[A-Z]{4,})\b", span)
    }


@by_page
def test_settings_exist(page: Path) -> None:
    settings = {declared.name for declared in DECLARED}
    placeholders = {name for name in names_in_capitals(page) if name.startswith("YOUR_")}
    unknown = {name for name in names_in_capitals(page) if name.removesuffix("_DEFAULT") not in settings}
    assert unknown <= set(OTHER_NAMES) | placeholders


def test_no_other_name_is_listed_that_no_page_has() -> None:
    assert set(OTHER_NAMES) <= {name for page in pages() for name in names_in_capitals(page)}


@by_page
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for snippet in snippets(page) for name in re.findall(r"^make ([a-z]+)", snippet)}
    assert named <= targets


@by_page
def test_files_exist(page: Path) -> None:
    pattern = r"(?:src|tests|docs|scripts|requirements|infrastructure|monitoring|benchmarks|\.ci)/[\w./-]+"
    for span in spans(page):
        if re.fullmatch(pattern, span):
            assert (ROOT / span).exists(), f"{page.relative_to(ROOT)}: {span}"


def test_the_layers_are_those_of_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    contract = re.findall(r"clipper_backup\.(\w+)", " ".join(layers))
    (shown,) = re.findall(r"^    (cli  >.+)$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert re.findall(r"\w+", shown) == contract
