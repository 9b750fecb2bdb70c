"""Which keys a command works with, by its settings: to whom it seals, what it can open, whose signature it trusts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from clipper_backup.config import Settings
from clipper_backup.errors import AccessError, ClipperError, MissingError, UsageError
from clipper_backup.format import names
from clipper_backup.kinds import NONE

if TYPE_CHECKING:
    from clipper_backup.format.sealing import Identity
    from clipper_backup.format.signing import SigningKey
    from clipper_backup.repository.dumps import Last, Opener

_ENCRYPTED = (b"age-encryption.org/", b"-----BEGIN AGE ENCRYPTED FILE-----")


@dataclass(frozen=True, slots=True)
class Sealer:
    """Seals to `recipients` and to an identity of this run's `own`, with which it reads back what it wrote."""

    recipients: tuple[str, ...]
    own: "Identity"

    def seal(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """One age file."""
        from clipper_backup.format.sealing import seal  # noqa: PLC0415  only sealed dumps need it

        return seal(chunks, (*self.recipients, self.own.recipient))

    def seal_away(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """One age file that this run cannot open either."""
        from clipper_backup.format.sealing import seal  # noqa: PLC0415  only sealed archives need it

        return seal(chunks, self.recipients)

    def unseal(self, chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
        """What `seal` sealed in this run."""
        from clipper_backup.format.sealing import unseal  # noqa: PLC0415  only sealed dumps need it

        return unseal(chunks, [self.own], name)


def sealer_of(settings: Settings) -> Sealer | None:
    """How to seal, None for plain dumps. UsageError when a setting speaks of encryption and there is nobody to seal to."""
    wanted = settings.encryption_recipients
    if wanted == (NONE,):
        return None
    if not wanted:
        if settings.encryption_identity_file is not None:
            raise UsageError(
                "ENCRYPTION_IDENTITY_FILE is set, and there are no ENCRYPTION_RECIPIENTS to seal to: nothing is dumped plain",
                hints=["set ENCRYPTION_RECIPIENTS to the age1… keys, or to `none` for plain dumps"],
            )
        return None
    from clipper_backup.format.sealing import Identity, check_recipient  # noqa: PLC0415  only sealed dumps need it

    with _named("ENCRYPTION_RECIPIENTS"):
        recipients = tuple(check_recipient(text) for text in wanted)
    return Sealer(recipients, Identity.make())


def opener_of(settings: Settings, recipients: Sequence[str]) -> "Opener":
    """What opens the objects of a dump that is sealed to *recipients*, with ENCRYPTION_IDENTITY_FILE.

    It raises AccessError when there is no identity, or not the one it takes, and reads the chunks to their end even then:
    whoever compares their hash learns whether it is the key that is wrong, or the bytes.
    """

    def opened(chunks: Iterable[bytes], key: str) -> Iterator[bytes]:
        if not names.is_sealed(key):
            yield from chunks
            return
        if settings.encryption_identity_file is None:
            raise AccessError(f"{key} is sealed, and there is no identity to open it", hints=IDENTITY_HINTS)
        identities = read_identities(settings.encryption_identity_file)
        source = iter(chunks)
        try:
            yield from opened_with(identities, source, key)
        except AccessError as error:
            for _ in source:
                pass
            have = ", ".join(identity.recipient for identity in identities)
            raise AccessError(
                f"{error.message}: {settings.encryption_identity_file} holds {have}",
                hints=[f"it is sealed to {', '.join(recipients) or 'keys that its summary does not name'}"],
            ) from error

    return opened


def opened_with(identities: "Sequence[Identity]", chunks: Iterable[bytes], key: str) -> Iterator[bytes]:
    """The *chunks* of the object at *key*, opened with one of the *identities* if it is sealed; AccessError when none does."""
    from clipper_backup.format.sealing import unseal  # noqa: PLC0415  only sealed dumps need it

    return unseal(chunks, identities, key) if names.is_sealed(key) else iter(chunks)


IDENTITY_HINTS = ("set ENCRYPTION_IDENTITY_FILE to the file with the identity of the operator, or with the recovery key",)


@lru_cache(maxsize=8)  # a pipe can be read only once
def read_identities(path: Path) -> "tuple[Identity, ...]":
    """The identities in a file as age-keygen writes it. UsageError for anything else, without what stands there."""
    from clipper_backup.format.sealing import Identity  # noqa: PLC0415  only sealed dumps need it

    data = read_key_file(path, "a dump opens with any key that it is sealed to: the operator's, or the recovery key")
    if data.startswith(_ENCRYPTED):
        raise UsageError(
            f"the identity in {path} is itself encrypted with a passphrase",
            hints=[f"decrypt it into memory: `(umask 077; age -d {path} > /dev/shm/identity)`, and remove that afterwards"],
        )
    identities = []
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        if (text := line.strip()) and not text.startswith("#"):
            with _named(f"{path}, line {number}"):
                identities.append(Identity.parse(text))
    if not identities:
        raise UsageError(f"there is no identity in {path}", hints=["`clipper-backup key generate` makes one"])
    return tuple(identities)


def signing_key_of(settings: Settings) -> "SigningKey | None":
    """The key that signs dumps, None when they are not signed."""
    if settings.signing_key_file is None or settings.signing_key_file == Path(NONE):
        return None
    from clipper_backup.format.signing import SigningKey  # noqa: PLC0415  only signed dumps need it

    data = read_key_file(
        settings.signing_key_file, "to read dumps, SIGNATURE_KEYS with the public key does instead of SIGNING_KEY_FILE"
    )
    with _named(str(settings.signing_key_file)):
        return SigningKey.parse(data)


def trusted_of(settings: Settings) -> tuple[str, ...]:
    """The public keys of which one must have signed a dump; none when signatures do not matter.

    SIGNATURE_KEYS; where only the signing key is known, its own. So whoever reads needs no secret.
    """
    if not settings.signature_keys:
        signing = signing_key_of(settings)
        return () if signing is None else (signing.public,)
    from clipper_backup.format.signing import check_public  # noqa: PLC0415  only signed dumps need it

    with _named("SIGNATURE_KEYS"):
        return tuple(check_public(text) for text in settings.signature_keys)


def check_may_sign(settings: Settings, signed_by: str | None) -> None:
    """UsageError when WAL beside a backup that was *signed_by* somebody would be archived unsigned: readers would refuse it."""
    if signed_by is not None and settings.signing_key_file is None:
        raise UsageError(
            "the backup is signed, and there is no SIGNING_KEY_FILE to sign what is archived: later restores would refuse it",
            hints=["mount the signing key and set SIGNING_KEY_FILE", "or set it to `none`, if WAL is to be unsigned from now on"],
        )


def signer_of(settings: Settings) -> "SigningKey | None":
    """The key that signs the next dump; UsageError when readers would not take its signature."""
    signing, trusted = signing_key_of(settings), trusted_of(settings)
    if signing is None and trusted:
        raise UsageError(
            "SIGNATURE_KEYS asks for signed dumps, and there is no SIGNING_KEY_FILE: whoever restores would refuse the next one",
            hints=["mount the signing key and set SIGNING_KEY_FILE, or leave SIGNATURE_KEYS out"],
        )
    if signing is not None and signing.public not in trusted:
        raise UsageError(
            f"SIGNING_KEY_FILE signs as {signing.public}, which is none of SIGNATURE_KEYS: whoever restores would refuse it",
            hints=["add it to SIGNATURE_KEYS, or name another file"],
        )
    return signing


def read_key_file(path: Path, *hints: str) -> bytes:
    """What stands in a file with a key; no error repeats it. *hints* say what may stand in for one that is missing."""
    if "AGE-SECRET-KEY-" in str(path).upper():
        raise UsageError(
            "a secret key was given where the path of its file is needed",
            hints=["it is in your shell's history now: make another"],
        )
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise MissingError(
            f"there is no key file {path}",
            hints=["is the Secret mounted?", *hints],
        ) from error
    except PermissionError as error:
        raise AccessError(
            f"the key file {path} may not be read by us", hints=["its owner and mode: `ls -l` shows them"]
        ) from error
    except OSError as error:
        hint = "name the file itself, the one that `clipper-backup key generate --output` made"
        raise ClipperError(f"cannot read the key file {path}: {error.strerror}", hints=[hint]) from error


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Say in a UsageError where the text stood that made no sense."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", hints=error.hints) from None


def check_meant(
    settings: Settings, sealer: Sealer | None, signing: "SigningKey | None", what: str, last: Callable[[], "Last | None"]
) -> None:
    """UsageError when backups were sealed or signed until now and nobody said that they no longer are to be.

    What is plain anybody can read (S2); what is unsigned readers would refuse. *what* is their kind, *last* asks for the newest.
    """
    plain = sealer is None and not settings.encryption_recipients
    unsigned = signing is None and settings.signing_key_file is None
    newest = last() if plain or unsigned else None
    if newest is None:
        return
    if plain and newest.sealed:
        raise UsageError(
            f"the newest {what}, {newest.id}, is sealed, and there are no ENCRYPTION_RECIPIENTS to seal the next one to",
            hints=[  # without the keys that the store names: anybody may have put them there
                "set ENCRYPTION_RECIPIENTS to the keys that stood there until now",
                f"or to `none`, if plain {what}s are meant from now on",
            ],
        )
    if unsigned and newest.signed:
        raise UsageError(
            f"the newest {what}, {newest.id}, is signed, and there is no SIGNING_KEY_FILE to sign the next one with",
            hints=[
                "set SIGNING_KEY_FILE to the key that stood there until now",
                f"or to `none`, if {what}s are to be unsigned from now on",
            ],
        )
