"""start.sh, as PostgreSQL's container runs it: which data folder, which flags, under the shells of both families of images."""

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from clipper_backup.ops.wal.shims import START_SHIM

SHELLS = {"dash": ["dash"], "busybox": ["busybox", "sh"]}
SERVER = (
    '#!/bin/sh\n# what the files and ALTER SYSTEM say, and what its flags do\necho "$*" >{folder}/asked\ncat {folder}/wal_level\n'
)
ENTRY = '#!/bin/sh\nprintf "%s\\n" "$PGDATA" "$@"\n'


class Container:
    """A container of the image: a volume, an entry point that says what it was given, a server that says its wal_level."""

    def __init__(self, folder: Path, shell: Sequence[str]) -> None:
        self.folder, self._shell = folder, shell
        self.volume, self.handshake = folder / "volume", folder / "handshake"
        for path in (self.volume, self.handshake, folder / "bin"):
            path.mkdir()
        (folder / "wal_level").touch()
        for name, text in (("postgres", SERVER.format(folder=folder)), ("docker-entrypoint.sh", ENTRY)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        self._script = folder / "start.sh"
        self._script.write_text(START_SHIM.read_text().replace("/clipper-backup/handshake/pgdata", f"{self.handshake}/pgdata"))
        self.env = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "PGDATA": str(self.volume), "PG_MAJOR": "17"}

    def run(self, *args: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*self._shell, str(self._script), *args], env=self.env, capture_output=True, text=True, timeout=30, check=False
        )

    def __call__(self, *args: str) -> tuple[str, list[str]]:
        """PGDATA and the words that the entry point was given."""
        done = self.run(*args)
        assert done.returncode == 0, done.stderr
        pgdata, *words = done.stdout.splitlines()
        assert (self.handshake / "pgdata").read_text() == f"{pgdata}\n"
        return pgdata, words


@pytest.fixture(params=SHELLS)
def container(request: pytest.FixtureRequest, tmp_path: Path) -> Container:
    shell = SHELLS[request.param]
    assert shutil.which(shell[0]), f"{shell[0]} is not installed"
    return Container(tmp_path, shell)


def flags(words: Sequence[str]) -> dict[str, str]:
    """The last value of each `-c name=value`, which is the one that counts."""
    pairs = (words[at + 1].partition("=") for at, word in enumerate(words) if word == "-c")
    return {name: value for name, _, value in pairs}


ARCHIVING = {
    "wal_level": "replica",
    "archive_mode": "on",
    "archive_timeout": "300",
    "archive_library": "",
    "archive_command": "sh /clipper-backup/pitr/archive.sh /clipper-backup/handshake %p",
    "hba_file": "/clipper-backup/pitr/pg_hba.conf",
}


@pytest.mark.parametrize(
    ("major", "more"), [("15", {}), ("16", {}), ("17", {"summarize_wal": "on"}), ("18", {"summarize_wal": "on"})]
)
def test_every_major_gets_the_settings_it_knows(container: Container, major: str, more: dict[str, str]) -> None:
    container.env["PG_MAJOR"] = major
    _, words = container()
    assert words[0] == "postgres"
    assert flags(words) == ARCHIVING | more


def test_an_image_that_does_not_say_its_major_gets_what_all_know(container: Container) -> None:
    del container.env["PG_MAJOR"]
    assert flags(container()[1]) == ARCHIVING


@pytest.mark.parametrize(
    "args", [(), ("-c", "work_mem=8MB", "--max_connections=7"), ("postgres", "-c", "work_mem=a b"), ("mine.sh", "x")]
)
def test_the_users_args_stay_in_front(container: Container, args: tuple[str, ...]) -> None:
    given = list(args) if args and not args[0].startswith("-") else ["postgres", *args]
    words = container(*args)[1]
    assert words[: len(given)] == given
    assert flags(words).items() >= ARCHIVING.items()


def test_what_archives_elsewhere_is_overridden(container: Container) -> None:
    words = container("-c", "archive_mode=off", "-c", "archive_command=other %p", "-c", "archive_library=other")[1]
    assert flags(words).items() >= ARCHIVING.items()


def in_a_file(container: Container) -> tuple[str, ...]:
    (container.folder / "wal_level").write_text("logical\n")
    return ()


def in_an_argument(container: Container) -> tuple[str, ...]:
    return ("-c", "wal_level=logical")


def in_a_long_argument(container: Container) -> tuple[str, ...]:
    return ("--wal-level=logical",)


@pytest.mark.parametrize("said", [in_a_file, in_an_argument, in_a_long_argument])
def test_logical_stays_wherever_it_is_said(container: Container, said: Callable[[Container], tuple[str, ...]]) -> None:
    assert flags(container(*said(container))[1]) == ARCHIVING | {"wal_level": "logical", "summarize_wal": "on"}


@pytest.mark.parametrize("level", ["minimal", "replica", ""])
def test_any_other_level_becomes_replica(container: Container, level: str) -> None:
    (container.folder / "wal_level").write_text(f"{level}\n")
    assert flags(container()[1])["wal_level"] == "replica"


def test_the_server_is_asked_about_the_folder_that_it_will_have(container: Container) -> None:
    (container.volume / "lost+found").mkdir()
    container("-c", "work_mem=8MB")
    assert (container.folder / "asked").read_text() == f"-C wal_level -D {container.volume}/pgdata -c work_mem=8MB\n"


# -- K3a: which data folder. What is on the volume, and which folder of it is the data folder then

VOLUMES = {
    "new": ([], ""),
    "new, ext4": (["lost+found/"], "pgdata"),
    "new, ext4, and initdb was killed": (["lost+found/", "pgdata/base/"], "pgdata"),
    "a cluster": (["PG_VERSION", "base/"], ""),
    "a cluster, ext4": (["lost+found/", "PG_VERSION", "base/"], ""),
    "a cluster in pgdata": (["pgdata/PG_VERSION"], "pgdata"),
    "a cluster in pgdata, ext4": (["lost+found/", "pgdata/PG_VERSION"], "pgdata"),
    "a cluster in pgdata, and other things": (["old/", "notes", "pgdata/PG_VERSION"], "pgdata"),
    "a cluster, and another in pgdata": (["PG_VERSION", "pgdata/PG_VERSION"], ""),
    "somebody's files": (["notes"], ""),
    "somebody's files, and an empty pgdata": (["notes", "pgdata/"], ""),
}


@pytest.mark.parametrize("ours", ["", "main"], ids=["the image's PGDATA", "the user's PGDATA"])
@pytest.mark.parametrize("volume", VOLUMES)
def test_it_never_leads_away_from_the_cluster(container: Container, volume: str, ours: str) -> None:
    there, expected = VOLUMES[volume]
    pgdata = container.volume / ours
    pgdata.mkdir(exist_ok=True)
    container.env["PGDATA"] = str(pgdata)
    for name in there:
        path = pgdata / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.touch()
    assert container()[0] == str(pgdata / expected)


def test_a_folder_that_is_not_there_is_made_by_the_entry_point(container: Container) -> None:
    container.env["PGDATA"] = f"{container.volume}/18/docker"
    assert container()[0] == f"{container.volume}/18/docker"


def test_a_path_with_spaces(container: Container) -> None:
    pgdata = container.volume / "my data"
    (pgdata / "lost+found").mkdir(parents=True)
    container.env["PGDATA"] = str(pgdata)
    assert container()[0] == str(pgdata / "pgdata")


def test_an_image_without_pgdata_is_told(container: Container) -> None:
    del container.env["PGDATA"]
    done = container.run()
    assert done.returncode != 0
    assert "this image does not say where its data folder is" in done.stderr
    assert not (container.handshake / "pgdata").exists()


def test_a_handshake_folder_that_is_full_does_not_keep_the_database_from_starting(container: Container) -> None:
    container.handshake.rmdir()
    done = container.run()
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, str(container.volume))
