"""The kinds of settings: how the text of each becomes a value, and how a value is shown to people."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipper_backup.values import Secret, parse_bytes, show_names


@dataclass(frozen=True, slots=True)
class Kind:
    """How the text of a setting becomes a value; `parse` raises ValueError with what was expected.

    `show` is its opposite, for people: it may hide a part, but never shows anything that `parse` would refuse.
    """

    name: str
    parse: Callable[[str], Any]
    show: Callable[[Any], str] = str


def _number(minimum: int, maximum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"a whole number is needed, not {text!r}") from None
        if not minimum <= value <= maximum:
            raise ValueError(f"{value} is outside {minimum} … {maximum}")
        return value

    return parse


def integer(minimum: int, maximum: int, unit: str = "") -> Kind:
    """A whole number within limits; *unit* is only shown."""
    return Kind(f"{unit or 'number'}, {minimum} to {maximum}", _number(minimum, maximum))


def _switch(text: str) -> bool:
    if (word := text.lower()) not in {"yes", "no"}:
        raise ValueError(f"yes or no is needed, not {text!r}")
    return word == "yes"


def choice(*options: str) -> Kind:
    """One of *options*, in any case."""

    def parse(text: str) -> str:
        if text.lower() not in options:
            raise ValueError(f"{text!r} is none of {', '.join(options)}")
        return text.lower()

    return Kind(" | ".join(options), parse)


_NAME = re.compile(r'\s*(?:"((?:[^"]|"")*)"\s*(?=[,\n]|$)|([^,\n]*))(?:[,\n]|$)')
"""One of several names: within double quotes (those of the name itself doubled), or as it stands."""


def _names(text: str) -> tuple[str, ...]:
    found = [(match[1], match[2]) for match in _NAME.finditer(text)]
    names = tuple(
        plain.strip() if quoted is None else quoted.replace('""', '"')
        for quoted, plain in found
        if quoted is not None or plain.strip()
    )
    if "" in names or (text.strip() and not names):
        raise ValueError("a name is empty")
    if any(quoted is None and plain.strip().startswith('"') for quoted, plain in found):
        raise ValueError("a name that begins with a double quote ends with one; those of the name itself are doubled")
    if len(set(names)) != len(names):
        raise ValueError("a name stands there twice")
    return names


@dataclass(frozen=True, slots=True)
class ValidationQuery:
    """One of VALIDATION_QUERIES: run on the dump's snapshot, and again after a restore; the answers must be equal.

    `database` is None for a query that runs in every database where it can. A query with a `table` (schema and name) runs
    only where that is a table: the defaults must not run the code of a view that somebody gave that name.
    """

    name: str
    sql: str
    database: str | None = None
    table: tuple[str, str] | None = None


def _queries(text: str) -> tuple[ValidationQuery, ...]:
    queries = []
    for line in text.splitlines():
        if not (entry := line.strip()) or entry.startswith("#"):
            continue
        label, separator, sql = entry.partition(":")
        database, slash, name = label.rpartition("/")
        if not separator or not sql.strip() or not name.strip():
            raise ValueError(f"{entry!r} is not `name: SELECT …` or `database/name: SELECT …`, one a line")
        queries.append(ValidationQuery(name.strip(), sql.strip().rstrip(";"), database.strip() if slash else None))
    if len({(q.database, q.name) for q in queries}) != len(queries):
        raise ValueError("a query name stands there twice")
    return tuple(queries)


def _show_queries(queries: tuple[ValidationQuery, ...]) -> str:
    return "\n".join(
        f"{query.database}/{query.name}: {query.sql}" if query.database else f"{query.name}: {query.sql}" for query in queries
    )


def _key_path(text: str) -> Path:
    if "\n" in text or "PRIVATE KEY" in text or "AGE-SECRET-KEY-" in text.upper():
        raise ValueError("the path of a file with the key is needed, not the key itself")
    return Path(text)


NONE = "none"


def _words(beginning: str, *, alone: str = "") -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        words = tuple(text.replace(",", " ").split())
        if words == (alone,):
            return words
        if not words or not all(word.startswith(beginning) for word in words):  # without showing it: it may be a secret key
            raise ValueError(f"each of its words begins with {beginning}")
        return tuple(dict.fromkeys(words))

    return parse


_URL_SECRETS = (
    re.compile(r"(?<=://)[^/@]+(?=@)"),
    re.compile(r"(?i)(?<=[?&])([^=&#]*(?:sig|token|secret|passw|key)[^=&#]*=)[^&#]*"),
)


def _url(text: str) -> str:
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://.", text):
        raise ValueError("a URL is needed, like scheme://place")
    return text


def show_url(text: str) -> str:
    """*text* without the secrets a URL may hold: user and password, and the signature of a query."""
    login, query = _URL_SECRETS
    return query.sub(r"\1***", login.sub("***", text))


def _size(text: str) -> int:
    if (size := parse_bytes(text)) <= 0:
        raise ValueError("more than nothing is needed")
    return size


TEXT = Kind("text", str)
URL = Kind("URL", _url, show_url)
PATH = Kind("path", Path)
SWITCH = Kind("yes | no", _switch, lambda value: "yes" if value else "no")
KEY_PATH = Kind("path of a key file", _key_path)
SECRET = Kind("secret", Secret)
SIZE = Kind("size, like 64MiB", _size)
NAMES = Kind("names, separated by commas", _names, show_names)
QUERIES = Kind("lines of `name: SELECT …`", _queries, _show_queries)

RECIPIENTS = Kind("age keys, separated by commas", _words("age1", alone=NONE), ", ".join)
SIGNATURE_KEYS = Kind("public keys, separated by commas", _words("ed25519:"), ", ".join)
