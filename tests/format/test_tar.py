import io
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipper_backup.format.tar import tar_of_folder

BLOCK = 512

members = st.dictionaries(
    st.text("abcdefghijklmnopqrstuvwxyz0123456789._", min_size=1, max_size=150).filter(lambda name: name.strip(".")),
    st.lists(st.binary(max_size=2 * BLOCK), max_size=4),
    max_size=4,
)


def tar_of(files: dict[str, list[bytes]]) -> bytes:
    return b"".join(tar_of_folder((name, sum(map(len, chunks)), chunks) for name, chunks in files.items()))


@given(members)
def test_python_reads_back_every_file_in_order(files: dict[str, list[bytes]]) -> None:
    data = tar_of(files)
    assert len(data) % BLOCK == 0
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as tar:
        found = [(member.name, member.mode, tar.extractfile(member)) for member in tar]
    assert [(name, mode) for name, mode, _ in found] == [(name, 0o600) for name in files]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for name, chunks in files.items():
            content = tar.extractfile(name)
            assert content is not None
            assert content.read() == b"".join(chunks)


def test_gnu_tar_unpacks_it(tmp_path: Path) -> None:
    tar = shutil.which("tar")
    assert tar is not None
    files = {
        "toc.dat": [b"PGDMP", bytes(300)],
        "3353.dat": [bytes(range(256)) * 4],  # exactly two blocks: no padding
        "empty.dat": [],
        "blob_" + "9" * 120 + ".dat": [b"longer than a tar header's name"],
        "Fuß.dat": ["größer".encode()],
    }
    done = subprocess.run([tar, "-xf", "-"], input=tar_of(files), cwd=tmp_path, capture_output=True, check=True)
    assert done.stderr == b""
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        name: b"".join(chunks) for name, chunks in files.items()
    }


def test_a_file_larger_than_a_tar_header_can_say() -> None:
    size = 9 << 30  # eight octal thousand million are the limit of the old field
    chunks = tar_of_folder([("huge.dat", size, [b"its first bytes"])])
    header = next(chunks)
    with tarfile.open(fileobj=io.BytesIO(header + bytes(BLOCK)), mode="r|") as tar:
        member = tar.next()
    assert member is not None
    assert (member.name, member.size) == ("huge.dat", size)
    assert next(chunks) == b"its first bytes"
    with pytest.raises(ValueError, match=f"huge.dat has 15 bytes, not {size}"):
        next(chunks)


@pytest.mark.parametrize("content", [b"", b"abc", b"abcde", bytes(BLOCK)])
def test_a_file_that_changed_its_size_ends_the_archive(content: bytes) -> None:
    with pytest.raises(ValueError, match=rf"it has {len(content)} bytes, not 4"):
        list(tar_of_folder([("it", 4, [content])]))


def test_nothing_is_read_before_it_is_wanted() -> None:
    read: list[str] = []

    def content(name: str) -> Iterator[bytes]:
        read.append(name)
        yield b"x"

    tar = tar_of_folder([("one", 1, content("one")), ("two", 1, content("two"))])
    next(tar)
    assert read == []
    next(tar)
    assert read == ["one"]
