r"""The output of `pg_dumpall --globals-only`, taken apart into statements.

It is run statement by statement through a connection, never through psql: since August 2025 such scripts begin with a
`\restrict` line that an older psql does not know (rule 84).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from clipper_backup.errors import IntegrityError

_END = re.compile(r"^-- PostgreSQL database cluster dump complete\n--\s*\Z", re.MULTILINE)
# Quoted text is skipped as a whole, so that nothing in a name, comment or password ends a statement or looks like a command.
_TOKEN = re.compile(
    r"""
    [eE]'(?:[^'\\]|''|\\.)*' | (?<![eE])'(?:[^']|'')*' | "(?:[^"]|"")*"  # quoted
    | (?P<open>['"])  # a quotation that never ends
    | (?P<skipped>--[^\n]* | ^\\(?:un)?restrict\ [^\n]*)
    | (?P<end>;)
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_IDENTIFIER = r'("(?:[^"]|"")+"|[^\s";]+)'
_CREATE_ROLE = re.compile(rf"CREATE ROLE {_IDENTIFIER}$")
_OF_ROLE = re.compile(
    rf"(?:ALTER ROLE|COMMENT ON ROLE|SECURITY LABEL FOR \S+ ON ROLE|GRANT [A-Z, ]+ ON PARAMETER {_IDENTIFIER} TO) {_IDENTIFIER}"
    r"(?! IN DATABASE )(?:\s|$)"
)
_MEMBERSHIP = re.compile(rf"(GRANT {_IDENTIFIER} TO {_IDENTIFIER}(?: WITH [A-Z, ]+?)?)(?: GRANTED BY {_IDENTIFIER})?$")
_TABLESPACE = re.compile(rf"CREATE TABLESPACE {_IDENTIFIER}\s")


@dataclass(frozen=True, slots=True)
class Globals:
    """Statements by what they are about: `roles` maps a role to its statements, CREATE ROLE first.

    `memberships` are (granted role, member, statement), without the grantor: before PostgreSQL 16 he was never checked and may
    not be able to grant, and since then the first superuser is one, who may have another name elsewhere. `tablespaces` are the
    names of tablespaces that existed.
    """

    roles: dict[str, list[str]]
    memberships: list[tuple[str, str, str]]
    tablespaces: list[str]


def statements(script: str) -> Iterator[str]:
    """The SQL statements of a script, without comments, psql's own commands and the final semicolons.

    IntegrityError when it ends in the middle of one.
    """
    start = 0
    parts: list[str] = []
    for match in _TOKEN.finditer(script):
        if match["open"]:
            break
        if match["skipped"] or match["end"]:
            parts.append(script[start : match.start()])
            start = match.end()
        if match["end"]:
            if statement := "".join(parts).strip():
                yield statement
            parts = []
    if "".join([*parts, script[start:]]).strip():
        raise IntegrityError("the globals end in the middle of a statement")


def parse(script: str) -> Globals:
    """Take a globals script apart; IntegrityError when its end is missing."""
    if _END.search(script) is None:
        raise IntegrityError("the globals end too early: the closing line of pg_dumpall is missing")
    return sort_statements(statements(script))


def sort_statements(found: Iterable[str]) -> Globals:
    """Sort statements by what they are about.

    What belongs to no role (SET …, grants to PUBLIC) and what belongs to databases is left out.
    """
    roles: dict[str, list[str]] = {}
    memberships = []
    tablespaces = []
    for statement in found:
        if match := _CREATE_ROLE.match(statement):
            roles.setdefault(_name(match[1]), []).insert(0, statement)
        elif (match := _OF_ROLE.match(statement)) and match[2] != "PUBLIC":
            roles.setdefault(_name(match[2]), []).append(statement)
        elif match := _MEMBERSHIP.match(statement):
            memberships.append((_name(match[2]), _name(match[3]), match[1]))
        elif match := _TABLESPACE.match(statement):
            tablespaces.append(_name(match[1]))
    return Globals(roles, memberships, tablespaces)


def _name(identifier: str) -> str:
    return identifier[1:-1].replace('""', '"') if identifier.startswith('"') else identifier
