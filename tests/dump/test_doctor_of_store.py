"""`doctor` on settings and the store: each check is made to fail."""

import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clipper_backup.clock import VirtualClock
from clipper_backup.ops.doctor import of_store
from clipper_backup.ops.doctor.of_store import PROBE
from fixtures.doctor import RED, YELLOW, Breaks, Broken, Case, names_in
from fixtures.dump import FAULTS, copy_dump

pytestmark = pytest.mark.soak(share=0.25)

breaks = Breaks()


@breaks("settings", RED, "bad value for RETENTION_DAYS")
def a_setting_is_no_number(case: Case) -> Mapping[str, str]:
    return {"RETENTION_DAYS": "often"}


@breaks("settings", RED, "no repository is configured")
def no_store_is_named(case: Case) -> Mapping[str, str]:
    return {"BACKUP_URL": ""}


@breaks("store", RED, "127.0.0.1")
def the_store_is_away(case: Case) -> Mapping[str, str]:
    return {**case.bucket()[1], "BACKUP_ENDPOINT": f"http://127.0.0.1:{case.deaf_port()}", "STORE_RETRY_SECONDS": "0"}


@breaks("store", RED, "")
def this_key_may_not_list(case: Case) -> Mapping[str, str]:
    server, settings = case.bucket()
    return {**settings, "AWS_ACCESS_KEY_ID": server.getter_access_key, "AWS_SECRET_ACCESS_KEY": server.getter_secret_key}


@breaks("write", RED, PROBE)
def this_key_may_only_read(case: Case) -> Mapping[str, str]:
    server, settings = case.bucket()
    return {**settings, "AWS_ACCESS_KEY_ID": server.reader_access_key, "AWS_SECRET_ACCESS_KEY": server.reader_secret_key}


@breaks("write", RED, "other bytes")
def the_store_gives_back_other_bytes(case: Case) -> Mapping[str, str]:
    return {FAULTS: "get:1:flip"}


@breaks("conditional create", RED, "created an object where one was")
def the_store_does_not_know_conditional_create(case: Case) -> Mapping[str, str]:
    return {FAULTS: "put:1+:overwrite"}


@breaks("durable", RED, "lies in memory (tmpfs)")
def the_repository_lies_in_memory(case: Case) -> Mapping[str, str]:
    folder = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="clipper-test-"))
    case.stack.callback(shutil.rmtree, folder)
    return {"BACKUP_URL": f"file://{folder}"}


@breaks("clock", YELLOW, "the store's clock and ours differ by ")
def our_clock_is_five_minutes_slow(case: Case) -> Mapping[str, str]:
    case.clock = VirtualClock(datetime.now(UTC) - timedelta(minutes=5))
    return {}


@breaks("clock", RED, "the store's clock and ours differ by ")
def our_clock_is_an_hour_fast(case: Case) -> Mapping[str, str]:
    case.clock = VirtualClock(datetime.now(UTC) + timedelta(hours=1))
    return {}


@breaks("clock", RED, "lies ahead of the store's clock: no dump can be taken")
def a_dump_was_taken_by_a_clock_that_ran_ahead(case: Case) -> Mapping[str, str]:
    copy_dump(case.folder, case.site.recent, -2)
    return {}


@pytest.mark.parametrize("broken", breaks.all, ids=str)
def test_a_check_sees_what_is_wrong(broken: Broken, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    broken.check(case, monkeypatch)


def test_every_check_is_made_to_fail_here() -> None:
    assert {broken.name for broken in breaks.all} == names_in(of_store)
