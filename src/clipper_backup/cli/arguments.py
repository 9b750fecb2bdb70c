"""Takes the words that belong to every command out of the command line: setting flags and global flags.

They may stand anywhere before `--`. What is left is parsed by the command's own declaration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipper_backup.config import DECLARED, Declared
from clipper_backup.errors import UsageError

GLOBAL_FLAGS: Mapping[str, str] = {
    "--config PATH": "settings from a TOML file, or from a folder with one file per setting",
    "--json": "the answer as one JSON document, errors and warnings as JSON lines",
    "--events": "progress as JSON lines on stderr",
    "--quiet": "no progress; warnings and errors are still shown",
    "--no-color": "no colour and no progress bars",
    "--debug": "show tracebacks",
}
_SWITCHES = frozenset(flag for flag in GLOBAL_FLAGS if " " not in flag)
_SETTINGS: Mapping[str, Declared] = {declared.flag: declared for declared in DECLARED}


@dataclass(frozen=True, slots=True)
class Arguments:
    """A command line, sorted: `words` is the command and its own options, `flags` maps setting names to their text."""

    words: tuple[str, ...]
    flags: Mapping[str, str]
    config: Path | None
    switches: frozenset[str]

    def has(self, switch: str) -> bool:
        """Whether the global flag *switch* (`--json`, `--quiet` …) was given."""
        return switch in self.switches


def split(words: Sequence[str]) -> Arguments:
    """Sort *words*; UsageError for a flag without its value, a value without use, or a secret on the command line.

    Given twice, the later one counts, so that a script can be overridden by what is added to it.
    """
    rest: list[str] = []
    flags: dict[str, str] = {}
    switches: set[str] = set()
    config: Path | None = None
    pending = list(reversed(words))
    while pending:
        word = pending.pop()
        if word == "--":
            rest += ["--", *reversed(pending)]
            break
        flag, equals, value = word.partition("=")
        if flag in _SWITCHES:
            if equals:
                raise UsageError(f"{flag} takes no value")
            switches.add(flag)
        elif flag in _SETTINGS or flag == "--config":
            declared = _SETTINGS.get(flag)
            if declared is not None and declared.secret:
                raise _secret(declared)
            if declared is not None and declared.switch:
                value = value if equals else "yes"
            elif not equals:
                if not pending or pending[-1].startswith("--"):
                    raise UsageError(f"{flag} needs a value", hints=[f"{flag}=VALUE also takes a value that begins with --"])
                value = pending.pop()
            if declared is not None:
                flags[declared.name] = value
            elif value:
                config = Path(value)
            else:
                raise UsageError(f"{flag} needs a value")
        else:
            rest.append(word)
    return Arguments(tuple(rest), flags, config, frozenset(switches))


def known_flags() -> tuple[str, ...]:
    """Every flag that any command takes."""
    return (*(flag for flag, declared in _SETTINGS.items() if not declared.secret), "--config", *sorted(_SWITCHES))


def _secret(declared: Declared) -> UsageError:
    return UsageError(
        f"{declared.name} cannot be given as a flag: every user of this machine can read command lines",
        hints=[f"set it in the environment, or in a file named by --config: {declared.meaning}"],
    )
