"""What `--help` looks like: plain aligned columns that also read well without colour, and the same last lines everywhere."""

import textwrap
from typing import Any

from cyclopts.help import HelpEntry, HelpPanel
from rich.console import Console, ConsoleOptions
from rich.text import Text

from clipper_backup.cli.arguments import GLOBAL_FLAGS
from clipper_backup.cli.exits import exit_codes

_NAMES_WIDTH = 30


def epilogue(width: int) -> str:
    """The last lines of every help page."""
    codes = ", ".join(f"{code} {meaning}" for code, meaning in exit_codes())
    widest = max(map(len, GLOBAL_FLAGS))
    return "\n".join(
        [
            "With every command:",
            *(f"  {flag:<{widest}}  {meaning}" for flag, meaning in GLOBAL_FLAGS.items()),
            "",
            *textwrap.wrap(
                "Every setting is a flag too: RETENTION_DAYS is --retention-days. `clipper-backup settings` lists them.", width
            ),
            *textwrap.wrap(f"Exit codes: {codes}.", width),
            "",
        ]
    )


class HelpLayout:
    """Renders cyclopts' help panels; meets its HelpFormatter protocol."""

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:  # noqa: ARG002 - the protocol's
        """The usage line."""
        console.print(Text(str(usage).strip(), style="bold"), soft_wrap=True)
        console.print()

    def render_description(self, console: Console, options: ConsoleOptions, description: Any) -> None:  # noqa: ARG002
        """What the command does."""
        if description:
            console.print(description)
            console.print()

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """One group of commands or options: names at the left, meaning at the right."""
        rows = [(_names(entry), _meaning(entry)) for entry in panel.entries]
        if not rows:
            return
        console.print(Text(f"{panel.title}:", style="bold"))
        widest = min(_NAMES_WIDTH, max(len(names) for names, _ in rows))
        for names, meaning in rows:
            lines = textwrap.wrap(meaning, max(20, options.max_width - widest - 4)) or [""]
            if len(names) > widest:
                lines.insert(0, "")
            first = Text.assemble((f"  {names:<{widest}}", "bold"), f"  {lines[0]}")
            first.rstrip()
            console.print(first, soft_wrap=True)
            for line in lines[1:]:
                console.print(Text(" " * (widest + 4) + line), soft_wrap=True)
        console.print()


def _names(entry: HelpEntry) -> str:
    return ", ".join(entry.display_labels_with_metavar)


def _meaning(entry: HelpEntry) -> str:
    """The description, and what else a person must know to type it."""
    text = " ".join(_plain(entry.description).split())
    notes = []
    if entry.choices:
        notes.append(" | ".join(entry.choices))
    if entry.default is not None and entry.default != "False":
        notes.append(f"default: {entry.default}")
    if entry.required:
        notes.append("required")
    return f"{text} ({'; '.join(notes)})".strip() if notes else text


def _plain(description: Any) -> str:
    """The text in what cyclopts hands over: nothing, a string, or a wrapper around a rich Text."""
    inner = getattr(description, "primary_renderable", description)
    return str(getattr(inner, "plain", inner or ""))
