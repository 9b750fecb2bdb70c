"""The exit codes, as the error classes declare them: for help pages and for docs/reference/exit-codes.md."""

import inspect

from clipper_backup.errors import StoppedError, WalEndError, every_error

SIGNAL_CODE = "128 + n"


def exit_codes() -> list[tuple[str, str]]:
    """Every exit code but those of `wal fetch`, with its meaning, in order."""
    meanings = {0: "done"} | {error.exit_code: error.meaning for error in every_error() if error is not WalEndError}
    return [*((str(code), meaning) for code, meaning in sorted(meanings.items())), (SIGNAL_CODE, "ended by signal n")]


def fetch_codes() -> list[tuple[str, str]]:
    """The exit codes that `wal fetch` alone has."""
    return [(str(WalEndError.exit_code), WalEndError.meaning), ("200 + n", "`wal fetch`: what is n elsewhere")]


def error_classes() -> list[tuple[str, str, str]]:
    """Every error with its exit code and what it is for, parents first."""
    return [
        *((error.__name__, str(error.exit_code), _purpose(error)) for error in every_error()),
        (StoppedError.__name__, SIGNAL_CODE, _purpose(StoppedError)),
    ]


def _purpose(error: type[BaseException]) -> str:
    return (inspect.getdoc(error) or "").split("\n")[0]
