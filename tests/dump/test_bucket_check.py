"""`bucket check`, the real program, on folders and on buckets of a real S3 server, well-behaved and not."""

import signal
from contextlib import closing
from pathlib import Path

import pytest

from clipper_backup.format import names
from fixtures.azurite import AzureServer
from fixtures.buckets import Bucket
from fixtures.cli import RunCli, StartCli
from fixtures.dump import FAULTS, Site, check_told, ended, halted, let_time_pass, objects
from fixtures.gcs import GcsServer, owner
from fixtures.stores import StorePlace

pytestmark = pytest.mark.soak(share=0.15)

QUICK = ("bucket", "check", "--objects", "20", "--size", "9MiB")
PROVIDED = ("versioning", "encryption", "lifecycle rules")
ABORT = {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7}}


def colours(items: list[dict[str, str]], name: str) -> list[str]:
    return [item["colour"] for item in items if item["id"] == name]


def test_a_good_store_is_green_and_is_left_as_it_was(run_cli: RunCli, store_place: StorePlace) -> None:
    store = store_place.open()
    store.put("database/of-somebody", b"as it was")
    outcome = run_cli(*QUICK, "--json", env=store_place.environment)
    assert (outcome.code, outcome.document["red"]) == (0, 0), outcome
    assert [info.key for info in store.list("")] == ["database/of-somebody"]
    document = outcome.document
    assert len(document["items"]) >= 16 + 2 + 4, "each check of the suite, the clock, the speed, and what the provider says"
    assert document["size_bytes"] == 9 << 20
    assert min(document["write_bytes_per_second"], document["read_bytes_per_second"]) > 0
    assert abs(document["clock_ahead_seconds"]) < 60


def test_a_store_that_creates_over_what_is_there_is_red_and_left_empty(run_cli: RunCli, local_place: StorePlace) -> None:
    """Also where nothing can be streamed: how fast it is, is not known then, and all else is still said."""
    outcome = run_cli(*QUICK, "--json", env={**local_place.environment, FAULTS: "put:1+:overwrite,put_stream:1+:broken"})
    assert outcome.code == 1
    reds = {item["id"] for item in outcome.document["items"] if item["colour"] == "red"}
    assert {"create refuses a taken key", "one of many rivals creates", "speed"} <= reds
    assert any("second create: expected ObjectExistsError" in item["text"] for item in outcome.document["items"])
    assert outcome.document["write_bytes_per_second"] is None
    assert outcome.document["items"][-1]["id"] == "public access"
    assert list(local_place.open().list("")) == []


def test_a_store_that_cannot_be_written_is_an_error_at_once(run_cli: RunCli, bucket: Bucket) -> None:
    outcome = run_cli(*QUICK, env={**bucket.environment, **bucket.as_reader()})
    assert outcome.code == 12
    assert outcome.stdout == ""


def test_what_a_killed_check_left_is_removed_a_day_later(run_cli: RunCli, local_place: StorePlace) -> None:
    folder = Path(local_place.url.removeprefix("file://"))
    killed = run_cli(*QUICK, env={**local_place.environment, FAULTS: "put_stream:3:kill"})
    assert killed.code < 0
    left = set(objects(folder))
    assert left
    again = run_cli(*QUICK, "--json", env=local_place.environment, check=True)
    assert (again.document["leftovers_removed"], set(objects(folder))) == (0, left), "its check may still be at work"
    let_time_pass(folder, hours=25)
    later = run_cli(*QUICK, "--json", env=local_place.environment, check=True)
    assert (later.document["leftovers_removed"], objects(folder)) == (len(left), {})


def test_one_that_is_stopped_takes_back_what_it_made(start_cli: StartCli, local_place: StorePlace) -> None:
    folder = Path(local_place.url.removeprefix("file://"))
    process = start_cli("bucket", "check", env={**local_place.environment, FAULTS: "put:40:stop"})
    assert halted(process)
    assert objects(folder), "it is in the middle of a check"
    process.terminate()
    process.send_signal(signal.SIGCONT)
    assert ended(process).code == 143
    assert objects(folder) == {}


@pytest.mark.rule(104)
def test_the_rule_of_the_source_document_is_an_error(run_cli: RunCli, bucket: Bucket) -> None:
    """Delete every object at age 30: it eats holds and repository.json under living dumps."""
    bucket.rule({"Expiration": {"Days": 30}}, ABORT)
    outcome = run_cli(*QUICK, env=bucket.environment)
    check_told(outcome, 1, "red, 1 of ", "lifecycle rules", hint="what to do")
    assert "rule 'rule-0' deletes beyond database/ after 30 days" in outcome.stdout
    assert "-> narrow it to the prefix production/database/, or remove it" in outcome.stdout

    bucket.rule({"Filter": {"Prefix": "production/database/"}, "Expiration": {"Days": 30}}, ABORT)
    narrowed = run_cli(*QUICK, "--json", env=bucket.environment, check=True)
    assert [colours(narrowed.document["items"], name) for name in PROVIDED] == [["yellow"]] * 3


def test_what_the_provider_says_is_shown(run_cli: RunCli, bucket: Bucket) -> None:
    bucket.version("Enabled")
    bucket.encrypt()
    bucket.rule({"NoncurrentVersionExpiration": {"NoncurrentDays": 7}} | ABORT)
    bucket.client.put_bucket_acl(Bucket=bucket.name, ACL="public-read")
    outcome = run_cli(*QUICK, "--json", env={**bucket.environment, "STORE_RETRY_SECONDS": "0"})
    items = outcome.document["items"]
    assert [colours(items, name) for name in PROVIDED] == [["green"]] * 3
    # SeaweedFS itself: with versioning on it answers 500 to names that it takes without.
    assert {item["id"] for item in items if item["colour"] == "red"} == {"long keys are keys", "public access"}
    assert outcome.code == 1


@pytest.mark.rule(104)
def test_the_rule_of_the_source_document_is_an_error_at_google_too(run_cli: RunCli, gcs_server: GcsServer) -> None:
    place = {"BACKUP_URL": f"gs://{gcs_server.bucket}/facts", "BACKUP_ENDPOINT": gcs_server.endpoint} | gcs_server.environment
    with closing(owner(gcs_server)) as client:
        told = client.create_bucket(gcs_server.bucket)
        told.add_lifecycle_delete_rule(age=30)
        told.patch()
        outcome = run_cli(*QUICK, env=place)
        told.delete()
    check_told(outcome, 1, "red, 1 of ", "lifecycle rules", hint="what to do")
    assert "rule 'no. 1' deletes beyond database/ after 30 days" in outcome.stdout
    assert "-> narrow it to the prefix facts/database/, or remove it" in outcome.stdout


def test_of_azure_it_says_what_its_data_tells_and_how_to_see_the_rest(run_cli: RunCli, azure_server: AzureServer) -> None:
    url = {"BACKUP_URL": f"az://{azure_server.bucket}/facts", "BACKUP_ENDPOINT": azure_server.endpoint}
    outcome = run_cli(*QUICK, "--json", env=url | azure_server.environment, check=True)
    items = {item["id"]: item for item in outcome.document["items"]}
    assert [items[name]["colour"] for name in ("lifecycle rules", "versioning", "encryption")] == ["yellow", "yellow", "green"]
    assert items["public access"]["text"].startswith("not public; ")
    show = f"az storage account management-policy show --account-name {azure_server.account} --resource-group YOUR_GROUP"
    assert items["lifecycle rules"]["todo"] == [f"look yourself: {show}"]
    assert azure_server.key not in outcome.stdout + outcome.stderr
    assert list(azure_server.open("facts").list("")) == [], "the blob that was asked about is gone"


def test_without_boto3_it_says_what_is_missing(run_cli: RunCli, bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "boto3.py").write_text("raise ImportError('as if it were not installed')\n")
    outcome = run_cli(*QUICK, env={**bucket.environment, "PYTHONPATH": str(tmp_path)}, check=True)
    assert outcome.stdout.count("boto3 is not installed") == 4
    assert "pip install 'clipper-backup[s3]'" in outcome.stdout


@pytest.mark.parametrize(("size", "words"), [("much", "not a size"), ("1kB", "outside"), ("11GiB", "outside")])
def test_sizes_that_make_no_sense(run_cli: RunCli, local_place: StorePlace, size: str, words: str) -> None:
    check_told(run_cli("bucket", "check", "--size", size, env=local_place.environment), 2, "--size", words, hint=None)


def test_all_that_a_repository_is_made_of_is_known_to_be_so(site: Site, tmp_path: Path) -> None:
    """What lifecycle rules are judged by: an object of another name would be nobody's harm."""
    key = tmp_path / "key"
    made = site.run("key", "generate", "--output", str(key), "--json").document["id"]
    settings = {"ENCRYPTION_RECIPIENTS": made}
    for words in (["job", "postgres-backup"], ["hold", "latest"], ["key", "check", "--identity", str(key)], ["doctor"]):
        assert site.run(*words, **settings).code == 0, words
    strange = [key for key in site.objects if not key.startswith(names.OWN) and key != "clock"]
    assert strange == []
