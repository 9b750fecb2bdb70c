"""`doctor` on this machine, and on who is told: each check is made to fail."""

import json
from collections.abc import Mapping

import pytest

from clipper_backup.ops.doctor import of_machine
from fixtures.doctor import RED, YELLOW, Breaks, Broken, Case, names_in
from fixtures.dump import SUMMARY_SUFFIX
from fixtures.postgres import server_binaries

breaks = Breaks()


@breaks("restore programs", RED, "is older than 18")
def the_newest_dump_was_made_by_newer_programs(case: Case) -> Mapping[str, str]:
    path = case.object(case.site.recent, SUMMARY_SUFFIX[1:])
    summary = json.loads(path.read_bytes())
    summary["versions"]["client"] = "18.6"
    path.write_text(json.dumps(summary))
    return {"PG_BINDIR": str(server_binaries(15).bindir)}


@breaks("scratch", RED, "cannot use /nonexistent as scratch space")
def scratch_is_no_folder(case: Case) -> Mapping[str, str]:
    return {"SCRATCH_DIR": "/nonexistent"}


@breaks("scratch", YELLOW, "restore with --jobs 1")
def the_archive_is_larger_than_scratch(case: Case) -> Mapping[str, str]:
    enlarge(case)
    return {}


@breaks("scratch", RED, "with DUMP_JOBS > 1 every dump needs that room")
def the_next_dump_needs_more_than_scratch(case: Case) -> Mapping[str, str]:
    enlarge(case)
    return {"DUMP_JOBS": "2"}


@breaks("scratch", YELLOW, "a volume's sizeLimit, which cannot be seen from here")
def a_pod_needs_scratch(case: Case) -> Mapping[str, str]:
    return {"DUMP_JOBS": "2", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def enlarge(case: Case) -> None:
    """Let the newest dump be of a database that no disk here has room for."""
    path = case.object(case.site.recent, SUMMARY_SUFFIX[1:])
    summary = json.loads(path.read_bytes())
    summary["objects"][0]["plain_bytes"] = 10**17
    path.write_text(json.dumps(summary))


@breaks("pushgateway", YELLOW, "PROMETHEUS_PUSHGATEWAY is not set")
def nobody_is_told(case: Case) -> Mapping[str, str]:
    return {}


@breaks("pushgateway", RED, "cannot reach the Pushgateway")
def the_pushgateway_is_away(case: Case) -> Mapping[str, str]:
    return {"PROMETHEUS_PUSHGATEWAY": f"http://127.0.0.1:{case.deaf_port()}"}


@breaks("pushgateway", RED, "answered 4")
def something_else_answers(case: Case) -> Mapping[str, str]:
    return {"PROMETHEUS_PUSHGATEWAY": case.bucket()[0].endpoint}


@pytest.mark.parametrize("broken", breaks.all, ids=str)
def test_a_check_sees_what_is_wrong(broken: Broken, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    broken.check(case, monkeypatch)


def test_every_check_is_made_to_fail_here() -> None:
    assert {broken.name for broken in breaks.all} == names_in(of_machine)
