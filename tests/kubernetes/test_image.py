"""The Dockerfile, read instruction by instruction; the Python part of its build is run for real, without a registry of images."""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from clipper_backup import __version__

ROOT = Path(__file__).parents[2]
CRONJOB = next(yaml.safe_load_all((ROOT / "infrastructure/k8s/base/backup-cronjobs.yaml").read_text()))
POD = CRONJOB["spec"]["jobTemplate"]["spec"]["template"]["spec"]


@dataclass(frozen=True)
class Instruction:
    stage: str
    name: str
    text: str


def dockerfile() -> list[Instruction]:
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    instructions = []
    stage = ""
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        name, _, text = line.partition(" ")
        if name == "FROM":
            base, _, alias = text.partition(" AS ")
            stage = alias or "final"
            text = base
        instructions.append(Instruction(stage, name, " ".join(text.split())))
    return instructions


INSTRUCTIONS = dockerfile()


def texts(name: str, stage: str | None = None) -> list[str]:
    return [i.text for i in INSTRUCTIONS if i.name == name and stage in {None, i.stage}]


def commands(stage: str | None = None) -> list[list[str]]:
    return [shlex.split(part) for text in texts("RUN", stage) for part in text.split("&&")]


def sent_to_the_builder(path: str) -> bool:
    """What .dockerignore lets through: the last pattern that matches the path, or a folder of it, decides."""
    kept = True
    parts = path.split("/")
    folders = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        if pattern.startswith("**/"):
            matches = any(fnmatch.fnmatch(part, pattern[3:]) for part in parts)
        else:
            matches = any("/" not in folder and fnmatch.fnmatch(folder, pattern) for folder in folders)
        if matches:
            kept = line.startswith("!")
    return kept


def copied() -> list[str]:
    return [source for text in texts("COPY", "build") for source in text.split()[:-1]]


def test_the_base_image_is_postgresqls_own_with_its_version_stated() -> None:
    assert texts("FROM") == ["postgres:${PG_MAJOR}-bookworm", "base", "base"]
    (default,) = (text.partition("=")[2] for text in texts("ARG") if text.startswith("PG_MAJOR"))
    assert default.isdecimal()
    assert "latest" not in (ROOT / "Dockerfile").read_text()


def test_the_user_is_a_number_and_the_manifests() -> None:
    (user,) = texts("USER", "final")
    security = POD["securityContext"]
    assert user == f"{security['runAsUser']}:{security['runAsGroup']}"
    (added,) = (command for command in commands("base") if command[0] == "useradd")
    assert f"{added[added.index('--uid') + 1]}:{added[added.index('--gid') + 1]}" == user


def test_the_entry_point_is_what_the_manifest_runs() -> None:
    assert texts("ENTRYPOINT", "final") == ['["clipper-backup"]']
    assert POD["containers"][0]["command"] == ["clipper-backup"]
    assert f"docker build -t clipper-backup:{__version__} ." in (ROOT / "Dockerfile").read_text()


def test_kubernetes_can_stop_it_and_does_not_probe_it() -> None:
    assert texts("STOPSIGNAL", "final") == ["SIGTERM"]
    assert texts("HEALTHCHECK", "final") == ["NONE"]


def test_whoever_restores_can_add_extensions() -> None:
    assert 'EXTRA_APT_PACKAGES=""' in texts("ARG", "base")
    (installed,) = (command for command in commands("base") if command[:2] == ["apt-get", "install"])
    assert "${EXTRA_APT_PACKAGES}" in installed


def test_every_package_comes_by_hash_or_from_this_folder() -> None:
    installs = [command for command in commands() if "install" in command and command[0].endswith("pip")]
    assert installs
    for command in installs:
        assert "--require-hashes" in command or {"--no-index", "--no-deps"} <= set(command), shlex.join(command)


def test_no_build_tools_are_left() -> None:
    assert texts("RUN", "final") == []
    packages = {word for command in commands("base") if command[:2] == ["apt-get", "install"] for word in command[2:]}
    assert packages == {"-y", "--no-install-recommends", "ca-certificates", "python3", "${EXTRA_APT_PACKAGES}"}


def test_what_is_copied_exists_and_is_sent_to_the_builder() -> None:
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert sent_to_the_builder(source), source


@pytest.mark.parametrize(
    "path", [".git/config", ".venv/bin/python", "tests/conftest.py", ".env", "src/clipper_backup/__pycache__/x.pyc"]
)
def test_nothing_else_is_sent_to_the_builder(path: str) -> None:
    assert not sent_to_the_builder(path)


def build(root: Path) -> Path:
    """The image's /opt/clipper-backup, made by the Dockerfile's own RUN lines of the stage `build`, apt-get left out."""
    (workdir,) = texts("WORKDIR", "build")
    context = root / workdir.strip("/")
    for source in copied():
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, context / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (context / source).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, context / source)
    python3 = root / "bin" / "python3"
    python3.parent.mkdir()
    python3.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python3.chmod(0o755)
    environment = {**os.environ, "PATH": f"{python3.parent}:{os.environ['PATH']}"}
    for line in texts("RUN", "build"):
        if line.startswith("apt-get "):
            continue
        script = line.replace("/opt/", f"{root}/opt/")
        done = subprocess.run(
            ["sh", "-ec", script], cwd=context, env=environment, capture_output=True, text=True, check=False, timeout=240
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return root / "opt" / "clipper-backup"


def test_the_build_makes_a_program_that_runs_with_the_locked_packages_and_nothing_else(tmp_path: Path) -> None:
    image = build(tmp_path)
    answer = subprocess.run(
        [image / "bin" / "clipper-backup", "--version"], capture_output=True, text=True, check=False, timeout=60, env={}
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    assert __version__ in answer.stdout

    (packages,) = image.glob("lib/python*/site-packages")
    installed = {path.name.removesuffix(".dist-info").lower().replace("_", "-") for path in packages.glob("*.dist-info")}
    pins = re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements" / "runtime.txt").read_text(), re.MULTILINE)
    ours = f"clipper-backup-{__version__}"
    assert ours in installed
    assert installed - {ours} <= {f"{name}-{version}" for name, version in pins}, "an installer or build tool is left"

    for source in packages.rglob("*.py"):
        (compiled,) = (source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc")
        hashed_and_unchecked = 0b01  # PEP 552, the second word of a .pyc
        assert int.from_bytes(compiled.read_bytes()[4:8], "little") == hashed_and_unchecked, source
