"""The exit codes, as the error classes declare them."""

from clipper_backup.errors import StoppedError, every_error


def exit_codes() -> list[tuple[str, str]]:
    """Every exit code with its meaning, in order: for help pages, and for docs/reference/exit-codes.md."""
    meanings = {0: "done"}
    for error in every_error():
        if not issubclass(error, StoppedError):
            meanings.setdefault(error.exit_code, error.meaning)
    return [*((str(code), meaning) for code, meaning in sorted(meanings.items())), ("128 + n", "ended by signal n")]
