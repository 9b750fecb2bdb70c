"""How the program begins and ends: exit codes, errors as text and JSON, what reaches stdout and what stderr."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import clipper_backup
from clipper_backup.cli.app import COMMANDS
from fixtures.cli import DEADLINE_SECONDS, SAMPLE, Outcome, RunCli, StartCli, environment, until_asleep
from fixtures.stores import StorePlace
from fixtures.wal import MadeServer, Pushing

HEAVY = {
    "cyclopts",
    "rich",
    "psycopg",
    "obstore",
    "prometheus_client",
    "lightkube",
    "msgspec",
    "backports",
    "dataclasses",
    "inspect",
}

HEAVY_FOR_PUSH = {
    "numpy",
    "cryptography",
    "pyrage",
    "concurrent.futures",
    "hashlib",
    "socket",
    "difflib",
    "google_crc32c",
}


def modules_after(run_cli: RunCli, code: str) -> set[str]:
    """What is imported by *code*, in a process that coverage does not watch: it imports half the library itself."""
    unwatched = {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""}
    shown = run_cli("-c", f"import sys; {code}; sys.stderr.write(' '.join(sys.modules))", program=[sys.executable], env=unwatched)
    return set(shown.stderr.split())


def test_nothing_heavy_is_imported_before_a_command_needs_it(run_cli: RunCli) -> None:
    modules = modules_after(run_cli, "import clipper_backup.cli.main")
    assert "clipper_backup.cli.main" in modules
    assert modules & HEAVY == set()


def test_no_help_loads_what_only_work_needs(run_cli: RunCli) -> None:
    each = f"for word in {[*COMMANDS]!r}: main([word, '--help'])"
    modules = modules_after(run_cli, f"from clipper_backup.cli.main import main; sys.exit = print\n{each}\n0")
    assert {f"clipper_backup.cli.cmd_{word}" for word in COMMANDS} - {*modules} == {
        "clipper_backup.cli.cmd_hold",
        "clipper_backup.cli.cmd_release",
    }, "of the same module as prune"
    assert modules & {"numpy", "psycopg", "pyrage", "obstore", "lightkube", "asyncio"} == set()


@pytest.mark.parametrize("words", ["base list", "dump list", "prune --dry-run", "settings"])
def test_what_asks_no_database_starts_without_its_libraries(run_cli: RunCli, words: str, local_place: StorePlace) -> None:
    told = f"import os; os.environ['BACKUP_URL'] = {local_place.url!r}"
    code = f"{told}; from clipper_backup.cli.main import main; sys.exit = print"
    modules = modules_after(run_cli, f"{code}; main({words.split()!r})")
    assert "clipper_backup.cli.context" in modules
    assert modules & {"numpy", "psycopg", "kubernetes"} == set()


def test_a_fast_command_runs_without_the_parser(run_cli: RunCli) -> None:
    modules = modules_after(run_cli, "from clipper_backup.cli.main import main; sys.exit = print; main(['--version'])")
    assert "clipper_backup.cli.fast_version" in modules
    assert modules & HEAVY == set()


def test_wal_push_starts_light(run_cli: RunCli, local_place: StorePlace, tmp_path: Path) -> None:
    """PostgreSQL starts it for each segment: whatever it imports is paid for each time."""
    Pushing(local_place.open())  # a repository
    path = MadeServer(tmp_path / "data").write(1)
    words = ["wal", "push", str(path), "--backup-url", local_place.url, "--encryption-recipients", "none"]
    modules = modules_after(run_cli, f"import os; from clipper_backup.cli.main import main; os._exit = print; main({words!r})")
    assert "clipper_backup.repository.wal_archive" in modules
    assert "clipper_backup.repository.wal_catalog" not in modules, "needed by nobody who seals, or says that he does not"
    assert modules & {*HEAVY, *HEAVY_FOR_PUSH} == {"msgspec", "backports", "dataclasses", "inspect"}


def test_help_imports_no_database_and_no_store(run_cli: RunCli) -> None:
    assert run_cli("--version").stdout == f"clipper-backup {clipper_backup.__version__}\n"
    modules = modules_after(run_cli, "from clipper_backup.cli.main import main; sys.exit = print; main(['settings', '--help'])")
    assert "cyclopts" in modules
    assert modules & {"psycopg", "obstore", "prometheus_client", "lightkube", "httpx2", "yaml"} == set()


def test_the_installed_program_is_the_same(run_cli: RunCli) -> None:
    installed = Path(sys.executable).with_name("clipper-backup")
    assert run_cli("--version", program=[str(installed)]) == run_cli("--version")


def test_version_stands_alone(run_cli: RunCli) -> None:
    outcome = run_cli("--version", "--json")
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.lines[0]["message"] == "--version stands alone, without --json"


def test_version_names_what_the_program_stands_on(run_cli: RunCli) -> None:
    document = run_cli("version", "--json", check=True).document
    assert document["schema"] == 1
    assert document["version"] == clipper_backup.__version__
    assert document["python"] == sys.version.split()[0]
    assert {"obstore", "psycopg", "rich"} <= set(document["libraries"])
    text = run_cli("version", check=True).stdout
    assert f"psycopg {document['libraries']['psycopg']}\n" in text


def test_an_error_is_one_line_with_hints(run_cli: RunCli) -> None:
    outcome = run_cli("settings", "NO_SUCH")
    assert outcome == Outcome(15, "", "error: there is no setting NO_SUCH\nHINT: `clipper-backup settings` lists them\n")


def test_an_error_as_json_is_one_typed_line(run_cli: RunCli) -> None:
    outcome = run_cli("settings", "NO_SUCH", "--json")
    assert (outcome.code, outcome.stdout) == (15, "")
    assert outcome.lines == [
        {
            "type": "error",
            "exit_code": 15,
            "message": "there is no setting NO_SUCH",
            "hints": ["`clipper-backup settings` lists them"],
        }
    ]


def test_the_answer_comes_before_the_error_when_the_work_was_done_but_incomplete(run_cli: RunCli) -> None:
    outcome = run_cli("sample", "fail", "incomplete", program=SAMPLE)
    assert (outcome.code, outcome.stdout) == (3, "most of it\n")
    assert outcome.stderr.startswith("error: one of two databases was left out: shop\nHINT: ")


def test_every_error_class_becomes_its_exit_code(run_cli: RunCli) -> None:
    outcome = run_cli("sample", "fail", "integrity", program=SAMPLE)
    assert outcome == Outcome(13, "", "error: dump x: 3 rows of clips, recorded 4\n")


def test_control_characters_are_spelled_out(run_cli: RunCli) -> None:
    assert run_cli("sample", "fail", "controls", program=SAMPLE).stderr == "error: no database \\x1b[2J\\x07 here\n"


def test_control_characters_in_an_answer_are_spelled_out_too(run_cli: RunCli) -> None:
    outcome = run_cli("sample", "options", "--plain=\x1b[2J\x07", program=SAMPLE)
    assert outcome == Outcome(0, "counts \\x1b[2J\\x07\n", "")


def test_a_bug_says_so_and_keeps_its_traceback_where_only_we_can_read_it(run_cli: RunCli, tmp_path: Path) -> None:
    outcome = run_cli("sample", "fail", "bug", program=SAMPLE, env={"TMPDIR": str(tmp_path)})
    assert outcome.code == 1
    first, hint = outcome.stderr.splitlines()
    assert first == "error: internal error: KeyError: 'unforeseen'"
    path = Path(hint.rpartition(" ")[2])
    assert hint == f"HINT: this is a bug, please report it with the traceback in {path}"
    assert path.parent == tmp_path
    assert path.stat().st_mode & 0o777 == 0o600
    assert "KeyError: 'unforeseen'" in path.read_text()
    assert "Traceback" not in outcome.stderr


def test_a_traceback_that_cannot_be_kept_is_shown(run_cli: RunCli) -> None:
    nowhere = (
        "import runpy, sys, tempfile; tempfile.tempdir = '/proc';"
        "sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    outcome = run_cli("sample", "fail", "bug", program=[sys.executable, "-c", nowhere, SAMPLE[1]])
    assert outcome.code == 1
    assert outcome.stderr.startswith("Traceback (most recent call last):\n")
    assert outcome.stderr.endswith("HINT: this is a bug, please report it with the traceback\n")


@pytest.mark.parametrize(("words", "env"), [(["--debug"], {}), ([], {"CLIPPER_BACKUP_DEBUG": "1"})])
def test_debug_shows_the_traceback_of_any_error(run_cli: RunCli, words: list[str], env: dict[str, str]) -> None:
    outcome = run_cli("settings", "NO_SUCH", *words, env=env)
    assert outcome.code == 15
    assert outcome.stderr.startswith("Traceback (most recent call last):\n")
    assert "\nerror: there is no setting NO_SUCH\n" in outcome.stderr
    with_json = run_cli("settings", "NO_SUCH", "--json", *words, env=env)
    assert with_json.lines[0]["traceback"].startswith("Traceback (most recent call last):\n")


def test_debug_off_by_variable(run_cli: RunCli) -> None:
    assert run_cli("settings", "NO_SUCH", env={"CLIPPER_BACKUP_DEBUG": "0"}).stderr.startswith("error: ")


def test_a_reader_who_leaves_ends_the_program_quietly(run_cli: RunCli) -> None:
    script = f'{SAMPLE[0]} {SAMPLE[1]} sample long-answer | head -c 1; echo " ${{PIPESTATUS[0]}}"'
    outcome = run_cli("-c", script, program=["bash"])
    assert outcome == Outcome(0, "c 141\n", "")


def test_a_reader_of_stderr_who_leaves_does_not_stop_the_work(run_cli: RunCli) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run([*SAMPLE, "sample", "steps"], stdout=subprocess.PIPE, stderr=write_end, check=False,
                              env=environment(), timeout=60)  # fmt: skip
    finally:
        os.close(write_end)
    assert (done.returncode, done.stdout) == (0, b"dumped\n")


def test_an_answer_that_cannot_be_written_is_an_error(run_cli: RunCli) -> None:
    outcome = run_cli("-c", f"{sys.executable} -m clipper_backup settings > /dev/full", program=["bash"])
    assert outcome == Outcome(1, "", "error: cannot write the answer to stdout: No space left on device\n")


def test_closed_standard_streams_are_held(run_cli: RunCli, tmp_path: Path) -> None:
    """With stderr closed, the first file opened would be number 2, and error lines would go into it."""
    config = tmp_path / "config.toml"
    config.write_text("RETENTION_DAYS = 5\nNO_SUCH = 1\n")
    script = f"{sys.executable} -m clipper_backup settings --config {config} <&- >&- 2>&-; echo $?"
    assert run_cli("-c", script, program=["bash"]).stdout == "2\n"
    held = "import os; from clipper_backup.cli import output; output.hold_standard_streams(); os.open('/', 0); os.fstat(3)"
    assert run_cli("-c", f'{sys.executable} -c "{held}" <&- >&- 2>&-', program=["bash"]).code == 0


def test_an_answer_longer_than_a_pipe_arrives_whole_with_names_that_are_not_utf8(run_cli: RunCli) -> None:
    items = run_cli("sample", "long-answer", "--json", program=SAMPLE, check=True).document["items"]
    assert len(items) == 20_000
    assert {os.fsencode(item["id"]) for item in items} == {b"caf\xe9"}


def test_a_locale_without_utf8_does_not_break_the_answer(run_cli: RunCli) -> None:
    outcome = run_cli("settings", "VALIDATION_QUERIES", env={"PYTHONIOENCODING": "ascii"}, check=True)
    assert "name: SELECT \\u2026" in outcome.stdout


def test_a_non_blocking_stdout_is_waited_for(start_cli: StartCli) -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    process = start_cli("sample", "long-answer", "--json", program=SAMPLE, stdout=write_end)
    os.close(write_end)
    with os.fdopen(read_end, "rb", buffering=0) as answer:
        assert answer.read(1) == b"{"
        until_asleep(process)  # the pipe is full
        assert answer.read().count(b'"id"') == 20_000
    assert process.wait(DEADLINE_SECONDS) == 0


def test_numbers_in_the_exit_code_table_are_all_told_in_help(run_cli: RunCli) -> None:
    page = run_cli("--help", check=True).stdout
    assert re.search(r"Exit codes: 0 done, 1 failed, .* 15 not\s+found, 128 \+ n ended by signal n\.", page, re.DOTALL)
