"""SIGKILL at every call to the store: every committed dump stays whole, and the same command run again does its work."""

import itertools
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest

from fixtures.dump import (
    FAULTS,
    Site,
    check_whole,
    chosen,
    committed_dumps,
    copy_dump,
    ended,
    halted,
    let_time_pass,
    parts_of,
)

KILLS_OF_EACH = 3


@dataclass(frozen=True)
class Command:
    """A command that writes: what it `removes` and how many dumps it `adds` when nothing stops it."""

    words: tuple[str, ...]
    removes: tuple[str, ...]
    adds: int
    settings: Mapping[str, str]


def create(site: Site) -> Command:
    return Command(("dump", "create"), (), 1, {})


def job(site: Site) -> Command:
    return Command(("job", "postgres-backup"), (site.old, leave_garbage(site)), 1, {"RETENTION_MIN_DUMPS": "1"})


def delete(site: Site) -> Command:
    return Command(("dump", "delete", site.old, "--yes"), (site.old,), 0, {})


def prune(site: Site) -> Command:
    return Command(("prune", "--yes"), (site.old, leave_garbage(site)), 0, {"RETENTION_MIN_DUMPS": "1"})


EVERY_COMMAND = pytest.mark.parametrize("command_of", [create, job, delete, prune])


def leave_garbage(site: Site) -> str:
    """What a run left that died two days ago; its id."""
    garbage = copy_dump(site.folder, site.recent, 2)
    (site.folder / "database" / f"{garbage}.backup.json").unlink()
    let_time_pass(site.folder, hours=48, below="database")
    return garbage


@EVERY_COMMAND
def test_at_no_moment_of_a_run_does_a_committed_dump_lack_a_part_or_change(
    site: Site, command_of: Callable[[Site], Command]
) -> None:
    command = command_of(site)
    moments = list(each_moment(site, command))

    assert len(moments) > 10
    for now, then in itertools.pairwise(moments):
        check_whole(then)
        for dump_id in committed_dumps(now):
            if dump_id in committed_dumps(then):
                assert parts_of(then, dump_id) == parts_of(now, dump_id)
            else:
                assert dump_id in command.removes
    check_done(site, command)


@EVERY_COMMAND
@pytest.mark.soak
def test_after_a_kill_at_any_call_to_the_store_all_dumps_are_good_and_the_next_run_does_the_work(
    site: Site, command_of: Callable[[Site], Command]
) -> None:
    command = command_of(site)
    prepared = site.saved()
    calls = sum(1 for _ in each_moment(site, command)) - 1
    for number, effect in chosen([(n, e) for n in range(1, calls + 1) for e in ("kill", "killed")], KILLS_OF_EACH):
        site.put_back(prepared)
        died = site.run(*command.words, **command.settings, **{FAULTS: f"*:{number}:{effect}"})
        assert died.code == -signal.SIGKILL, died

        site.check_untouched(but=command.removes)
        listed = site.run("dump", "list", "--json")
        assert [item["id"] for item in listed.document["items"] if item["state"] == "committed"] == site.dumps
        verified = site.run("dump", "verify", "latest")
        assert verified.code == 0, verified

        let_time_pass(site.folder, hours=25)  # until the dead run's lease is stale and what it left is garbage
        again = site.run(*command.words, **command.settings)
        nothing_left = "delete" in command.words and "there is no dump" in again.stderr
        assert again.code == (15 if nothing_left else 0), again
        if "create" in command.words:
            assert site.run("prune", "--yes").code == 0
        check_done(site, command)


def each_moment(site: Site, command: Command) -> Iterator[dict[str, bytes]]:
    """All objects before each call that a run makes to the store, and at its end: what a run that dies there leaves."""
    process = site.start(*command.words, **command.settings, **{FAULTS: "*:1+:stop"})
    while halted(process):
        yield site.objects
        process.send_signal(signal.SIGCONT)
    outcome = ended(process)
    assert outcome.code == 0, outcome
    yield site.objects


def check_done(site: Site, command: Command) -> None:
    """What the command was to remove is gone with all its parts, and it added what it adds; nothing else lies there."""
    site.check_untouched(but=command.removes)
    for dump_id in command.removes:
        assert parts_of(site.objects, dump_id) == {}
    added = set(site.dumps) - set(committed_dumps(site.earlier))
    assert len(added) >= command.adds
    of_dumps = [key for dump_id in site.dumps for key in parts_of(site.objects, dump_id)]
    assert [key for key in site.objects if key.startswith("database/")] == sorted(of_dumps)
