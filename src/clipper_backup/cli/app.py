"""The commands, and how a command line becomes a call of one.

To add a command, write a function in `cmd_<name>.py` and name it in COMMANDS:

    app = group("dump", "Logical backups.")   # for the words after `clipper-backup dump`; a single word needs no group

    @app.command
    def show(dump_id: Annotated[str, Parameter(help="the dump, like …-20261122-020000")], /, *, context: Context) -> None:
        '''What one dump holds.'''             # the docstring is the help
        dump = find(context.settings, DumpId.parse(dump_id), context.emit)
        context.answer({"schema": 1, **as_document(dump)}, as_text(dump))

Work that loads psycopg or numpy (a quarter of a second) is imported by the function that does it: help, and the commands
beside it, start without. tests/cli/test_main.py holds what starts light.

What a command is about is positional-only, its options are keyword-only. A parameter named `context` is filled in here
and is no option. Settings and global flags are taken out of the command line by `arguments` before a command sees it:
no command declares them. A command raises to fail and returns None.
"""

import difflib
import io
import os
import re
from collections.abc import Sequence
from typing import get_args

import cyclopts
from cyclopts.exceptions import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from clipper_backup.cli import output
from clipper_backup.cli.arguments import known_flags, split
from clipper_backup.cli.context import Context
from clipper_backup.cli.help import HelpLayout, epilogue
from clipper_backup.errors import UsageError

PROGRAM = "clipper-backup"
_HELP_FLAGS = frozenset({"--help", "-h"})
_HELP_COLUMNS = 100
_TELLING_LETTERS = 3
"""A shorter part of a flag is part of too many."""
_MOST_FLAGS = 3

COMMANDS = {
    "dump": "clipper_backup.cli.cmd_dump:app",
    "base": "clipper_backup.cli.cmd_base:app",
    "wal": "clipper_backup.cli.cmd_wal:app",
    "snapshot": "clipper_backup.cli.cmd_snapshot:app",
    "restore": "clipper_backup.cli.cmd_restore:restore",
    "status": "clipper_backup.cli.cmd_status:status",
    "doctor": "clipper_backup.cli.cmd_doctor:doctor",
    "verify": "clipper_backup.cli.cmd_verify:verify",
    "prune": "clipper_backup.cli.cmd_prune:prune",
    "hold": "clipper_backup.cli.cmd_prune:hold",
    "release": "clipper_backup.cli.cmd_prune:release",
    "key": "clipper_backup.cli.cmd_key:app",
    "bucket": "clipper_backup.cli.cmd_bucket:app",
    "setup": "clipper_backup.cli.cmd_setup:app",
    "job": "clipper_backup.cli.cmd_job:app",
    "demo": "clipper_backup.cli.cmd_demo:demo",
    "settings": "clipper_backup.cli.cmd_settings:settings",
    "version": "clipper_backup.cli.cmd_version:version",
}
"""First word of a command -> `module:attribute`, a function or what `group` returned; imported when it is needed."""


def group(name: str, meaning: str) -> cyclopts.App:
    """The commands that begin with the word *name*."""
    return cyclopts.App(name=name, help=meaning, version_flags=[], group_parameters=cyclopts.Group("Options"))


def make_app() -> cyclopts.App:
    """The whole command line, nothing of it imported yet."""
    app = cyclopts.App(
        name=PROGRAM,
        help="Backup and recovery for PostgreSQL that knows whether it would work.",
        help_format="plaintext",
        help_formatter=HelpLayout(),
        group_parameters=cyclopts.Group("Options"),
        version_flags=[],
        default_parameter=cyclopts.Parameter(parse=re.compile("^(?!context$)"), negative=(), consume_multiple=False),
    )
    app["--help"].show = False
    for name, path in COMMANDS.items():
        app.command(path, name=name)
    return app


def dispatch(words: Sequence[str]) -> int:
    """Run the command that *words* ask for; the exit code is 0, everything else is an error."""
    arguments = split(words)
    app = make_app()
    tokens = list(arguments.words)
    try:
        command, bound, injected = app.parse_args(tokens, print_error=False, exit_on_error=False, verbose=False)
    except CycloptsError as error:
        raise _usage_error(error) from None
    if getattr(command, "__func__", None) is cyclopts.App.help_print:
        if not _HELP_FLAGS & set(tokens):
            if not (arguments.has("--json") or arguments.has("--events")):
                output.tell(_help(app, tokens, styled=False))
            said = " ".join((PROGRAM, *tokens))
            raise UsageError(f"no command was given after `{said}`", hints=[f"`{said} --help` shows what there is"])
        styled = os.isatty(1) and not arguments.has("--no-color") and not os.environ.get("NO_COLOR")
        output.answer(_help(app, [token for token in tokens if token not in _HELP_FLAGS], styled=styled))
        return 0
    with Context(arguments) as context:
        command(*bound.args, **bound.kwargs, **dict.fromkeys(injected, context))
    return 0


def _help(app: cyclopts.App, tokens: list[str], *, styled: bool) -> str:
    """The help page for the command that *tokens* name; *styled* for a terminal."""
    from rich.console import Console  # noqa: PLC0415 - only help needs it

    app.parse_commands(tokens)[1][-1].resolved_commands()  # imports those it lists: a command's docstring is its line
    page = io.StringIO()
    width = min(output.terminal_width() or _HELP_COLUMNS, _HELP_COLUMNS)
    app.help_print(tokens, console=Console(file=page, width=width, force_terminal=styled))
    return re.sub(r"\n{3,}", "\n\n", page.getvalue()) + epilogue(width)


def _usage_error(error: CycloptsError) -> UsageError:
    """Say in our words what cyclopts could not make sense of."""
    command = " ".join((PROGRAM, *(error.command_chain or ())))
    see = f"`{command} --help` shows what there is"
    unused = error.unused_tokens or []
    if isinstance(error, UnknownCommandError):
        return UsageError(f"unknown command: {command} {unused[0]}", hints=[*_similar_command(error.app, unused[0]), see])
    known = error.app.assemble_argument_collection() if error.app and error.app.default_command else ()
    names = [name for argument in known if argument.parse for name in argument.names]
    unknown = [option for word in unused if (option := word.partition("=")[0]).startswith("-") and option not in names]
    if isinstance(error, UnknownOptionError):
        unknown = [(error.token.keyword or error.token.value).partition("=")[0]]
    if unknown:
        hints = [*_similar_flags(unknown[0], [*names, *known_flags()]), see]
        return UsageError(f"{command} has no option {unknown[0]}", hints=hints)
    if isinstance(error, UnusedCliTokensError):
        return UsageError(f"{command} takes no {unused[0]!r}", hints=[see])
    if isinstance(error, MissingArgumentError) and error.argument:
        name = error.keyword or error.argument.name
        return UsageError(f"{name} needs a value" if name in unused else f"{command} needs {name}", hints=[see])
    if isinstance(error, CoercionError) and error.token:
        name = error.token.keyword or (error.argument.name if error.argument else "")
        choices = [str(choice) for choice in get_args(error.target_type)]
        hints = [*_similar(error.token.value, choices), *([f"{name} takes {' | '.join(choices)}"] if choices else []), see]
        return UsageError(f"bad value for {name}: {error.token.value!r}", hints=hints)
    message = str(error).strip().removesuffix(".")
    return UsageError(message[:1].lower() + message[1:], hints=[see])


def _similar_command(app: cyclopts.App | None, word: str) -> list[str]:
    """What *word* may mean after the words that led to *app*: one of its commands, or those of groups without the group."""
    commands = app.resolved_commands() if app else {}
    meant: dict[str, list[str]] = {}
    for name, command in commands.items():
        for inner in command.resolved_commands():
            meant.setdefault(inner, []).append(f"{name} {inner}")
    meant |= {name: [name] for name in commands}
    names = [name for name in meant if not name.startswith("-")]
    return [f"did you mean {' or '.join(meant[name])}?" for name in difflib.get_close_matches(word, names, n=1)]


def _similar_flags(word: str, flags: Sequence[str]) -> list[str]:
    """Those that begin with *word*; without any, those with a part that does; without any, the one spelled most like it."""
    typed = word.strip("-")
    if len(typed) >= _TELLING_LETTERS:
        for start in (f"--{typed}", f"-{typed}"):
            if found := [flag for flag in flags if start in flag]:
                return [f"did you mean {' or '.join(found[:_MOST_FLAGS])}?"]
    return _similar(word, flags)


def _similar(word: str, names: Sequence[str]) -> list[str]:
    return [f"did you mean {name}?" for name in difflib.get_close_matches(word, names, n=1)]
