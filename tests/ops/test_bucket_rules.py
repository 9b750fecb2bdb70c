"""Which lifecycle rules harm a repository: the rules of the source document, ours, and those of others in one bucket."""

from dataclasses import replace
from typing import Any

import pytest

from clipper_backup.buckets.facts import BucketFacts, Known, LifecycleRule, Unread
from clipper_backup.clock import SystemClock, VirtualClock
from clipper_backup.config import Settings
from clipper_backup.ops.bucket_check import Looked, judge_facts, judge_rules, measure_speed, read_facts, sweep_leftovers
from clipper_backup.ops.events import ignore
from clipper_backup.ops.findings import Colour
from clipper_backup.ops.work import Work
from clipper_backup.store.conformance import ROOM_PREFIX
from clipper_backup.store.faulty import FaultyStore
from clipper_backup.store.memory import MemoryStore
from clipper_backup.store.protocol import Store
from fixtures.clocks import START

RULE = LifecycleRule("it", "", False, None, None, None, None)
UPLOADS = replace(RULE, ends_uploads_after_days=7)
OLD = replace(RULE, deletes_old_versions_after_days=7)
GOOD = BucketFacts(Known(True), Known(0), Known("AES256"), Known(""), Known(True), Known((UPLOADS, OLD)))


def judged(*rules: LifecycleRule, prefix: str = "production/", versioned: bool = False) -> list[tuple[Colour, str]]:
    found = [looked.finding for looked in judge_rules([*rules, UPLOADS], prefix, 30, versioned=versioned)]
    assert all(finding.todo for finding in found if finding.colour is not Colour.GREEN)
    return [(finding.colour, finding.text) for finding in found]


def deleting(prefix: str, days: int = 30) -> LifecycleRule:
    return replace(RULE, prefix=prefix, deletes_after_days=days)


@pytest.mark.rule(104)
@pytest.mark.parametrize("prefix", [
    "", "p", "production", "production/", "production/holds/", "production/holds/postgres-backup-2", "production/repo",
    "production/retention.json", "production/key-checks", "production/locks/",
])  # fmt: skip
def test_a_rule_that_reaches_beyond_the_dumps_is_an_error(prefix: str) -> None:
    ((colour, text),) = judged(deleting(prefix))
    assert colour is Colour.RED
    assert "deletes beyond database/ after 30 days" in text


@pytest.mark.parametrize("prefix", ["production/database/", "production/database", "production/database/postgres-backup-2025"])
def test_one_for_the_dumps_alone_is_none_and_knows_no_holds(prefix: str) -> None:
    ((colour, text),) = judged(deleting(prefix))
    assert (colour, "neither holds nor RETENTION_MIN_DUMPS" in text) == (Colour.YELLOW, True)


@pytest.mark.parametrize("prefix", ["staging/", "productionX/", "database/", "production/reports/", "production/base-of-others/"])
def test_one_for_what_is_not_ours_does_no_harm(prefix: str) -> None:
    assert judged(deleting(prefix)) == [(Colour.GREEN, "1 rule, none of which does harm")]


def test_without_a_folder_every_rule_for_all_keys_is_ours() -> None:
    assert judged(deleting(""), prefix="")[0][0] is Colour.RED
    assert judged(deleting("database/"), prefix="")[0][0] is Colour.YELLOW
    assert judged(deleting("logs/"), prefix="")[0][0] is Colour.GREEN


def test_one_that_is_faster_than_retention_is_an_error() -> None:
    assert judged(deleting("production/database/", 29)) == [
        (Colour.RED, "rule 'it' deletes dumps after 29 days, before RETENTION_DAYS (30)")
    ]
    assert judged(deleting("production/database/", 0))[0] == (
        Colour.RED,
        "rule 'it' deletes dumps at a date or at once, before RETENTION_DAYS (30)",
    )


def test_a_rule_for_objects_with_tags_is_not_for_ours() -> None:
    assert judged(replace(deleting(""), narrowed=True))[0][0] is Colour.GREEN


def test_a_class_that_takes_hours_to_read_is_an_error() -> None:
    ((colour, text),) = judged(replace(RULE, archives_after_days=7))
    assert (colour, text) == (Colour.RED, "rule 'it' moves objects where they cannot be read for hours")


@pytest.mark.rule(79)
def test_a_versioned_bucket_without_a_rule_for_old_versions_grows_for_ever() -> None:
    assert judged(versioned=True) == [(Colour.YELLOW, "no rule removes old versions: the bucket grows for ever")]
    assert judged(OLD, versioned=True)[0][0] is Colour.GREEN
    assert judged(replace(OLD, prefix="staging/"), versioned=True)[0][0] is Colour.YELLOW


def test_unfinished_uploads_need_a_rule_that_covers_all_dumps() -> None:
    for prefix in ("", "production/", "production/database/"):
        assert [each.finding.colour for each in judged_alone(replace(UPLOADS, prefix=prefix))] == [Colour.GREEN]
    for rule in (RULE, *(replace(UPLOADS, prefix=f"production/{part}") for part in ("database/postgres-backup-2025", "holds/"))):
        (looked,) = judged_alone(rule)
        assert (looked.finding.colour, "unfinished uploads" in looked.finding.text) == (Colour.YELLOW, True)


def judged_alone(rule: LifecycleRule) -> list[Looked]:
    return judge_rules([rule], "production/", 30, versioned=False)


@pytest.mark.parametrize(("changed", "name", "colour", "words"), [
    ({}, "lifecycle rules", Colour.GREEN, "none of which does harm"),
    ({"rules": Unread("no permission")}, "lifecycle rules", Colour.YELLOW, "not known: no permission"),
    ({}, "versioning", Colour.GREEN, "on: "),
    ({"versioning": Known(False)}, "versioning", Colour.YELLOW, "off: "),
    ({"versioning": Unread("no permission")}, "versioning", Colour.YELLOW, "not known: no permission"),
    ({"versioning": Known(False), "kept_days": Known(7)}, "versioning", Colour.GREEN, "brought back for 7 days"),
    ({"versioning": Known(False), "kept_days": Unread("no role")}, "versioning", Colour.YELLOW, "is not known: no role"),
    ({}, "encryption", Colour.GREEN, "AES256"),
    ({"encryption": Known("")}, "encryption", Colour.YELLOW, "encrypts nothing"),
    ({"encryption": Unread("no permission")}, "encryption", Colour.YELLOW, "not known: no permission"),
    ({}, "public access", Colour.GREEN, "blocked"),
    ({"public_blocked": Known(False)}, "public access", Colour.YELLOW, "nothing keeps it so"),
    ({"public_blocked": Unread("no permission")}, "public access", Colour.YELLOW, "not known: no permission"),
    ({"public": Unread("no permission")}, "public access", Colour.YELLOW, "not known: no permission"),
    ({"public": Known("everybody reads"), "public_blocked": Unread("x")}, "public access", Colour.RED, "it is public: everybody"),
])  # fmt: skip
def test_what_is_said_of_a_bucket(changed: dict[str, object], name: str, colour: Colour, words: str) -> None:
    looked = {each.name: each.finding for each in judge_facts(replace(GOOD, **changed), "production/", 30)}  # type: ignore[arg-type]  # from the table above
    assert looked[name].colour is colour
    assert words in looked[name].text


def test_what_nobody_can_be_asked_is_not_known_and_never_green() -> None:
    found = judge_facts(Unread("boto3 is not installed"), "", 30)
    assert {each.finding.colour for each in found} == {Colour.YELLOW}
    assert len(found) == 4


@pytest.mark.parametrize("field", ["versioning", "kept_days", "encryption", "public", "public_blocked", "rules"])
def test_whoever_can_look_is_told_how(field: str) -> None:
    changed = {"versioning": Known(False)} | {field: Unread("no permission", "ask --the provider")}
    facts = replace(GOOD, **changed)  # type: ignore[arg-type]  # from the list above
    unknown = [each.finding for each in judge_facts(facts, "production/", 30) if "no permission" in each.finding.text]
    assert [finding.todo[0] for finding in unknown] == ["look yourself: ask --the provider"]


@pytest.mark.rule(79)
def test_old_versions_may_go_at_once() -> None:
    assert judged(replace(OLD, deletes_old_versions_after_days=0), versioned=True)[0][0] is Colour.GREEN


# -- what fails is a line of its own


def working(store: Store, **settings: Any) -> Work:
    return Work(Settings(**settings), store, SystemClock(), ignore)


def test_a_speed_that_could_not_be_measured_is_red() -> None:
    clock = SystemClock()
    looked, speed = measure_speed(working(FaultyStore(MemoryStore(clock), "put_stream:1:broken", clock)), 1 << 20)
    assert (looked.name, looked.finding.colour, speed) == ("speed", Colour.RED, None)
    assert looked.finding.todo


def test_leftovers_that_may_not_be_removed_are_red() -> None:
    clock = VirtualClock(START)
    store = MemoryStore(clock)
    store.put(f"{ROOM_PREFIX}0123456789abcdef/object", b"")
    clock.advance(25 * 3600)
    (looked,), swept = sweep_leftovers(FaultyStore(store, "delete:1:denied", clock))
    assert (looked.name, looked.finding.colour, swept) == ("leftovers", Colour.RED, None)
    assert sweep_leftovers(store) == ([], 1)


def test_whatever_an_sdk_raises_the_bucket_is_not_known() -> None:
    """botocore takes no such endpoint, and says so by a ValueError of Python's."""
    facts = read_facts(working(MemoryStore(SystemClock()), backup_url="s3://bucket", backup_endpoint="http://no host"), {})
    assert isinstance(facts, Unread)
    assert "ValueError: Invalid endpoint" in facts.why


def test_a_store_that_fails_for_azure_is_not_known() -> None:
    clock = SystemClock()
    store = FaultyStore(MemoryStore(clock), "put:1:denied", clock)
    facts = read_facts(working(store, backup_url="az://bucket", azure_storage_account="account"), {})
    assert isinstance(facts, Unread)
