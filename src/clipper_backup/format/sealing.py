"""age files as generators over chunks: sealed to recipients, opened with identities (docs/design/sealing.md)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyrage
from pyrage import x25519

from clipper_backup.errors import AccessError, IntegrityError, UsageError
from clipper_backup.feed import Sink, Source, converted

_NO_KEY = "No matching keys found"


@dataclass(frozen=True, slots=True)
class Identity:
    """A secret key that opens what was sealed to its `recipient`; it never shows itself."""

    key: x25519.Identity
    recipient: str

    @classmethod
    def make(cls) -> "Identity":
        """A new one, from the operating system's randomness."""
        key = x25519.Identity.generate()
        return cls(key, str(key.to_public()))

    @classmethod
    def parse(cls, text: str) -> "Identity":
        """Read `AGE-SECRET-KEY-1…`; UsageError, without the text, when it is none."""
        try:
            key = x25519.Identity.from_str(text)
        except pyrage.IdentityError:
            raise UsageError("not an age identity", hints=["an identity looks like AGE-SECRET-KEY-1…"]) from None
        return cls(key, str(key.to_public()))

    def reveal(self) -> str:
        """The secret key as text, for the file it is written to."""
        return str(self.key)

    def __repr__(self) -> str:
        return f"Identity({self.recipient})"


def check_recipient(text: str) -> str:
    """*text*, when it is a recipient that can be sealed to; UsageError otherwise."""
    if "AGE-SECRET-KEY-" in text.upper():
        raise UsageError(
            "a recipient is a secret key: it must not stand there",
            hints=[
                "`age-keygen -y FILE` prints its recipient, age1…",
                "whoever could read it until now can read what was sealed to it",
            ],
        )
    try:
        x25519.Recipient.from_str(text)
    except pyrage.RecipientError:
        raise UsageError(
            f"not an age recipient: {text!r}",
            hints=[
                "a recipient looks like age1… and has 62 characters; `clipper-backup key generate` makes one with its identity"
            ],
        ) from None
    return text


def seal(chunks: Iterable[bytes], recipients: Sequence[str]) -> Iterator[bytes]:
    """One age file that each of the *recipients* can open."""
    keys = [x25519.Recipient.from_str(text) for text in recipients]
    return converted(chunks, lambda source, sink: pyrage.encrypt_io(source, sink, keys))


def unseal(chunks: Iterable[bytes], identities: Sequence[Identity], name: str) -> Iterator[bytes]:
    """The content of an age file, authenticated piece by piece.

    AccessError when none of the *identities* opens it; IntegrityError naming *name* when it is damaged, cut short or followed
    by more.
    """
    keys = [identity.key for identity in identities]

    def decrypt(source: Source, sink: Sink) -> None:
        try:
            pyrage.decrypt_io(source, sink, keys)
        except (pyrage.DecryptError, OSError) as error:  # of the bytes: what the chunks themselves raise never comes here
            if _NO_KEY in str(error):
                raise AccessError(f"{name} is sealed to other keys") from None
            raise IntegrityError(f"{name} is damaged, it cannot be decrypted: {str(error).partition(chr(10))[0]}") from error

    yield from converted(chunks, decrypt)


HEAD_BYTES = 128 << 10
"""What `unseal_head` needs of an object: age authenticates 64 KiB at a time, behind a header of its own."""


def unseal_head(data: bytes, identities: Sequence[Identity], name: str) -> bytes:
    """What the first bytes of an age file hold, as far as its pieces of 64 KiB lie in *data* whole; each is authenticated.

    Errors as of `unseal`, where not even the first one does.
    """
    sink = Sink()
    try:
        pyrage.decrypt_io(Source(iter([data])), sink, [identity.key for identity in identities])
    except (pyrage.DecryptError, OSError) as error:
        if _NO_KEY in str(error):
            raise AccessError(f"{name} is sealed to other keys") from None
        if not (head := sink.take()):
            raise IntegrityError(f"{name} is damaged, it cannot be decrypted: {str(error).partition(chr(10))[0]}") from error
        return head
    return sink.take()
