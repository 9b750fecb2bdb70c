"""Signatures: made by one key, refused for any other byte or key, and the same that openssl makes and checks."""

import subprocess
from pathlib import Path

import pytest

from clipper_backup.errors import UsageError
from clipper_backup.format.signing import SigningKey, check_public, signer

KEY, OTHER = SigningKey.make(), SigningKey.make()
DOCUMENT = b'{"id": "postgres-backup-20261122-020000"}\n'


def test_a_signature_names_the_trusted_key_that_made_it() -> None:
    signature = KEY.sign(DOCUMENT)
    assert len(signature) == 64
    assert signer(DOCUMENT, signature, [OTHER.public, KEY.public]) == KEY.public


@pytest.mark.parametrize("trusted", [[], [OTHER.public]])
def test_no_other_key_made_it(trusted: list[str]) -> None:
    assert signer(DOCUMENT, KEY.sign(DOCUMENT), trusted) is None


def test_no_other_bytes_were_signed() -> None:
    signature = KEY.sign(DOCUMENT)
    for other in (b"", DOCUMENT[:-1], DOCUMENT + b"\n", DOCUMENT.replace(b"2026", b"2027")):
        assert signer(other, signature, [KEY.public]) is None
    for place in range(64):
        flipped = signature[:place] + bytes([signature[place] ^ 1]) + signature[place + 1 :]
        assert signer(DOCUMENT, flipped, [KEY.public]) is None
    for other in (b"", signature[:-1], signature + b"\0"):
        assert signer(DOCUMENT, other, [KEY.public]) is None


def test_openssl_checks_ours_and_we_take_its_keys(tmp_path: Path) -> None:
    private, public, document, signature = (tmp_path / name for name in ("private", "public", "document", "signature"))
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    key = SigningKey.parse(private.read_bytes())
    assert SigningKey.parse(key.reveal()).public == key.public
    public.write_bytes(key.public_pem())
    document.write_bytes(DOCUMENT)
    signature.write_bytes(key.sign(DOCUMENT))
    check = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(public), "-rawin", "-in", str(document)]
    check += ["-sigfile", str(signature)]
    subprocess.run(check, check=True, capture_output=True)
    document.write_bytes(DOCUMENT + b" ")
    assert subprocess.run(check, check=False, capture_output=True).returncode == 1


def test_a_key_shows_only_its_public_half() -> None:
    secret = KEY.reveal().decode().splitlines()[1]
    assert secret not in f"{KEY!r} {KEY} {[KEY]}"
    assert KEY.public in repr(KEY)


def test_what_is_no_private_key_is_not_repeated(tmp_path: Path) -> None:
    protected = ["openssl", "genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:hunter2"]
    rsa = ["openssl", "genpkey", "-algorithm", "rsa", "-pkeyopt", "rsa_keygen_bits:1024"]
    others = [subprocess.run(command, capture_output=True, check=True).stdout for command in (protected, rsa)]
    for pem in (b"", b"hunter2", KEY.public_pem(), KEY.reveal()[:-40], *others):
        with pytest.raises(UsageError, match="not an Ed25519 private key") as caught:
            SigningKey.parse(pem)
        assert "hunter2" not in f"{caught.value} {caught.value.hints}"


def test_what_is_no_public_key() -> None:
    bare = KEY.public.removeprefix("ed25519:")
    for text in ("", "ed25519:", KEY.public[:-1], KEY.public + "A", bare, "ed25519:" + "*" * 43):
        with pytest.raises(UsageError, match="not a public signing key"):
            check_public(text)
    assert check_public(KEY.public) == KEY.public
