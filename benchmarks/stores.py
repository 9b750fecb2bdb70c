"""A gigabyte through each store: our adapter against obstore alone, on the same server: one run, alternating, medians, ratios.

    python benchmarks/stores.py [--megabytes 1000] [--rounds 6] [--only s3]

obstore is called as it comes: its own part size, its own number of requests at once, no retries of ours, nothing checked.
A folder is synced by both sides (obstore's own local store does not). Google's stand-in is a small front in Python before
SeaweedFS, so its numbers compare, and say nothing about Google. Goal: throughput >= 0.9 of obstore's, both ways.
"""

import argparse
import contextlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import obstore
from obstore.store import AzureStore, GCSStore, LocalStore, ObjectStore, S3Store

from clipper_backup.clock import SystemClock
from clipper_backup.store.opening import Options, open_store
from clipper_backup.store.protocol import Store

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fixtures.azurite import azurite
from fixtures.gcs import gcs_front
from fixtures.stores import seaweed

GOAL = 0.9
_BLOCK = os.urandom(8 << 20)
_FOLDER = "bench"


@dataclass
class Pair:
    """One kind of store: ours, and obstore's client of the same place. `synced` is what a write of theirs must still do."""

    ours: Store
    theirs: ObjectStore
    their_folder: str
    synced: Callable[[str], None] = lambda _: None
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    def round(self, size_bytes: int, *, ours_first: bool) -> None:
        """Write and read one object each, and remove both."""
        sides = ["ours", "obstore"] if ours_first else ["obstore", "ours"]
        for way in ("write", "read"):
            for side in sides:
                began = time.monotonic()
                passed = getattr(self, f"_{way}_{side}")(size_bytes)
                self.seconds.setdefault((way, side), []).append(time.monotonic() - began)
                if passed != size_bytes:
                    raise SystemExit(f"{side}, {way}: {passed} bytes of {size_bytes}")
        self.ours.delete([f"{_FOLDER}/ours"])
        obstore.delete(self.theirs, f"{self.their_folder}obstore")

    def _write_ours(self, size_bytes: int) -> int:
        return self.ours.put_stream(f"{_FOLDER}/ours", blocks(size_bytes), expected_bytes=size_bytes)

    def _write_obstore(self, size_bytes: int) -> int:
        path = f"{self.their_folder}obstore"
        obstore.put(self.theirs, path, blocks(size_bytes), use_multipart=True)
        self.synced(path)
        return size_bytes

    def _read_ours(self, _: int) -> int:
        return total(self.ours.get_stream(f"{_FOLDER}/ours"))

    def _read_obstore(self, _: int) -> int:
        return total(obstore.get(self.theirs, f"{self.their_folder}obstore").stream())


def blocks(size_bytes: int) -> Iterator[bytes]:
    """So many bytes, in pieces of 8 MiB."""
    for start in range(0, size_bytes, len(_BLOCK)):
        yield _BLOCK[: min(len(_BLOCK), size_bytes - start)]


def total(pieces: Iterable[object]) -> int:
    """The bytes of all *pieces*."""
    return sum(len(piece) for piece in pieces)  # type: ignore[arg-type] # bytes, or obstore's own


def local(folder: Path) -> Pair:
    """A folder."""

    def sync(path: str) -> None:
        for each in (folder / path, (folder / path).parent):
            descriptor = os.open(each, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    folder.mkdir()
    return Pair(opened(f"file://{folder}/ours", None, {}), LocalStore(folder), "theirs/", sync)


def opened(url: str, endpoint: str | None, environment: dict[str, str], **options: object) -> Store:
    """Our store, as commands open it."""
    return open_store(
        url,
        endpoint=endpoint,
        timeout_seconds=60,
        retry_seconds=60,
        clock=SystemClock(),
        environment=environment,
        options=Options(**options),  # type: ignore[arg-type] # named by the callers
    )


def main() -> None:
    """Start the servers, run the rounds, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=6, help="an even number: each side comes first as often as second")
    parser.add_argument("--only", choices=["file", "s3", "gs", "az"])
    options = parser.parse_args()
    size_bytes = options.megabytes * 1_000_000
    folder = Path(tempfile.mkdtemp(prefix="clipper-bench-"))

    def fresh() -> Path:
        return Path(tempfile.mkdtemp(dir=folder))

    try:
        with contextlib.ExitStack() as stack:
            s3, azure = stack.enter_context(seaweed(fresh)), stack.enter_context(azurite(fresh))
            gcs = stack.enter_context(gcs_front(s3, fresh()))
            plain = {"allow_http": True}
            pairs = {
                "file": local(folder / "local"),
                "s3": Pair(
                    opened(f"s3://{s3.bucket}/{_FOLDER}", s3.endpoint, s3.environment),
                    S3Store(
                        s3.bucket,
                        endpoint=s3.endpoint,
                        access_key_id=s3.access_key,
                        secret_access_key=s3.secret_key,
                        region="us-east-1",
                        client_options=plain,
                    ),
                    f"{_FOLDER}/",
                ),
                "gs": Pair(
                    opened(f"gs://{gcs.bucket}/{_FOLDER}", gcs.endpoint, gcs.environment),
                    GCSStore(
                        gcs.bucket,
                        config={"base_url": gcs.endpoint},
                        application_credentials=gcs.environment["GOOGLE_APPLICATION_CREDENTIALS"],
                        client_options=plain,
                    ),
                    f"{_FOLDER}/",
                ),
                "az": Pair(
                    opened(f"az://{azure.bucket}/{_FOLDER}", azure.endpoint, azure.environment, azure_account=azure.account),
                    AzureStore(
                        azure.bucket,
                        account_name=azure.account,
                        account_key=azure.key,
                        endpoint=azure.endpoint,
                        client_options=plain,
                    ),
                    f"{_FOLDER}/",
                ),
            }
            chosen = {name: pair for name, pair in pairs.items() if options.only in {None, name}}
            for pair in chosen.values():
                pair.round(min(size_bytes, 64_000_000), ours_first=True)
                pair.seconds.clear()
            for number in range(options.rounds):
                for name, pair in chosen.items():
                    pair.round(size_bytes, ours_first=number % 2 == 0)
                    print(f"round {number + 1} of {options.rounds}: {name} {shown(pair)}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    revision = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    print(f"\ncommit {revision or 'unknown'}; {os.cpu_count()} cores, {platform.platform()};")
    print(f"{options.megabytes} MB, {options.rounds} rounds, alternating, medians; MB/s\n")
    print(f"{'':14} {'ours':>8} {'obstore':>8} {'ratio':>6}")
    for name, pair in chosen.items():
        for way in ("write", "read"):
            ours, theirs = pair.seconds[way, "ours"], pair.seconds[way, "obstore"]
            ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
            speeds = (options.megabytes / statistics.median(each) for each in (ours, theirs))
            print(f"{name + ' ' + way:14} {' '.join(f'{speed:8.0f}' for speed in speeds)} {ratio:6.2f} (goal >= {GOAL})")


def shown(pair: Pair) -> str:
    """The last round's seconds."""
    return ", ".join(f"{way} {side} {seconds[-1]:.1f} s" for (way, side), seconds in pair.seconds.items())


if __name__ == "__main__":
    main()
