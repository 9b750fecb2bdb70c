"""`version`: which program this is, and what it stands on."""

import platform
from importlib import metadata

from clipper_backup import __version__
from clipper_backup.cli.context import Context

_LIBRARIES = ("cyclopts", "msgspec", "obstore", "prometheus-client", "psycopg", "rich", "zstandard")


def version(*, context: Context) -> None:
    """The version of this program, of Python, and of the libraries it uses."""
    libraries = {name: metadata.version(name) for name in _LIBRARIES}
    document = {"schema": 1, "version": __version__, "python": platform.python_version(), "libraries": libraries}
    lines = [f"clipper-backup {__version__}", f"python {platform.python_version()}"]
    context.answer(document, "\n".join([*lines, *(f"{name} {number}" for name, number in libraries.items())]))
