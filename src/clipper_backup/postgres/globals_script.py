r"""The output of `pg_dumpall --globals-only`, taken apart into statements.

It is run statement by statement through a connection, never through psql: since August 2025 such scripts begin with a
`\restrict` line that an older psql does not know (rule 84).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from clipper_backup.errors import IntegrityError

_END = "-- PostgreSQL database cluster dump complete"
# Quoted text is skipped as a whole, so that a semicolon or line break in a comment or password ends nothing.
_TOKEN = re.compile(r"""[eE]'(?:[^'\\]|''|\\.)*' | '(?:[^']|'')*' | "(?:[^"]|"")*" | --[^\n]* | ;""", re.VERBOSE | re.DOTALL)
_IDENTIFIER = r'("(?:[^"]|"")+"|[^\s";]+)'
_CREATE_ROLE = re.compile(rf"CREATE ROLE {_IDENTIFIER}$")
_OF_ROLE = re.compile(rf"(?:ALTER ROLE|COMMENT ON ROLE|SECURITY LABEL FOR \S+ ON ROLE) {_IDENTIFIER}\s")
_MEMBERSHIP = re.compile(rf"GRANT {_IDENTIFIER} TO {_IDENTIFIER}(?: WITH [A-Z, ]+)?(?: GRANTED BY {_IDENTIFIER})?$")
_TABLESPACE = re.compile(rf"CREATE TABLESPACE {_IDENTIFIER}\s")


@dataclass(frozen=True, slots=True)
class Globals:
    """Statements by what they are about: `roles` maps a role to its statements, CREATE ROLE first.

    `memberships` are (granted role, member, statement); `tablespaces` the names of tablespaces that existed.
    """

    roles: dict[str, list[str]]
    memberships: list[tuple[str, str, str]]
    tablespaces: list[str]


def statements(script: str) -> Iterator[str]:
    """The SQL statements of a script, without comments, psql's own commands and the final semicolons."""
    body = "\n".join(line for line in script.split("\n") if not line.startswith(("\\restrict ", "\\unrestrict ")))
    start = 0
    parts: list[str] = []
    for match in _TOKEN.finditer(body):
        if match[0].startswith("--"):
            parts.append(body[start : match.start()])
            start = match.end()
        elif match[0] == ";":
            parts.append(body[start : match.start()])
            start = match.end()
            if statement := "".join(parts).strip():
                yield statement
            parts = []


def parse(script: str) -> Globals:
    """Take a globals script apart; IntegrityError when its end is missing."""
    if _END not in script:
        raise IntegrityError("the globals end too early: the closing line of pg_dumpall is missing")
    return sort_statements(statements(script))


def sort_statements(found: Iterable[str]) -> Globals:
    """Sort statements by what they are about; session settings (SET …) and what belongs to databases is left out."""
    roles: dict[str, list[str]] = {}
    memberships = []
    tablespaces = []
    for statement in found:
        if match := _CREATE_ROLE.match(statement):
            roles.setdefault(_name(match[1]), []).insert(0, statement)
        elif (match := _OF_ROLE.match(statement)) and " IN DATABASE " not in statement.split("'")[0]:
            roles.setdefault(_name(match[1]), []).append(statement)
        elif match := _MEMBERSHIP.match(statement):
            memberships.append((_name(match[1]), _name(match[2]), statement))
        elif match := _TABLESPACE.match(statement):
            tablespaces.append(_name(match[1]))
    return Globals(roles, memberships, tablespaces)


def _name(identifier: str) -> str:
    return identifier[1:-1].replace('""', '"') if identifier.startswith('"') else identifier
