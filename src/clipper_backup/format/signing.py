"""Ed25519 signatures (RFC 8032) of documents: made with a key in PEM, checked against the public keys that are trusted.

Stock tools check them too: `openssl pkeyutl -verify -pubin -inkey FILE -rawin -in DOCUMENT -sigfile SIGNATURE`.
"""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from clipper_backup.errors import UsageError

SIGNATURE_BYTES = 64
_PREFIX = "ed25519:"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key; `public` is the text that SIGNATURE_KEYS takes. It never shows itself."""

    key: Ed25519PrivateKey
    public: str

    @classmethod
    def make(cls) -> "SigningKey":
        """A new one, from the operating system's randomness."""
        return cls._of(Ed25519PrivateKey.generate())

    @classmethod
    def parse(cls, pem: bytes) -> "SigningKey":
        """Read an unencrypted PEM file; UsageError, without its content, when it holds no Ed25519 private key."""
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError):  # TypeError: it is encrypted
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise UsageError(
                "not an Ed25519 private key in PEM without a passphrase",
                hints=["`clipper-backup key generate --signing` makes one, and so does `openssl genpkey -algorithm ed25519`"],
            )
        return cls._of(key)

    @classmethod
    def _of(cls, key: Ed25519PrivateKey) -> "SigningKey":
        raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return cls(key, _PREFIX + urlsafe_b64encode(raw).decode().rstrip("="))

    @property
    def raw(self) -> bytes:
        """The 32 bytes of its public key."""
        return raw_public(self.public)

    def reveal(self) -> bytes:
        """The private key in PEM (PKCS 8), for the file it is written to."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def public_pem(self) -> bytes:
        """The public key in PEM, for openssl."""
        return self.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, document: bytes) -> bytes:
        """The 64 bytes of the signature of exactly these bytes."""
        return self.key.sign(document)

    def __repr__(self) -> str:
        return f"SigningKey({self.public})"


def check_public(text: str) -> str:
    """*text*, when it is a public key that signatures can be checked with; UsageError otherwise."""
    _public(text)
    return text


def _public(text: str) -> Ed25519PublicKey:
    if re.fullmatch(rf"{_PREFIX}[A-Za-z0-9_-]{{43}}", text):
        with suppress(ValueError):
            return Ed25519PublicKey.from_public_bytes(urlsafe_b64decode(text.removeprefix(_PREFIX) + "="))
    raise UsageError(
        f"not a public signing key: {text!r}",
        hints=[f"it looks like {_PREFIX} and 43 characters; `clipper-backup key generate --signing` prints it"],
    )


def raw_public(text: str) -> bytes:
    """The 32 bytes of a public key as SIGNATURE_KEYS has it."""
    return _public(text).public_bytes(Encoding.Raw, PublicFormat.Raw)


def signer(document: bytes, signature: bytes, trusted: Sequence[str]) -> str | None:
    """Which of the *trusted* public keys made the *signature* of exactly these bytes; None when none of them did."""
    for text in trusted:
        try:
            _public(text).verify(signature, document)
        except InvalidSignature:
            continue
        return text
    return None
