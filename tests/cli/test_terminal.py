"""The program on a real terminal (a pty): bars, questions, colour, and the cursor given back."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from fixtures.cli import SAMPLE, Keys, RunCli, RunOnTerminal, until_asleep, write_when_read

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


def without_styles(screen: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen)


def test_a_bar_for_each_running_step_with_rate_and_time_left(run_on_terminal: RunOnTerminal, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    os.mkfifo(hold)
    held = os.open(hold, os.O_RDWR)

    def release(process: "subprocess.Popen[str]") -> str:
        os.close(held)
        return ""

    run = run_on_terminal("sample", "steps", "--hold", str(hold), program=SAMPLE, type_after=[("1 250 000 rows", release)])
    assert run.code == 0
    shown = without_styles(run.screen)
    assert re.search(r"dumping clipper [━╸╺]+ 25 % of 1\.0 GB, .*/s, about .* left", shown)
    assert re.search(r"counting rows +[━╸╺]+ 1 250 000 rows, .* rows/s", shown)
    assert "\rwarning: the role may not read passwords\r\n" in shown
    assert "\rHINT: grant pg_read_all_data\r\n" in shown


def test_what_is_done_stays_and_the_bars_and_the_hidden_cursor_go(run_on_terminal: RunOnTerminal) -> None:
    run = run_on_terminal("sample", "steps", program=SAMPLE)
    shown = without_styles(run.screen)
    assert "done: 1 250 000 rows counted (3.0 s)\r\n" in shown
    assert "done: clipper dumped, 1.0 GB (41 s)\r\n" in shown
    assert shown.endswith("dumped\r\n")
    after_the_last_bar = run.screen.rpartition(SHOW_CURSOR)[2]
    assert HIDE_CURSOR in run.screen
    assert HIDE_CURSOR not in after_the_last_bar
    assert "━" not in after_the_last_bar


@pytest.mark.parametrize(
    ("words", "env"), [(["--no-color"], {}), ([], {"NO_COLOR": "1"}), ([], {"TERM": "dumb"}), (["--quiet"], {}), (["--json"], {})]
)
def test_no_escape_sequence_reaches_a_terminal_that_does_not_want_any(
    run_on_terminal: RunOnTerminal, words: list[str], env: dict[str, str]
) -> None:
    run = run_on_terminal("sample", "steps", *words, env=env, program=SAMPLE)
    assert run.code == 0
    assert "\x1b" not in run.screen
    assert "the role may not read passwords" in run.screen


def test_an_error_is_marked_by_colour_only_where_wanted(run_on_terminal: RunOnTerminal) -> None:
    assert run_on_terminal("settings", "NO_SUCH").screen.startswith("\x1b[1;31merror:\x1b[0m there is no setting NO_SUCH\r\n")
    assert run_on_terminal("settings", "NO_SUCH", "--no-color").screen.startswith("error: there is no")
    assert run_on_terminal("settings", "NO_SUCH", env={"NO_COLOR": "1"}).screen.startswith("error: there is no")


def test_a_failing_command_gives_the_cursor_back_before_the_error(run_on_terminal: RunOnTerminal, tmp_path: Path) -> None:
    run = run_on_terminal("sample", "steps", "--hold", str(tmp_path), program=SAMPLE)
    assert run.code == 1
    bars, _, error = run.screen.rpartition(SHOW_CURSOR)
    assert "━" in bars
    assert "IsADirectoryError" in error


def test_ctrl_c_twice_gives_the_cursor_back(run_on_terminal: RunOnTerminal, tmp_path: Path) -> None:
    def type_when_read(fifo: Path) -> Keys:
        os.mkfifo(fifo)

        def wait(process: "subprocess.Popen[str]") -> str:
            held.append(write_when_read(fifo, process))
            return "\x03"

        return wait

    held: list[int] = []
    pipe = tmp_path / "pipe"
    run = run_on_terminal(
        *("sample", "wait", str(pipe), "/dev/stdout"),
        program=SAMPLE,
        type_after=[("working", type_when_read(pipe)), ("cleaning", type_when_read(tmp_path / "pipe.cleanup"))],
    )
    assert run.code == -signal.SIGINT
    assert "stopped 2" in run.screen
    assert run.screen.rpartition(SHOW_CURSOR)[1] == SHOW_CURSOR
    assert HIDE_CURSOR not in run.screen.rpartition(SHOW_CURSOR)[2]
    for descriptor in held:
        os.close(descriptor)


def test_settings_wrap_their_meaning_to_the_terminal(run_on_terminal: RunOnTerminal) -> None:
    lines = run_on_terminal("settings").screen.split("\r\n")
    assert max(map(len, lines)) <= 100
    assert len([line for line in lines if line.startswith(" ")]) > 10


@pytest.mark.parametrize("reply", ["y", "Y", "yes", " yes "])
def test_yes_is_yes(run_on_terminal: RunOnTerminal, reply: str) -> None:
    run = run_on_terminal("sample", "ask", program=SAMPLE, type_after=[("[y/N] ", f"{reply}\n")])
    assert (run.code, run.screen.split("\r\n")) == (0, [f"delete everything? [y/N] {reply}", "deleted", ""])


@pytest.mark.parametrize("reply", ["n\n", "\n", "yess\n", "\x04"])
def test_anything_else_is_no(run_on_terminal: RunOnTerminal, reply: str) -> None:
    run = run_on_terminal("sample", "ask", "--no-color", program=SAMPLE, type_after=[("[y/N] ", reply)])
    assert run.code == 1
    assert run.screen.endswith("error: not confirmed, nothing was changed\r\n")
    assert "deleted" not in run.screen


def test_ctrl_c_at_a_question_is_a_no_with_its_own_exit_code(run_on_terminal: RunOnTerminal) -> None:
    def interrupt(process: "subprocess.Popen[str]") -> str:
        until_asleep(process)
        return "\x03"

    run = run_on_terminal("sample", "ask", "--no-color", program=SAMPLE, type_after=[("[y/N] ", interrupt)])
    assert run.code == 130
    assert run.screen == "delete everything? [y/N] ^C\r\nerror: stopped by signal 2\r\n"


def test_a_question_needs_a_terminal_or_a_yes(run_cli: RunCli, run_on_terminal: RunOnTerminal) -> None:
    refused = run_cli("sample", "ask", program=SAMPLE, stdin="yes\n")
    assert (refused.code, refused.stdout) == (2, "")
    assert refused.stderr == "error: nobody to ask: delete everything?\nHINT: --yes says yes beforehand\n"
    assert run_cli("sample", "ask", "--yes", program=SAMPLE).stdout == "deleted\n"
    assert run_on_terminal("sample", "ask", "--yes", program=SAMPLE).screen == "deleted\r\n"
    assert run_on_terminal("sample", "ask", "--json", program=SAMPLE).code == 2
