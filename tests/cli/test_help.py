"""Help pages as agreed (golden files), and what the program says to words it does not know."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cyclopts
import pytest

from clipper_backup.cli.app import COMMANDS, make_app
from clipper_backup.config import DECLARED
from fixtures.cli import SAMPLE, Outcome, RunCli, RunOnTerminal, environment
from fixtures.golden import Golden
from fixtures.sweeps import chosen

GOLDEN = Path(__file__).with_name("golden")


def every_command(app: cyclopts.App, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    for name, command in app.resolved_commands().items():
        if not name.startswith("-"):
            yield from every_command(command, (*words, name))


ALL = sorted(every_command(make_app()))


PAGES = """
import os, pkgutil, sys, tempfile
from clipper_backup import cli
for module in pkgutil.iter_modules(cli.__path__, "clipper_backup.cli."):
    __import__(module.name)
for line in sys.argv[1:]:
    with tempfile.TemporaryFile() as said:
        if (child := os.fork()) == 0:
            os.dup2(said.fileno(), 1)
            cli.main.main([*line.split(), "--help"])
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        print(repr((code, said.read().decode())))
"""


@pytest.fixture(scope="module")
def pages() -> dict[tuple[str, ...], str]:
    """The page of each command. One start for all: each is a process of its own, made when the program was imported."""
    lines = [" ".join(words) for words in ALL]
    printed = subprocess.run([sys.executable, "-c", PAGES, *lines], capture_output=True, text=True, check=True, env=environment())
    assert printed.stderr == ""
    outcomes = [ast.literal_eval(line) for line in printed.stdout.splitlines()]
    assert {code for code, _ in outcomes} == {0}
    return dict(zip(ALL, (page for _, page in outcomes), strict=True))


@pytest.mark.parametrize("words", ALL, ids=lambda words: " ".join(words) or "alone")
def test_help_is_as_agreed(words: tuple[str, ...], pages: dict[tuple[str, ...], str], golden: Golden) -> None:
    assert max(len(line) for line in pages[words].splitlines()) <= 100
    golden(GOLDEN / f"{'-'.join(('help', *words))}.txt", pages[words])


@pytest.mark.soak
def test_a_start_of_its_own_shows_the_same(pages: dict[tuple[str, ...], str], run_cli: RunCli) -> None:
    for words in chosen(ALL, 1):
        outcome = run_cli(*words, "--help", check=True)
        assert (outcome.stdout, outcome.stderr) == (pages[words], "")


def test_no_golden_page_is_left_of_a_command_that_is_gone(request: pytest.FixtureRequest) -> None:
    left = {path.name for path in GOLDEN.iterdir()} - {f"{'-'.join(('help', *words))}.txt" for words in ALL}
    if request.config.getoption("--update"):
        for name in left:
            (GOLDEN / name).unlink()
    else:
        assert left == set()


def test_every_command_says_what_it_does(run_cli: RunCli) -> None:
    page = run_cli("--help", check=True).stdout
    for name in COMMANDS:
        (line,) = [line for line in page.splitlines() if line.startswith(f"  {name} ")]
        assert len(line.split()) > 3


def test_every_flag_that_a_page_names_is_one(run_cli: RunCli) -> None:
    page = run_cli("dump", "create", "--help", check=True).stdout
    named = re.findall(r"(--[a-z-]+) \(([A-Z_]+)\)", page.replace("\n", " "))
    assert {name for _, name in named} == {"BACKUP_URL", "BACKUP_DATABASES", "DUMP_JOBS", "DUMP_FINGERPRINT"}
    assert set(named) <= {(declared.flag, declared.name) for declared in DECLARED}


def test_help_may_stand_anywhere_and_needs_no_settings(run_cli: RunCli) -> None:
    page = run_cli("settings", "--help", check=True).stdout
    assert run_cli("-h", "settings", "--json", env={"RETENTION_DAYS": "nonsense"}, check=True).stdout == page
    assert run_cli("--config", "/does/not/exist", "settings", "--help", check=True).stdout == page


def test_help_on_a_terminal_is_set_in_bold_unless_colour_is_off(run_on_terminal: RunOnTerminal) -> None:
    bold, plain = run_on_terminal("--help"), run_on_terminal("--help", "--no-color")
    assert "\x1b[1m" in bold.screen
    assert "\x1b" not in plain.screen
    assert "\x1b" not in run_on_terminal("--help", env={"NO_COLOR": "1"}).screen


def test_options_say_what_they_accept_and_what_they_are_without(run_cli: RunCli) -> None:
    page = run_cli("sample", "options", "--help", program=SAMPLE, check=True).stdout
    assert page[page.index("Options:") : page.index("With every command:")] == (
        "Options:\n"
        "  --how CHOICE                    how to look (counts | hash; default: counts)\n"
        "  --an-option-with-a-very-long-name INT\n"
        "                                  its meaning begins on a line of its own (default: 7)\n"
        '  --plain STR                     (default: "")\n'
        "\n"
    )
    chosen = run_cli("sample", "options", "--how", "hash", "--json", program=SAMPLE, check=True)
    assert chosen.document == {"schema": 1, "how": "hash", "number": 7, "plain": ""}


@pytest.mark.parametrize("words", [[], ["sample"]])
def test_no_command_is_an_error_that_shows_help(run_cli: RunCli, words: list[str]) -> None:
    """A CronJob whose arguments were lost must not be green."""
    outcome = run_cli(*words, program=SAMPLE)
    assert (outcome.code, outcome.stdout) == (2, "")
    page = run_cli(*words, "--help", program=SAMPLE).stdout
    command = " ".join(["clipper-backup", *words])
    error = f"error: no command was given after `{command}`\nHINT: `{command} --help` shows what there is\n"
    assert outcome.stderr == f"{page}\n{error}"
    with_json = run_cli(*words, "--json", program=SAMPLE)
    assert [line["exit_code"] for line in with_json.lines] == [2]


@pytest.mark.parametrize(
    ("line", "message", "meant", "command"),
    [
        ("setings", "unknown command: clipper-backup setings", "settings", ""),
        ("sample stepps", "unknown command: clipper-backup sample stepps", "steps", " sample"),
        ("zzz --help", "unknown command: clipper-backup zzz", None, ""),
        ("restore latest --into copy", "clipper-backup restore has no option --into", "--quiet", " restore"),
        ("create", "unknown command: clipper-backup create", "dump create or base create or snapshot create", ""),
        ("list", "unknown command: clipper-backup list", "dump list or base list or snapshot list", ""),
        ("fetch", "unknown command: clipper-backup fetch", "dump fetch or wal fetch", ""),
        ("fetchs", "unknown command: clipper-backup fetchs", "dump fetch or wal fetch", ""),
        ("verifi", "unknown command: clipper-backup verifi", "verify", ""),
        ("hlep", "unknown command: clipper-backup hlep", None, ""),
        ("dump lst", "unknown command: clipper-backup dump lst", "list", " dump"),
        (
            "dump create --databases clipper",
            "clipper-backup dump create has no option --databases",
            "--backup-databases",
            " dump create",
        ),
        (
            "dump create --database clipper",
            "clipper-backup dump create has no option --database",
            "--backup-databases",
            " dump create",
        ),
        (
            "prune --dump=1",
            "clipper-backup prune has no option --dump",
            "--dump-fingerprint or --dump-jobs or --dump-compression-level",
            " prune",
        ),
        (
            "dump create --jobs 2",
            "clipper-backup dump create has no option --jobs",
            "--dump-jobs or --archive-jobs",
            " dump create",
        ),
        ("settings --set-onl", "clipper-backup settings has no option --set-onl", "--set-only", " settings"),
        (
            "settings --retention-dais=3",
            "clipper-backup settings has no option --retention-dais",
            "--retention-days",
            " settings",
        ),
        ("settings --zzz", "clipper-backup settings has no option --zzz", None, " settings"),
        ("settings -x", "clipper-backup settings has no option -x", None, " settings"),
        ("settings A B", "clipper-backup settings takes no 'B'", None, " settings"),
        ("settings --set-only=x", "bad value for --set-only: 'x'", None, " settings"),
        (
            "sample options --an-option-with-a-very-long-name x",
            "bad value for --an-option-with-a-very-long-name: 'x'",
            None,
            " sample options",
        ),
        ("sample steps --hold", "--hold needs a value", None, " sample steps"),
        ("sample steps --hlod x", "clipper-backup sample steps has no option --hlod", "--hold", " sample steps"),
        ("sample fail", "clipper-backup sample fail needs KIND", None, " sample fail"),
        ("sample fail --knd x", "clipper-backup sample fail has no option --knd", None, " sample fail"),
    ],
)
def test_unknown_words_are_named_with_what_may_have_been_meant(
    run_cli: RunCli, line: str, message: str, meant: str | None, command: str
) -> None:
    hints = [*([f"did you mean {meant}?"] if meant else []), f"`clipper-backup{command} --help` shows what there is"]
    stderr = "".join(f"{text}\n" for text in [f"error: {message}", *(f"HINT: {hint}" for hint in hints)])
    assert run_cli(*line.split(), program=SAMPLE) == Outcome(2, "", stderr)


def test_a_value_that_is_none_of_the_choices(run_cli: RunCli) -> None:
    assert run_cli("sample", "options", "--how", "hsh", program=SAMPLE).stderr.splitlines() == [
        "error: bad value for --how: 'hsh'",
        "HINT: did you mean hash?",
        "HINT: --how takes counts | hash",
        "HINT: `clipper-backup sample options --help` shows what there is",
    ]


def test_usage_errors_as_json(run_cli: RunCli) -> None:
    outcome = run_cli("setings", "--json")
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.lines == [
        {
            "type": "error",
            "exit_code": 2,
            "message": "unknown command: clipper-backup setings",
            "hints": ["did you mean settings?", "`clipper-backup --help` shows what there is"],
        }
    ]


def test_after_two_dashes_help_is_a_word_like_any_other(run_cli: RunCli) -> None:
    assert run_cli("settings", "--", "--help").code == 15
