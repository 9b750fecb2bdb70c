"""`doctor` on what is in the repository, and on keys: each check is made to fail."""

import json
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clipper_backup.format.documents import KeyCheck, encode
from clipper_backup.format.sealing import Identity
from clipper_backup.format.signing import SigningKey
from clipper_backup.ops.doctor import of_dumps
from fixtures.doctor import RED, YELLOW, Breaks, Broken, Case, names_in
from fixtures.dump import SUMMARY_SUFFIX, let_time_pass

pytestmark = pytest.mark.soak(share=0.25)

breaks = Breaks()


# -- what is in the repository


@breaks("repository", RED, "no repository at")
def there_is_no_repository(case: Case) -> Mapping[str, str]:
    shutil.rmtree(case.folder)
    return {}


@breaks("repository", RED, "its repository.json is gone")
def the_repository_is_lost(case: Case) -> Mapping[str, str]:
    (case.folder / "repository.json").unlink()
    return {}


@breaks("repository", RED, "repository.json is damaged")
def the_repository_is_damaged(case: Case) -> Mapping[str, str]:
    (case.folder / "repository.json").write_text("{")
    return {}


@breaks("newest dump", RED, "40 d 0 h old, and is the newest good dump of")
def the_newest_dump_is_gone(case: Case) -> Mapping[str, str]:
    for path in (case.folder / "database").glob(f"{case.site.recent}.*"):
        path.unlink()
    return {}


@breaks("newest dump", RED, "no good dump holds shop")
def a_database_was_never_dumped(case: Case) -> Mapping[str, str]:
    return {"BACKUP_DATABASES": f"{case.site.database},shop"}


@breaks("newest dump", YELLOW, "shop is in older ones only")
def a_database_was_renamed(case: Case) -> Mapping[str, str]:
    path = case.object(case.site.old, SUMMARY_SUFFIX[1:])
    path.write_text(path.read_text().replace(f'"database": "{case.site.database}"', '"database": "shop"'))
    return {"BACKUP_DATABASES": ""}


@breaks("newest dump", RED, "there is no good dump")
def there_is_no_dump(case: Case) -> Mapping[str, str]:
    shutil.rmtree(case.folder / "database")
    return {"BACKUP_DATABASES": ""}


@breaks("verify", YELLOW, "nothing was ever verified")
def nobody_ever_verified(case: Case) -> Mapping[str, str]:
    del case
    return {}


@breaks("verify", YELLOW, "8 d 0 h ago was not all read since: more than VERIFY_CYCLE_DAYS (7)")
def nobody_verified_for_a_week(case: Case) -> Mapping[str, str]:
    assert case.site.run("verify").code == 0
    path = case.folder / "verify/report.json"
    report = json.loads(path.read_bytes())
    for name in ("begun_at", "ended_at"):
        report[name] = earlier(report[name])
    rotation = report["dumps"]["rotation"]
    report["dumps"]["rotation"] = {name: earlier(moment) for name, moment in rotation.items()}
    path.write_text(json.dumps(report))
    return {}


def earlier(moment: str) -> str:
    return (datetime.fromisoformat(moment) - timedelta(days=8)).isoformat()


@breaks("verify", RED, "1 thing is damaged")
def what_was_dumped_rotted(case: Case) -> Mapping[str, str]:
    path = case.object(case.site.recent, f"{case.site.database}.dump.zst")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert case.site.run("verify", "--read-data").code == 13
    return {}


@breaks("verify", RED, "verify/report.json is damaged")
def the_report_of_verify_is_damaged(case: Case) -> Mapping[str, str]:
    (case.folder / "verify").mkdir()
    (case.folder / "verify/report.json").write_text("{")
    return {}


@breaks("damaged dumps", RED, "the newest dump is damaged")
def the_newest_dump_lost_its_globals(case: Case) -> Mapping[str, str]:
    case.object(case.site.recent, "globals.sql.zst").unlink()
    return {}


@breaks("damaged dumps", YELLOW, "1, the newest of them")
def an_older_dump_lost_its_summary(case: Case) -> Mapping[str, str]:
    case.object(case.site.old, SUMMARY_SUFFIX[1:]).write_text("{")
    return {}


@breaks("unfinished dumps", YELLOW, "1, the newest of them postgres-backup-20200101-000000")
def a_run_was_killed_two_days_ago(case: Case) -> Mapping[str, str]:
    left = case.object("postgres-backup-20200101-000000", "intent")
    left.write_text("{}")
    let_time_pass(case.folder, hours=48)
    return {}


@breaks("last prune", RED, "retention.json is damaged")
def what_the_last_prune_left_is_damaged(case: Case) -> Mapping[str, str]:
    (case.folder / "retention.json").write_text("{")
    return {}


def take_lease(case: Case, *, hours_ago: float) -> Path:
    epoch = case.folder / "locks/dump/0000000099"
    epoch.mkdir(parents=True)
    (epoch / "holder").write_text("somebody")
    let_time_pass(case.folder, hours=hours_ago, below="locks")
    return epoch


@breaks("lease", YELLOW, "left by somebody, silent for 1 h 0 min: the next run takes it over")
def a_job_died_with_the_lease(case: Case) -> Mapping[str, str]:
    take_lease(case, hours_ago=1)
    return {}


@breaks("lease", RED, "and it lives: no other run gets it")
def a_job_holds_the_lease_for_days(case: Case) -> Mapping[str, str]:
    (take_lease(case, hours_ago=30) / "renewal-7").write_text("renewed\n")
    return {}


@breaks("holds", YELLOW, "1 keep a dump that is not there: postgres-backup-20200101-000000")
def a_hold_keeps_what_is_gone(case: Case) -> Mapping[str, str]:
    (case.folder / "holds").mkdir()
    (case.folder / "holds/postgres-backup-20200101-000000").write_text("{}")
    return {}


# -- keys


def seal_newest(case: Case, *recipients: str) -> dict[str, str]:
    settings = {"ENCRYPTION_RECIPIENTS": ",".join(recipients)}
    outcome = case.site.run("dump", "create", **settings)
    assert outcome.code == 0, outcome
    return settings


@breaks("encryption", YELLOW, "dumps are plain")
def nothing_is_sealed(case: Case) -> Mapping[str, str]:
    return {}


@breaks("encryption", RED, "no ENCRYPTION_RECIPIENTS to seal to: nothing is dumped plain")
def an_identity_and_no_recipients(case: Case) -> Mapping[str, str]:
    return {"ENCRYPTION_IDENTITY_FILE": "/etc/clipper-backup/identity"}


@breaks("encryption", RED, "the newest dump is sealed, and no ENCRYPTION_RECIPIENTS are set")
def the_recipients_got_lost(case: Case) -> Mapping[str, str]:
    seal_newest(case, Identity.make().recipient)
    return {}


@breaks("encryption", YELLOW, "the newest one is plain")
def sealing_was_switched_on_just_now(case: Case) -> Mapping[str, str]:
    return {"ENCRYPTION_RECIPIENTS": Identity.make().recipient}


@breaks("recipients", YELLOW, "one key opens dumps")
def one_key_alone(case: Case) -> Mapping[str, str]:
    return {"ENCRYPTION_RECIPIENTS": Identity.make().recipient}


@breaks("identity", RED, "there is no key file /nonexistent")
def the_identity_is_not_mounted(case: Case) -> Mapping[str, str]:
    return {"ENCRYPTION_IDENTITY_FILE": "/nonexistent", "ENCRYPTION_RECIPIENTS": "none"}


@breaks("key check", RED, "no check of a key is recorded")
def no_key_was_ever_tried(case: Case) -> Mapping[str, str]:
    return seal_newest(case, Identity.make().recipient, Identity.make().recipient)


def note_check(case: Case, recipient: str, *, days_ago: int) -> None:
    at = datetime.now(UTC) - timedelta(days=days_ago)
    mark = KeyCheck(recipient=recipient, dump_id=case.site.dumps[-1], checked_at=at, checked_by="somebody")
    (case.folder / "key-checks").mkdir(exist_ok=True)
    (case.folder / "key-checks" / recipient).write_bytes(encode(mark))


@breaks("key check", YELLOW, "opened the newest backups 31 d")
def the_key_was_tried_a_month_ago(case: Case) -> Mapping[str, str]:
    ours = Identity.make().recipient
    settings = seal_newest(case, ours)
    note_check(case, ours, days_ago=31)
    return settings


@breaks("key check", YELLOW, "no check of ")
def the_recovery_key_was_never_tried(case: Case) -> Mapping[str, str]:
    ours = Identity.make().recipient
    settings = seal_newest(case, ours, Identity.make().recipient)
    note_check(case, ours, days_ago=0)
    return settings


@breaks("key check", YELLOW, "was written by a newer version")
def a_newer_version_checked_the_key(case: Case) -> Mapping[str, str]:
    ours = Identity.make().recipient
    settings = seal_newest(case, ours)
    (case.folder / "key-checks").mkdir()
    (case.folder / "key-checks" / ours).write_text('{"schema": 2}')
    return settings


@breaks("signing", YELLOW, "dumps are not signed")
def nothing_is_signed(case: Case) -> Mapping[str, str]:
    return {}


@breaks("signing", RED, "the newest dump is not trusted")
def the_newest_dump_is_not_signed(case: Case) -> Mapping[str, str]:
    path = case.tmp_path / "signing.key"
    path.write_bytes(SigningKey.make().reveal())
    return {"SIGNING_KEY_FILE": str(path)}


@breaks("signing", RED, "there is no SIGNING_KEY_FILE")
def the_signing_key_is_not_mounted(case: Case) -> Mapping[str, str]:
    return {"SIGNATURE_KEYS": SigningKey.make().public}


@pytest.mark.parametrize("broken", breaks.all, ids=str)
def test_a_check_sees_what_is_wrong(broken: Broken, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    broken.check(case, monkeypatch)


def test_every_check_is_made_to_fail_here() -> None:
    assert {broken.name for broken in breaks.all} == names_in(of_dumps)
