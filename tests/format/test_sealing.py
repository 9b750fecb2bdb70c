"""age files: what any age opens, what none of ours opens wrongly, and what a stock `age` makes of them."""

import random
import subprocess
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipper_backup.errors import AccessError, IntegrityError, StoppedError, UsageError
from clipper_backup.format.sealing import Identity, check_recipient, seal, unseal, unseal_head

MINE, OTHER = Identity.make(), Identity.make()
CHUNK = 64 << 10
"""age's own: a tag stands behind each."""


def sealed(data: bytes, *identities: Identity) -> bytes:
    return b"".join(seal([data], [identity.recipient for identity in identities]))


def opened(data: bytes | Sequence[bytes], *identities: Identity) -> bytes:
    return b"".join(unseal([data] if isinstance(data, bytes) else data, identities, "this"))


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3 * CHUNK), st.lists(st.integers(0, 10**6), max_size=5), st.lists(st.integers(0, 10**6), max_size=5))
def test_what_is_sealed_opens_however_it_is_cut(size: int, places: list[int], others: list[int]) -> None:
    data = bytes(n % 251 for n in range(size))
    stored = b"".join(seal(cut(data, places), [MINE.recipient, OTHER.recipient]))

    assert opened(cut(stored, others), MINE) == data
    assert opened(stored, OTHER) == data


def test_another_key_does_not_open_it() -> None:
    with pytest.raises(AccessError, match="this is sealed to other keys"):
        opened(sealed(b"secret", MINE), OTHER)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_every_cut_and_every_flip_is_found(size: int) -> None:
    stored = sealed(bytes(size), MINE)
    header = stored.index(b"\n---") + 49
    cuts = {0, 1, header - 1, header, header + 15, header + 16, header + 17, len(stored) - 17, len(stored) - 16, len(stored) - 1}
    cuts |= {header + 16 + n * (CHUNK + 16) for n in range(4)}
    for end in cuts:
        if 0 <= end < len(stored):
            with pytest.raises(IntegrityError, match="this"):
                opened(stored[:end], MINE)
    for place in range(0, len(stored), max(1, len(stored) // 50)):
        flipped = stored[:place] + bytes([stored[place] ^ 1]) + stored[place + 1 :]
        with pytest.raises((IntegrityError, AccessError), match="this"):
            opened(flipped, MINE)


@pytest.mark.parametrize("more", [b"x", b"x" * CHUNK])
def test_nothing_may_follow(more: bytes) -> None:
    with pytest.raises(IntegrityError, match="this is damaged, it cannot be decrypted"):
        opened(sealed(b"secret", MINE) + more, MINE)


def test_two_files_of_the_same_content_have_nothing_in_common() -> None:
    one, other = sealed(bytes(CHUNK), MINE), sealed(bytes(CHUNK), MINE)
    assert one[-CHUNK:] != other[-CHUNK:]


def test_what_the_chunks_raise_passes_through_and_nobody_waits() -> None:
    def broken() -> Iterator[bytes]:
        yield bytes(5 << 20)
        raise StoppedError(15)

    with pytest.raises(StoppedError):
        for _ in seal(broken(), [MINE.recipient]):
            pass


def test_a_stock_age_opens_ours_and_we_open_its(tmp_path: Path) -> None:
    identity = tmp_path / "identity"
    subprocess.run(["age-keygen", "-o", identity], check=True, capture_output=True)
    secret = next(line for line in identity.read_text().splitlines() if line.startswith("AGE-SECRET-KEY-"))
    theirs = Identity.parse(secret)
    data = bytes(range(256)) * 1000
    said = subprocess.run(["age", "-d", "-i", identity], input=sealed(data, MINE, theirs), capture_output=True, check=True)
    assert said.stdout == data
    made = subprocess.run(["age", "-r", theirs.recipient], input=data, capture_output=True, check=True)
    assert opened(made.stdout, theirs) == data


def test_a_key_shows_only_its_public_half() -> None:
    assert MINE.reveal() not in f"{MINE!r} {MINE} {[MINE]}"
    assert MINE.recipient in repr(MINE)
    assert Identity.parse(MINE.reveal()).recipient == MINE.recipient


def test_what_is_no_identity_is_not_repeated() -> None:
    for text in ("", "age1", "hunter2", MINE.reveal()[:-1], MINE.reveal().replace("1", "2", 1)):
        with pytest.raises(UsageError, match="not an age identity") as caught:
            Identity.parse(text)
        assert not text or text not in f"{caught.value} {caught.value.hints}"


def test_what_is_no_recipient() -> None:
    for text in ("", "age1", "ssh-ed25519 AAAA", MINE.recipient[:-1], MINE.recipient[:-1] + "b"):
        with pytest.raises(UsageError, match="not an age recipient"):
            check_recipient(text)
    with pytest.raises(UsageError, match="is a secret key") as caught:
        check_recipient(MINE.reveal())
    assert MINE.reveal() not in f"{caught.value} {caught.value.hints}"
    assert check_recipient(MINE.recipient) == MINE.recipient


def test_the_head_of_an_age_file_is_opened_without_the_rest() -> None:
    content = random.Random(1).randbytes(200_000)
    whole = sealed(content, MINE)
    assert unseal_head(whole, [MINE], "x") == content
    head = unseal_head(whole[:140_000], [MINE], "x")
    assert len(head) == 2 * CHUNK, "two whole pieces"
    assert content.startswith(head)
    assert unseal_head(whole[:140_000] + b"other bytes", [MINE], "x") == head
    with pytest.raises(AccessError, match="x is sealed to other keys"):
        unseal_head(whole[:140_000], [OTHER], "x")
    for damaged in (whole[:100], whole[:60_000], b"", whole[:1000] + bytes(1) + whole[1001:140_000]):
        with pytest.raises(IntegrityError, match="x is damaged"):
            unseal_head(damaged, [MINE], "x")
