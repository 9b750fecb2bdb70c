"""Which certificate authorities the SDKs trust: those that the store trusts, instead of the lists that they bring along."""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def trusted(ca_file: Path | None) -> Iterator[str | None]:
    """The path of a file with the system's authorities and those of *ca_file*, while it is open; None leaves it to the SDK.

    SSL_CERT_FILE, where it is set, names the system's. An SDK takes one file only, and no disk may be writable here: the joined
    file is in memory.
    """
    system = ssl.get_default_verify_paths().cafile
    if ca_file is None:
        yield system
        return
    memory = os.memfd_create("authorities")
    try:
        with open(memory, "wb", closefd=False) as joined:
            files = (Path(system), ca_file) if system else (ca_file,)
            joined.writelines(path.read_bytes() + b"\n" for path in files)
        yield f"/proc/self/fd/{memory}"
    finally:
        os.close(memory)
