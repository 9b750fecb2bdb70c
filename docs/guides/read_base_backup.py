"""Put a base backup together without clipper-backup: this file, Python, zstandard, and where it is sealed cryptography and age.

    python3 read_base_backup.py BUCKET ID TARGET [IDENTITY]

BUCKET is a copy of the bucket as a folder, TARGET a new folder that becomes the data directory; tablespaces go below
TARGET.tablespaces, files that lay outside below TARGET.outside. IDENTITY is the file with the secret age key of a sealed backup.
With blake3 installed, every digest is compared. Written from docs/design/repository-format.md alone; `§` names its headings.
"""

import base64
import hashlib
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

try:
    from backports.zstd import ZstdDecompressor as Decompressor  # in Python 3.14: compression.zstd
except ImportError:
    from zstandard import ZstdDecompressor

    Decompressor = ZstdDecompressor().decompressobj
try:
    from blake3 import blake3
except ImportError:
    blake3 = None

HEAD = struct.Struct("<8sIIIIIIQ32sQ")  # of a page map
PAGES, SMALL, MAP = 1, 2, 3  # § Packs: kinds of frames


def check(holds: object, what: str) -> None:
    """End here unless it *holds*."""
    if not holds:
        sys.exit(f"{what} is damaged, or not what this program can read")


def unsealed(name: str) -> bytes:
    """An object, opened with age where its name says that it is sealed."""
    if not name.endswith(".age"):
        return (BUCKET / name).read_bytes()
    return subprocess.run(["age", "--decrypt", "--identity", IDENTITY, BUCKET / name], stdout=subprocess.PIPE, check=True).stdout


def committed(role: str) -> bytes:
    """The plaintext of an object that backup.json commits (§ Base backup: documents)."""
    each = next(each for each in SUMMARY["objects"] if each["role"] == role)
    check(hashlib.sha256((BUCKET / each["key"]).read_bytes()).hexdigest() == each["sha256"], each["key"])
    return Decompressor().decompress(unsealed(each["key"]))


@cache
def data_key(run: str) -> tuple[bytes, bytes]:
    """The key of a run's frames, and the repository id that they were sealed with."""
    document = json.loads(unsealed(f"keys/{run}.age"))
    return bytes.fromhex(document["key"]), bytes.fromhex(document["repository_id"])


@lru_cache(maxsize=8)  # many small files lie in one
def frame(kind: int, pack: str, offset: int, stored_bytes: int, plain_bytes: int, number: int, digest: str) -> bytes:
    """The plaintext of the frame that a reference names (§ Frames, § References)."""
    with (BUCKET / "packs" / pack).open("rb") as file:
        file.seek(offset)
        data = file.read(stored_bytes)
    check(blake3 is None or blake3(data).hexdigest(length=16) == digest, f"packs/{pack}, frame {number}")
    if SUMMARY["recipients"]:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  only sealed backups need it

        key, repository = data_key(pack[:24])
        associated = b"clbkfrm1" + struct.pack("<IQ", kind, number) + repository + pack[:24].encode()
        data = AESGCM(key).decrypt(bytes(4) + number.to_bytes(8, "big"), data, associated)
    plain = Decompressor().decompress(data)
    check(len(plain) == plain_bytes, f"packs/{pack}, frame {number}")
    return plain


def stretch(reference: list[Any]) -> bytes:
    """A stretch of a file, put together from its pages (§ Page maps)."""
    data = frame(MAP, *reference)
    magic, page_bytes, pages, last_bytes, frames, runs, flags, _, digest, reserved = HEAD.unpack_from(data)
    whole = len(data) == 80 + 14 * pages + 44 * frames + 24 * runs
    check(magic == b"clbkmap1" and flags < 2 and reserved == 0 and whole, f"the page map {reference}")
    at = 80 + 8 * pages
    of = struct.unpack_from(f"<{pages}I", data, at)
    places = struct.unpack_from(f"<{pages}H", data, at + 4 * pages)
    at += 6 * pages
    numbers = struct.unpack_from(f"<{frames}Q", data, at)
    packs, offsets, stored, plain, run_of = (struct.unpack_from(f"<{frames}I", data, at + (8 + 4 * n) * frames) for n in range(5))
    digests = [data[n : n + 16].hex() for n in range(at + 28 * frames, at + 44 * frames, 16)]
    run_ids = [data[n : n + 24].decode() for n in range(at + 44 * frames, len(data), 24)]
    names = [f"{run_ids[run]}/{pack:08d}" for run, pack in zip(run_of, packs, strict=True)]
    opened = [frame(PAGES, *each) for each in zip(names, offsets, stored, plain, numbers, digests, strict=True)]
    content = bytearray()
    for number, (row, place) in enumerate(zip(of, places, strict=True)):
        length = last_bytes if number == pages - 1 else page_bytes
        page = bytes(length) if row == 0xFFFFFFFF else opened[row][place * page_bytes : place * page_bytes + length]
        check(len(page) == length, f"the page map {reference}")
        content += page
    check(blake3 is None or not flags or blake3(content).digest() == digest, f"the stretch {reference}")
    return bytes(content)


def contents(line: dict[str, Any]) -> Iterator[bytes]:
    """The content of a file."""
    if "small" in line:
        reference, start, digest = line["small"]
        content = frame(SMALL, *reference)[start : start + line["size_bytes"]]
        check(blake3 is None or blake3(content).hexdigest() == digest, f"the small file in {reference}")
        yield content
    yield from map(stretch, line.get("maps", []))


def restore(line: dict[str, Any]) -> None:
    """One line of the manifest."""
    path = line.get("path") or os.fsdecode(base64.b64decode(line["path_base64"]))
    outside = line["kind"] == "outside"
    check(path.startswith("/") == outside and not {"", ".", ".."} & set(path.removeprefix("/").split("/")), f"the path {path}")
    target = Path(f"{TARGET}.outside{path}") if outside else TARGET / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if line["kind"] == "folder":
        target.mkdir(mode=0o700)
    elif line["kind"] == "tablespace":
        place = Path(f"{TARGET}.tablespaces", target.name)
        place.mkdir(mode=0o700, parents=True)
        target.symlink_to(place)
    else:
        with target.open("xb") as file:
            file.writelines(contents(line))
            check(file.tell() == line["size_bytes"], str(target))
        target.chmod(line["mode"])


BUCKET, ID, TARGET, IDENTITY = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]).absolute(), "".join(sys.argv[4:5])
SUMMARY = json.loads((BUCKET / "base" / ID / "backup.json").read_bytes())
TARGET.mkdir(mode=0o700)
head, *lines, foot = committed("manifest").splitlines()
check(json.loads(head)["id"] == ID and json.loads(foot)["lines"] == len(lines), "the manifest")
for line in lines:
    restore(json.loads(line))
(TARGET / "backup_label").write_bytes(committed("label"))
(TARGET / "backup_manifest").write_bytes(committed("server_manifest"))
if places := sorted(Path(f"{TARGET}.tablespaces").glob("*")):  # instead of the server's own, by which they lay elsewhere
    (TARGET / "tablespace_map").write_text("".join(f"{place.name} {place}\n" for place in places))
print(f"{len(lines)} files and folders in {TARGET}; recovery begins with the segment {SUMMARY['first_segment']}")
