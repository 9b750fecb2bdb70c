"""`settings`: every setting, its value, and where that came from."""

from typing import Annotated, Any

from cyclopts import Parameter

from clipper_backup.cli import output
from clipper_backup.cli.context import Context
from clipper_backup.cli.tables import pairs, table
from clipper_backup.config import DECLARED, Declared, Loaded
from clipper_backup.errors import MissingError


def settings(
    name: Annotated[str | None, Parameter(help="show only this setting, with the reason for its default")] = None,
    /,
    *,
    set_only: Annotated[bool, Parameter(help="leave out settings that have their default")] = False,
    context: Context,
) -> None:
    """Every setting with its value and where that came from; secrets are never shown."""
    loaded = context.loaded
    if name is not None:
        declared = _find(name)
        context.answer({"schema": 1, **_document(declared, loaded)}, _page(declared, loaded))
        return
    shown = [declared for declared in DECLARED if not set_only or declared.name in loaded.origins]
    rows = [
        (declared.name, declared.show(getattr(loaded.settings, declared.field)), _origin(declared, loaded), declared.meaning)
        for declared in shown
    ]
    context.answer(
        {"schema": 1, "items": [_document(declared, loaded) for declared in shown]},
        table(("SETTING", "VALUE", "FROM", "MEANING"), rows, width=output.terminal_width()),
    )


def _find(name: str) -> Declared:
    wanted = name.removeprefix("--").replace("-", "_").upper()
    for declared in DECLARED:
        if declared.name == wanted:
            return declared
    raise MissingError(f"there is no setting {name}", hints=["`clipper-backup settings` lists them"])


def _origin(declared: Declared, loaded: Loaded) -> str:
    return loaded.origins.get(declared.name, "default")


def _document(declared: Declared, loaded: Loaded) -> dict[str, Any]:
    return {
        "id": declared.name,
        "value": declared.public(getattr(loaded.settings, declared.field)),
        "from": _origin(declared, loaded),
        "default": declared.public(declared.default),
        "kind": declared.kind.name,
        "meaning": declared.meaning,
        "why": declared.why or None,
        "flag": None if declared.secret else declared.flag,
    }


def _page(declared: Declared, loaded: Loaded) -> str:
    items = [
        (declared.name, declared.meaning),
        ("value", declared.show(getattr(loaded.settings, declared.field)) or "not set"),
        ("from", _origin(declared, loaded)),
        ("default", declared.show(declared.default) or "not set"),
        ("kind", declared.kind.name),
    ]
    if declared.why:
        items.append(("why", declared.why))
    items.append(("flag", "none: command lines are public" if declared.secret else declared.flag))
    return pairs(items)
