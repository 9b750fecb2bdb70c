"""`version`: which program this is, and what it stands on."""

import platform
import re
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata

from clipper_backup import __version__
from clipper_backup.cli.context import Context

_PACKAGE = "clipper-backup"


def version(*, context: Context) -> None:
    """The version of this program, of Python, and of the libraries it uses."""
    libraries = dict(_libraries())
    document = {"schema": 1, "version": __version__, "python": platform.python_version(), "libraries": libraries}
    lines = [f"clipper-backup {__version__}", f"python {platform.python_version()}"]
    context.answer(document, "\n".join([*lines, *(f"{name} {number}" for name, number in libraries.items())]))


def _libraries() -> Iterator[tuple[str, str]]:
    """Name and version of everything this package requires where it is installed, extras apart."""
    for requirement in sorted(metadata.requires(_PACKAGE) or ()):
        named = re.match(r"[\w.-]+", requirement)
        if named is None or "extra ==" in requirement:
            continue
        with suppress(metadata.PackageNotFoundError):  # a marker leaves it out on this Python
            yield named[0], metadata.version(named[0])
