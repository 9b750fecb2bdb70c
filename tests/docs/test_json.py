"""docs/reference/json.md against what every command really answers: the same fields, no more and no fewer."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from clipper_backup.cli.app import make_app
from clipper_backup.cli.show_restore import plan_document
from clipper_backup.clock import SystemClock, VirtualClock
from clipper_backup.config import load
from clipper_backup.ops.events import ignore
from clipper_backup.ops.restore.targets import Target
from clipper_backup.ops.snapshot.verbs import ACCOUNT
from clipper_backup.ops.work import Work, open_work
from clipper_backup.postgres.account import server_account
from clipper_backup.postgres.server import PrivateServer
from clipper_backup.repository.kept_wal import Kept
from clipper_backup.store.local import LocalStore
from clipper_backup.values import BackupId
from fixtures.base import Cluster
from fixtures.base_repository import copy_into, days, make_repository, put_backup, put_hold, put_packs, put_segments
from fixtures.cli import Outcome, RunCli
from fixtures.clipper import clipper_database
from fixtures.docs import ROOT, every_command
from fixtures.kube_cluster import Cluster as FakeCluster
from fixtures.postgres import sql
from fixtures.restore import World, end_left_running, planned, restoring
from fixtures.snapshots import CLASS, as_account, run_database
from fixtures.stores import StorePlace
from fixtures.wal import MadeServer, Pushing
from fixtures.wal_archive import MIB, segment_name
from fixtures.wal_look import MadeRepository
from fixtures.wal_restore import WalPlace

PAGE = (ROOT / "docs/reference/json.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (.+)\n((?:(?!^### ).*\n)+)", PAGE, re.MULTILINE))
"""Command -> the text of its section."""
COMMANDS = [" ".join(words) for words in every_command(make_app())]


def documented(command: str) -> set[str]:
    """The fields in the tables of a command's section, and of the section it refers to."""
    section = SECTIONS[command]
    rows = re.findall(r"^\| ((?:`[^`]+`(?:, )?)+) \|", section, re.MULTILINE)
    fields = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    for other in re.findall(r"very field of \[`([^`]+)`\]", section):
        fields |= documented(other)
    return fields


def fields_of(value: Any, path: str = "") -> Iterator[str]:
    """The path of every field in a document; `name[].field` is a field of the objects in a list."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield f"{path}{name}"
            yield from fields_of(inner, f"{path}{name}.")
    elif isinstance(value, list):
        for item in value:
            yield from fields_of(item, f"{path.removesuffix('.')}[].")


def answered(document: Any) -> set[str]:
    """The fields of an answer. Those every document has are left out, and a list's are those of its items."""
    top = {name: value for name, value in document.items() if name not in {"schema", "items"}}
    return set(fields_of(top)) | {field for item in document.get("items", []) for field in fields_of(item)}


def test_every_command_has_a_section() -> None:
    assert sorted(SECTIONS) == sorted(COMMANDS)


PHYSICAL = ("pitr.", "wal[].", "packs[].", "proof.windows[].", "gaps[].", "lost[].", "perhaps_lost[].", "restorable[].")
"""How fields begin that are there with base backups and WAL only."""
ANSWERLESS = {"wal archive", "wal serve"}
"""Commands that run until they are ended."""


@pytest.fixture
def answers(run_cli: RunCli, postgres15: PrivateServer, local_place: StorePlace) -> Iterator[dict[str, list[Outcome]]]:
    """What commands answer while dumps are taken, looked at, held, damaged, left unfinished, restored and removed."""
    found: dict[str, list[Outcome]] = {}
    with clipper_database(postgres15) as (_, name):
        environment = {**local_place.environment, **login(postgres15), "BACKUP_DATABASES": name}

        def ask(command: str, *words: str) -> Outcome:
            assert command in COMMANDS
            outcome = run_cli(*command.split(), *words, "--json", env=environment, check=True)
            found.setdefault(command, []).append(outcome)
            return outcome

        def ask_with_code(command: str, code: int) -> None:
            """Such a command answers, and then says on stderr what is wrong: in the last line, which is not of the answer."""
            outcome = run_cli(*command.split(), "--json", env=environment)
            assert (outcome.code, [line["exit_code"] for line in outcome.lines]) == (code, [code]), outcome
            found.setdefault(command, []).append(replace(outcome, stderr=""))

        first = ask("dump create").document["id"]
        ask("doctor")
        ask("setup database", "--remove")
        ask("bucket check", "--objects", "20", "--size", "1MiB")
        ask("hold", first, "--reason", "the first")
        ask("job postgres-backup")
        repository = Path(local_place.url.removeprefix("file://"))
        leave_rubbish(repository)
        ask_with_code("verify", 13)
        ask("dump list")
        ask_with_code("status", 3)
        ask("dump show", first)
        ask("dump show", first, "--dump-fingerprint", "off")
        ask("dump verify", first)
        ask("dump fetch", first, "--to", "fetched")
        ask("dump restore", first, "--into", name, "--replace", "--yes")
        ask("job restore-test")
        ask("release", first)
        ask("dump delete", first, "--dry-run")
        ask("dump delete", first, "--yes")
        ask("prune", "--yes")
        sealed = ask("key generate", "--output", "operator.key").document["id"]
        ask("key public", "operator.key")
        ask("dump create", "--encryption-recipients", sealed)
        ask("dump show", "latest")
        ask("key check", "--identity", "operator.key")
        ask("hold", "latest")
        (repository / "locks/dump/0000009999").mkdir(parents=True)
        (repository / "locks/dump/0000009999/holder").write_text("somebody")
        remove_rubbish(repository)
        ask("verify", "--encryption-identity-file", "operator.key")
        ask("status")
        ask("key rotate", "--encryption-recipients", sealed)
        yield found


def login(server: PrivateServer) -> dict[str, str]:
    where = server.connection()
    return {"PGHOST": where["host"], "PGPORT": where["port"], "PGUSER": where["user"]}


def leave_rubbish(repository: Path) -> None:
    """A dump that is still being written, and one whose summary is damaged."""
    (repository / "database/postgres-backup-20200101-000000.intent").write_text("{}")
    (repository / "database/postgres-backup-20200102-000000.backup.json").write_text("{")


def remove_rubbish(repository: Path) -> None:
    """The summary that cannot be read: whoever asks which key is needed is told that the list is not complete."""
    (repository / "database/postgres-backup-20200102-000000.backup.json").unlink()


def test_the_tables_are_what_commands_answer(answers: dict[str, list[Outcome]]) -> None:
    found = {command: set().union(*(answered(o.document) for o in outcomes)) for command, outcomes in answers.items()}
    without = {command: {field for field in documented(command) if not field.startswith(PHYSICAL)} for command in found}
    assert found == without, "those of base backups and WAL are asked below"
    below = {command for command in COMMANDS if command.startswith(("base ", "wal ", "snapshot "))}
    below |= {"settings", "version", "demo", "restore", "job volume-snapshot", *ANSWERLESS}
    assert set(COMMANDS) - set(found) == below, "they are asked below"
    told = [line for outcomes in answers.values() for outcome in outcomes for line in outcome.lines]
    assert {line["type"] for line in told} == {"warning"}, "only warnings and errors belong on stderr"
    made, no_base = (line["message"] for line in told)
    assert made.startswith("a new repository was made at ")
    assert no_base.startswith("point-in-time recovery is off")
    assert all(outcome.document["schema"] == 1 for outcomes in answers.values() for outcome in outcomes)

    # What does not apply is null, never left out.
    (listed,) = (outcome.document["items"] for outcome in answers["dump list"])
    assert [item["state"] for item in listed] == ["unfinished", "damaged", "committed", "committed"]
    assert len({tuple(sorted(item)) for item in listed}) == 1, "all items have the same fields"


def test_the_tables_are_what_base_commands_answer(run_cli: RunCli, archived15: Cluster, local_place: StorePlace) -> None:
    settings = archived15.settings(**local_place.environment, BACKUP_DATABASES="postgres")
    found: dict[str, set[str]] = {}

    def ask(command: str, *words: str) -> Any:
        document = run_cli(*command.split(), *words, "--json", env=settings, check=True).document
        found.setdefault(command, set()).update(answered(document))
        return document

    repository = Path(local_place.url.removeprefix("file://"))
    with archived15.archiving(work_of(settings)):
        first = ask("base create")["id"]
        job = ask("job postgres-backup")
        ask("base create")
    (repository / "base/20200101-000000-00000000").mkdir()
    (repository / "base/20200101-000000-00000000/intent.json").write_text("{}")
    (lost,) = repository.glob(f"wal/*/*/*/{job['base']['first_segment']}.zst")
    kept = lost.rename(repository.parent / "kept")
    gap = run_cli("verify", "--json", env=settings)
    assert gap.code == 14, gap
    for name in ("gaps", "lost"):
        assert of_list(name, answered(gap.document)) == of_list(name, documented("verify"))
    kept.rename(lost)
    summary = repository / f"base/{job['base']['id']}/backup.json"
    whole = summary.read_bytes()
    summary.write_text("{")
    unknown = run_cli("verify", "--json", env=settings)
    assert unknown.code == 13, unknown
    assert of_list("perhaps_lost", answered(unknown.document)) == of_list("perhaps_lost", documented("verify"))
    summary.write_bytes(whole)
    ask("base verify", job["base"]["id"], "--sample", "5%")
    verified = run_cli("verify", "--json", env=settings, check=True).document
    assert of_list("restorable", answered(verified)) == of_list("restorable", documented("verify"))
    ask("hold", first)
    assert [item["state"] for item in ask("base list")["items"]] == ["unfinished", *["committed"] * 3]
    ask("release", first)
    ask("base show", "latest")
    (repository / "base/20200101-000000-00000000/intent.json").unlink()
    ask("base delete", first, "--yes")
    assert {name.removeprefix("base.") for name in found.pop("job postgres-backup") if name.startswith("base.")} == documented(
        "base create"
    )
    assert job["base"]["parent"] == first
    for command, fields in found.items():
        assert fields == documented(command), command
    assert {command for command in COMMANDS if command.startswith("base ")} <= found.keys()


def test_the_tables_are_what_snapshot_commands_answer(
    run_cli: RunCli, archived18: Cluster, local_place: StorePlace, cluster: FakeCluster, tmp_path: Path
) -> None:
    run_database(cluster, {"postgres-data": str(archived18.server.data.parent)})
    as_account(cluster, tmp_path)
    settings = archived18.settings(**local_place.environment, VOLUME_SNAPSHOT_CLASS=CLASS)
    found: dict[str, set[str]] = {}

    def ask(command: str, *words: str) -> Any:
        where = ("--kubeconfig", str(cluster.kubeconfig(ACCOUNT)), "--json")
        document = run_cli(*command.split(), *words, *where, env=settings, check=True).document
        found.setdefault(command, set()).update(answered(document))
        return document

    with archived18.archiving(work_of(settings)):
        made = ask("snapshot create")
    run_cli("hold", made["id"], env=settings, check=True)
    (shown,) = ask("snapshot list")["items"]
    assert (shown["id"], shown["state"], shown["label"], shown["held"]) == (made["id"], "ready", "needs-wal", True)
    (kept,) = ask("snapshot prune", "--yes")["items"]
    assert (kept["keep"], kept["reason"]) == (True, "held")
    with archived18.archiving(work_of(settings)):
        assert ask("job volume-snapshot")["pruned"] == []
    assert found.pop("job volume-snapshot") == documented("job volume-snapshot") | found["snapshot create"]
    for command, fields in found.items():
        assert fields == documented(command), command
    assert {command for command in COMMANDS if command.startswith("snapshot ")} == found.keys()


def test_the_table_of_prune_is_what_it_answers(run_cli: RunCli, local_place: StorePlace) -> None:
    clock = VirtualClock(SystemClock().now() - timedelta(days=21))
    store = make_repository(clock)
    put_packs(store, BackupId.make(clock.now()), [0])
    for week in range(4):
        put_backup(store, start=10 * week, wal=True)
        put_segments(store, 10 * week + 1, 10 * week + 9)
        days(clock, 7 if week < 3 else 0)
    copy_into(store, Path(local_place.url.removeprefix("file://")))
    assert answered(run_cli("prune", "--dry-run", "--json", env=local_place.environment, check=True).document) == documented(
        "prune"
    )


def of_list(name: str, fields: set[str]) -> set[str]:
    """Those of the items of one list in a document."""
    found = {field for field in fields if field.startswith(f"{name}[].")}
    assert found, "nothing is in it"
    return found


def work_of(settings: Mapping[str, str]) -> Work:
    return open_work(load({}, settings).settings, SystemClock(), ignore, read_only=False)


@pytest.mark.parametrize("words", [["settings"], ["settings", "RETENTION_DAYS"], ["version"], ["demo", "--scale", "0.01"]])
def test_the_tables_are_what_commands_answer_that_need_no_server(run_cli: RunCli, words: list[str]) -> None:
    found = answered(run_cli(*words, "--json", check=True).document)
    assert {field for field in found if not field.startswith("libraries.")} == documented(words[0])


def test_the_tables_are_what_looks_at_the_wal_answer(run_cli: RunCli, postgres15: PrivateServer, tmp_path: Path) -> None:
    ((system_id,),) = sql(postgres15, "postgres", "SELECT system_identifier::text FROM pg_control_system()")
    made = MadeRepository(VirtualClock(SystemClock().now()), system_id, LocalStore(tmp_path / "repository"))
    made.archive.segments(1, 3, 5)
    first = BackupId.parse(made.backup(1, 3, 4).id)
    made.archive.segment(1, 7)
    made.clock.advance(1)
    made.backup(1, 7, 7)
    environment = {"BACKUP_URL": f"file://{tmp_path / 'repository'}", **login(postgres15)}
    for command in ("wal status", "wal verify"):
        outcome = run_cli(*command.split(), "--json", env=environment)
        assert outcome.code == 14, outcome
        assert answered(outcome.document) == documented(command)
    put_hold(made.store, first)
    outcome = run_cli("status", "--json", env=environment)
    assert outcome.code == 14, outcome
    assert {field for field in answered(outcome.document) if field.startswith("pitr")} == {
        field for field in documented("status") if field.startswith("pitr")
    }


def test_the_table_of_wal_fetch_is_what_it_answers(run_cli: RunCli, wal_place: WalPlace) -> None:
    answer = run_cli(*wal_place.words(segment_name(1, 6)), "--json", check=True)
    assert answered(answer.document) == documented("wal fetch")


def lines_on_stderr() -> dict[str, set[str]]:
    """Type -> the fields that the page says a line of it has."""
    table = PAGE[PAGE.index("## Lines on stderr") : PAGE.index("## Commands")]
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+) \|$", table, re.MULTILINE)
    return {kind: set(re.findall(r"`(\w+)`", said.partition("with `--debug`")[0])) for kind, said in rows}


def test_lines_on_stderr_have_the_fields_of_their_table(
    run_cli: RunCli, postgres15: PrivateServer, local_place: StorePlace
) -> None:
    with clipper_database(postgres15) as (_, name):
        words = [
            "dump",
            "create",
            "--events",
            "--backup-databases",
            name,
            "--validation-queries",
            f"{name}/lost: SELECT 1 FROM gone",
        ]
        environment = {**local_place.environment, **login(postgres15), "CLIPPER_BACKUP_PROGRESS_SECONDS": "0"}
        told = run_cli(*words, env=environment, check=True).lines
    told += run_cli("dump", "list", "--json", env={"BACKUP_URL": "file:///does/not/exist"}).lines
    table = lines_on_stderr()
    units = table["progress"] - {"step", "done", "total", "unit", "null"}
    table["progress"] -= units | {"null"}
    assert {line["type"]: set(line) - {"type"} for line in told} == table
    assert {line["unit"] for line in told if line["type"] == "progress"} <= units


def test_the_table_is_what_wal_push_answers(run_cli: RunCli, local_place: StorePlace, tmp_path: Path) -> None:
    Pushing(local_place.open())  # a repository
    path = MadeServer(tmp_path / "data").write(1)
    outcome = run_cli("wal", "push", str(path), "--json", env=local_place.environment, check=True)
    assert answered(outcome.document) == documented("wal push")
    assert all(documented(command) == set() for command in ANSWERLESS)


def test_the_table_of_restore_is_what_it_answers(run_cli: RunCli, restore_world: World, place: Path) -> None:
    world = restore_world.copied_to(place)
    found: set[str] = set()
    for more in (["--dry-run"], ["--start"]):
        outcome = run_cli(*restoring(world, place, *more, "--json"), env=world.settings, check=True)
        assert outcome.lines == []
        found |= answered(outcome.document)
    end_left_running(outcome.document)
    # Of what this one has not: a restore point of the same name, and what a dead primary left.
    other = place / "other"
    other.mkdir()
    server_account().own(other)
    request, plan = planned(world, other, Target("name", name="moment 1"))
    assert plan.stop is not None
    kept = Kept((place,), (), MIB, plan.stop.record.end, None)
    found |= answered(plan_document(request, replace(plan, kept=kept, namesakes=[plan.stop.record])))
    assert found == documented("restore")
