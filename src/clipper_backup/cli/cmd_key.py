"""`key …`: the keys that dumps are sealed to and signed with."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from clipper_backup.cli.app import group
from clipper_backup.cli.context import Context
from clipper_backup.cli.tables import pairs, table
from clipper_backup.errors import ClipperError, IncompleteError, UsageError
from clipper_backup.ops.keys import read_identities, read_key_file, signing_key_of
from clipper_backup.ops.work import open_work
from clipper_backup.values import json_time, show_count, show_time

if TYPE_CHECKING:
    from clipper_backup.ops.key_check import Needed, Tried

app = group("key", "The keys that dumps are sealed to and signed with.")


@app.command
def generate(
    *,
    output: Annotated[Path, Parameter(help="the file to make, for its owner only; an existing one is left alone")],
    signing: Annotated[bool, Parameter(help="a key that signs dumps, not one that opens them")] = False,
    context: Context,
) -> None:
    """Make a secret key in a file, and print the public one that belongs into the settings."""
    from clipper_backup.format.sealing import Identity
    from clipper_backup.format.signing import SigningKey

    if signing:
        key = SigningKey.make()
        _write_secret(output, key.reveal())
        public, setting = key.public, "SIGNATURE_KEYS"
        text = [
            ("signs", f"SIGNING_KEY_FILE={output}, only where dumps are made"),
            ("trusted", f"{setting}={public}, wherever they are restored"),
        ]
    else:
        identity = Identity.make()
        made = context.clock.now().isoformat(timespec="seconds")
        _write_secret(output, f"# created: {made}\n# public key: {identity.recipient}\n{identity.reveal()}\n".encode())
        public, setting = identity.recipient, "ENCRYPTION_RECIPIENTS"
        text = [
            ("seals", f"{setting}={public}, where dumps are made"),
            ("opens", f"ENCRYPTION_IDENTITY_FILE={output}, only where they are restored"),
        ]
    context.answer(
        {"schema": 1, "id": public, "setting": setting, "path": str(output)},
        pairs([("secret", f"{output}: whoever has it can {'sign' if signing else 'read'} dumps; keep a copy offline"), *text]),
    )


def _write_secret(path: Path, data: bytes) -> None:
    """A new file that only its owner reads, on disk when this returns; nothing when that fails."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UsageError(f"{path} exists already: keys are never overwritten", hints=["give --output another name"]) from None
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _cannot_write(path, error) from error
        raise


def _cannot_write(path: Path, error: OSError) -> ClipperError:
    hint = f"--output names a new file in a folder that is there, has room, and that we may write into: is {path.parent} one?"
    return ClipperError(f"cannot write {path}: {error.strerror}", hints=[hint])


@app.command
def public(
    file: Annotated[Path, Parameter(help="the file with the secret key, of either kind")],
    /,
    *,
    pem: Annotated[bool, Parameter(help="a signing key's in PEM, as openssl wants it")] = False,
    context: Context,
) -> None:
    """Print the public key of a secret one: what belongs into ENCRYPTION_RECIPIENTS or SIGNATURE_KEYS."""
    settings = replace(context.settings, signing_key_file=file)
    if b"PRIVATE KEY" in read_key_file(file):
        key = signing_key_of(settings)
        assert key is not None  # noqa: S101  its file is set
        items, text = [key.public], key.public_pem().decode() if pem else f"{key.public}\n"
    elif pem:
        raise UsageError(f"{file} holds no signing key: only those have a form in PEM")
    else:
        items = [identity.recipient for identity in read_identities(file)]
        text = "".join(f"{recipient}\n" for recipient in items)
    context.answer({"schema": 1, "items": [{"id": item} for item in items]}, text)


@app.command
def check(*, identity: Annotated[Path, Parameter(help="the file with the secret key")], context: Context) -> None:
    """Show that a key opens the newest dump, base backup and segment of WAL, with that key alone, and record it.

    Exit 12 when one of them does not open, 13 when one is damaged.
    """
    from clipper_backup.ops.key_check import check_key

    work = open_work(context.settings, context.clock, context.emit, read_only=False)
    checked = check_key(work, identity)
    dump = next((each.newest for each in checked.tried if each.newest.kind == "dump"), None)
    context.answer(
        {
            "schema": 1,
            "items": [{"id": recipient} for recipient in checked.recipients],
            "dump": None if dump is None else dump.name,
            "objects": 0 if dump is None else dump.objects,
            "newest": [
                {
                    "kind": each.newest.kind,
                    "name": each.newest.name,
                    "at": json_time(each.newest.at),
                    "keys": list(each.recipients),
                    "problem": None if each.problem is None else str(each.problem),
                }
                for each in checked.tried
            ],
            "recorded": checked.recorded,
        },
        "".join(_tried(each) for each in checked.tried),
    )
    checked.raise_problem()


def _tried(tried: "Tried") -> str:
    newest = tried.newest
    if tried.problem is not None:
        return f"NOT opened: {newest.title}, of {show_time(newest.at)}: {tried.problem}\n"
    return "".join(f"{key} opens {newest.title}, of {show_time(newest.at)}: {newest.part}\n" for key in tried.recipients)


@app.command
def rotate(*, context: Context) -> None:
    """Which key is needed for which backups, after ENCRYPTION_RECIPIENTS changed; old ones stay sealed to the old keys."""
    from clipper_backup.ops.key_check import keys_needed

    work = open_work(context.settings, context.clock, context.emit, read_only=True, unsigned=True)
    rotation = keys_needed(work)
    items = [
        {
            "id": key.recipient,
            "configured": key.configured,
            "dumps": [str(dump_id) for dump_id in key.dumps],
            "base_backups": [str(backup_id) for backup_id in key.base_backups],
            "checked_at": None if key.checked_at is None else json_time(key.checked_at),
        }
        for key in rotation.keys
    ]
    rows = [
        (
            key.recipient,
            str(len(key.dumps)),
            str(len(key.base_backups)),
            _needed(key),
            "never" if key.checked_at is None else show_time(key.checked_at),
        )
        for key in rotation.keys
    ]
    head = ("KEY", "DUMPS", "BASE BACKUPS", "NEEDED", "CHECKED")
    text = table(head, rows, right=("DUMPS", "BASE BACKUPS")) + _REVOKED
    if any(key.base_backups for key in rotation.keys):
        text += _WAL_TOO
    context.answer({"schema": 1, "items": items}, text if items else "nothing is sealed, and ENCRYPTION_RECIPIENTS is not set\n")
    if rotation.unread:
        raise IncompleteError(
            f"{show_count(len(rotation.unread), 'backup is not counted', 'backups are not counted')},"
            f" their summaries cannot be read: {rotation.unread[-1]} …",
            hints=["destroy no key while they are there"],
        )


_REVOKED = "Nothing is revoked: whoever has a copy of a backup and its key can read it for ever.\n"
_WAL_TOO = (
    "WAL opens with the keys that its archiver had: an old key is needed until the window begins behind the moment at which\n"
    "every archiver had the new ones. `clipper-backup wal verify --read-data` with the new key alone names what\n"
    "needs another one (exit 12). Histories of timelines stay sealed to it for ever: with a newer base backup no restore needs\n"
    "them.\n"
)


def _needed(key: "Needed") -> str:
    if key.configured:
        return "for the next backup too"
    newest = [*key.dumps[-1:], *key.base_backups[-1:]]
    return f"as long as any of its backups is kept, the newest: {' and '.join(map(str, newest))}"
