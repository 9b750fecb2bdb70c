"""Sealed and signed dumps with the real program: who can read them, who can make them, and what each of the others is told."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from clipper_backup.format.documents import DumpSummary, decode, encode
from clipper_backup.postgres.server import PrivateServer
from fixtures.cli import Outcome
from fixtures.dump import FAULTS, SUMMARY_SUFFIX, Site, check_told, ended
from fixtures.keys import Key, opening
from fixtures.oracle import content_now
from fixtures.postgres import server_binaries, sql

pytestmark = pytest.mark.soak(share=0.15)

PLAIN = ("backup.json", "backup.json.sig", "intent")


def dumped(site: Site, **settings: str) -> str:
    outcome = site.run("dump", "create", "--json", **settings)
    assert outcome.code == 0, outcome
    return str(outcome.document["id"])


@pytest.fixture
def into(site: Site) -> Iterator[str]:
    name = f"{site.database}_opened"
    yield name
    sql(site.server, "postgres", f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def check_same(server: PrivateServer, one: str, other: str) -> None:
    with content_now(server, one) as source, content_now(server, other) as copy:
        assert copy == source


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_each_recipient_alone_opens_a_sealed_dump(
    site: Site, keys: dict[str, Key], sealing: dict[str, str], into: str, jobs: str
) -> None:
    dump_id = dumped(site, DUMP_JOBS=jobs, **sealing)
    for name in ("operator", "recovery"):
        with_it = opening(keys[name])
        verified = site.run("dump", "verify", dump_id, **with_it)
        assert verified.code == 0, verified
        restored = site.run("dump", "restore", dump_id, "--into", into, "--jobs", jobs, **with_it)
        assert restored.code == 0, restored
        check_same(site.server, site.database, into)
        sql(site.server, "postgres", f'DROP DATABASE "{into}"')


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_sealed_dump_shows_nothing_of_what_is_in_it(site: Site, sealing: dict[str, str], jobs: str) -> None:
    sql(site.server, "postgres", "DROP ROLE IF EXISTS sealed_role")
    sql(site.server, "postgres", "CREATE ROLE sealed_role LOGIN PASSWORD 'sealed_password'")
    try:
        before = site.objects
        dump_id = dumped(site, DUMP_JOBS=jobs, VALIDATION_QUERIES="strange: SELECT 'sealed_answer' FROM nowhere", **sealing)
        plain = dumped(site, DUMP_JOBS=jobs, ENCRYPTION_RECIPIENTS="none")
    finally:
        sql(site.server, "postgres", "DROP ROLE sealed_role")
    made = {key: data for key, data in site.objects.items() if key not in before and dump_id in key}
    assert {key.removeprefix(f"database/{dump_id}.") for key in made if not key.endswith(".age")} <= set(PLAIN)
    assert len([key for key in made if key.endswith(".age")]) == 3
    for key, data in made.items():
        assert data.startswith(b"age-encryption.org/v1\n") == key.endswith(".age")
        for secret in (b"clips", b"users", b"sealed_", b"PGDMP", b"\x28\xb5\x2f\xfd"):
            assert secret not in data, key
    summary = json.loads(made[f"database/{dump_id}.backup.json"])
    assert (summary["rows"], summary["warnings"]) == (None, [])
    listed = {entry["id"]: entry for entry in site.run("dump", "list", "--json").document["items"]}
    assert listed[dump_id]["rows"] is None
    assert len(listed[dump_id]["recipients"]) == 2
    assert listed[plain]["rows"] > 0
    assert "sealed" in site.run("dump", "list").stdout


def test_without_its_key_a_sealed_dump_is_compared_but_not_opened(
    site: Site, keys: dict[str, Key], sealing: dict[str, str], into: str, tmp_path: Path
) -> None:
    dump_id = dumped(site, **sealing)

    shown = site.run("dump", "show", dump_id)
    assert shown.code == 0
    assert "sealed" in shown.stdout
    assert keys["recovery"].public in shown.stdout
    check_told(site.run("dump", "verify", dump_id), 3, "every stored byte", "was not opened", hint="ENCRYPTION_IDENTITY_FILE")
    for words in (("restore", dump_id, "--into", into), ("fetch", dump_id, "--to", str(tmp_path / "fetched"))):
        refused = site.run("dump", *words)
        check_told(refused, 12, "is sealed", "no identity", hint="ENCRYPTION_IDENTITY_FILE")
    assert site.run("dump", "fetch", dump_id, "--as-stored", "--to", str(tmp_path / "stored")).code == 0
    assert {path.suffix for path in (tmp_path / "stored").iterdir()} == {".age"}


def test_another_key_than_its_own_is_told_whose_it_is(
    site: Site, keys: dict[str, Key], sealing: dict[str, str], into: str
) -> None:
    dump_id = dumped(site, **sealing)
    for words in (("verify", dump_id), ("restore", dump_id, "--into", into), ("show", dump_id)):
        refused = site.run("dump", *words, **opening(keys["stranger"]))
        check_told(refused, 12, "sealed to other keys", keys["stranger"].public, hint=keys["recovery"].public)
    missing = site.run("dump", "verify", dump_id, ENCRYPTION_IDENTITY_FILE=str(keys["stranger"].path.with_name("gone")))
    check_told(missing, 15, "there is no key file", hint="mounted")


@pytest.mark.rule(86)
def test_rule_86_what_is_configured_for_secrecy_never_ends_in_a_plain_dump(
    site: Site, keys: dict[str, Key], sealing: dict[str, str]
) -> None:
    secret = keys["operator"].path.read_text().splitlines()[-1]
    for settings, code, words in (
        (opening(keys["operator"]), 2, "no ENCRYPTION_RECIPIENTS"),
        ({"ENCRYPTION_RECIPIENTS": ""}, 2, "is there but empty"),
        ({"ENCRYPTION_RECIPIENTS": "age1nonsense"}, 2, "not an age recipient"),
        ({"ENCRYPTION_RECIPIENTS": f"{keys['operator'].public},age1"}, 2, "not an age recipient"),
        ({"ENCRYPTION_RECIPIENTS": secret}, 2, "ENCRYPTION_RECIPIENTS"),
        ({"SIGNING_KEY_FILE": str(keys["operator"].path)}, 2, "not an Ed25519 private key"),
        ({"SIGNATURE_KEYS": "ed25519:nonsense"}, 2, "not a public signing key"),
        ({"SIGNATURE_KEYS": keys["signer"].public}, 2, "asks for signed dumps"),
        ({"SIGNATURE_KEYS": keys["signer"].public, "SIGNING_KEY_FILE": str(keys["forger"].path)}, 2, "none of SIGNATURE_KEYS"),
        ({"ENCRYPTION_IDENTITY_FILE": secret}, 2, "ENCRYPTION_IDENTITY_FILE"),
    ):
        outcome = site.run("dump", "create", **settings)
        site.check_refused(outcome, code, words)
        assert secret not in outcome.stderr

    dump_id = dumped(site, **sealing)
    forgotten = site.run("dump", "create")
    check_told(forgotten, 2, dump_id, "is sealed", hint="ENCRYPTION_RECIPIENTS")
    for path in (site.folder / "database").glob(f"{dump_id}.*.age"):
        path.unlink()
    check_told(site.run("dump", "create"), 2, dump_id, "is sealed", hint="ENCRYPTION_RECIPIENTS")
    assert site.dumps[-1] == dump_id
    assert dumped(site, ENCRYPTION_RECIPIENTS="none") > dump_id
    assert site.run("dump", "create").code == 0


def test_an_unsigned_dump_never_follows_a_signed_one_by_mistake(site: Site, keys: dict[str, Key]) -> None:
    dump_id = dumped(site, SIGNING_KEY_FILE=str(keys["signer"].path))
    forgotten = site.run("dump", "create")
    check_told(forgotten, 2, dump_id, "is signed", hint="SIGNING_KEY_FILE")
    (site.folder / "database" / f"{dump_id}.backup.json.sig").unlink()
    check_told(site.run("dump", "create"), 2, dump_id, "is signed", hint="SIGNING_KEY_FILE")
    assert site.dumps[-1] == dump_id
    assert dumped(site, SIGNING_KEY_FILE="none") > dump_id
    assert site.run("dump", "create").code == 0


def test_the_only_dump_is_not_deleted_because_its_key_is_not_known(site: Site, keys: dict[str, Key]) -> None:
    dump_id = dumped(site, SIGNING_KEY_FILE=str(keys["signer"].path))
    wrong = {"SIGNATURE_KEYS": keys["forger"].public}
    check_told(site.run("dump", "delete", dump_id, "--yes", **wrong), 2, "is not trusted", site.database, hint="SIGNATURE_KEYS")
    assert dump_id in site.dumps
    assert site.run("dump", "delete", dump_id, "--yes", "--last", **wrong).code == 0
    assert dump_id not in site.dumps


@pytest.mark.parametrize("where", ["dump.zst.age", "globals.sql.zst.age", "details.zst.age"])
def test_damage_in_a_sealed_dump_is_found(
    site: Site, keys: dict[str, Key], sealing: dict[str, str], into: str, where: str
) -> None:
    dump_id = dumped(site, **sealing)
    (path,) = (site.folder / "database").glob(f"{dump_id}.*{where}")
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)
    for words in (("verify", dump_id), ("restore", dump_id, "--into", into)):
        check_told(site.run("dump", *words, **opening(keys["operator"])), 13, path.name)
    check_told(site.run("dump", "verify", dump_id), 13, path.name)


def test_a_signed_dump_is_taken_where_its_key_is_trusted(
    site: Site, keys: dict[str, Key], sealing: dict[str, str], into: str
) -> None:
    dump_id = dumped(site, SIGNING_KEY_FILE=str(keys["signer"].path), **sealing)
    trusting = {"SIGNATURE_KEYS": keys["signer"].public, **opening(keys["operator"])}
    assert site.run("dump", "verify", dump_id, **trusting).code == 0
    assert site.run("dump", "restore", dump_id, "--into", into, **trusting).code == 0
    check_same(site.server, site.database, into)
    document = (site.folder / "database" / f"{dump_id}{SUMMARY_SUFFIX}").read_bytes()
    assert decode(document, DumpSummary, "it").id == dump_id


@dataclass(frozen=True)
class Attack:
    """Somebody who can write into the store, and knows every public key and one recipient's secret."""

    site: Site
    keys: dict[str, Key]
    sealing: dict[str, str]
    real: str

    def unsigned(self) -> str:
        """A dump of his own, sealed to the same keys."""
        return dumped(self.site, SIGNING_KEY_FILE="none", **self.sealing)

    def signed_by_himself(self) -> str:
        """The same with his own signing key."""
        return dumped(self.site, SIGNING_KEY_FILE=str(self.keys["forger"].path), **self.sealing)

    def renamed(self) -> str:
        """The real one once more, as a newer one."""
        newer = self.real.replace("postgres-backup-2", "postgres-backup-3")
        for path in list((self.site.folder / "database").glob(f"{self.real}.*")):
            shutil.copy(path, path.with_name(path.name.replace(self.real, newer)))
        return newer

    def without_signature(self) -> str:
        """The real one whose signature he removed."""
        (self.site.folder / "database" / f"{self.real}.backup.json.sig").unlink()
        return self.real

    def changed(self) -> str:
        """The real one, with another object in place of one of it."""
        path = self.site.folder / "database" / f"{self.real}{SUMMARY_SUFFIX}"
        document = json.loads(path.read_bytes())
        document["objects"][0]["sha256"] = "0" * 64
        path.write_bytes(encode(decode(json.dumps(document).encode(), DumpSummary, "it")))
        return self.real

    def with_signature_of_another(self) -> str:
        """A dump of his own with the signature of the real one."""
        forged = dumped(self.site, SIGNING_KEY_FILE="none", **self.sealing)
        folder = self.site.folder / "database"
        shutil.copy(folder / f"{self.real}.backup.json.sig", folder / f"{forged}.backup.json.sig")
        return forged


@pytest.mark.parametrize(
    "way", ["unsigned", "signed_by_himself", "renamed", "without_signature", "changed", "with_signature_of_another"]
)
def test_nobody_forges_a_dump_where_a_key_is_trusted(
    site: Site, keys: dict[str, Key], sealing: dict[str, str], into: str, tmp_path: Path, way: str
) -> None:
    real = dumped(site, SIGNING_KEY_FILE=str(keys["signer"].path), **sealing)
    forged = getattr(Attack(site, keys, sealing, real), way)()
    trusting = {"SIGNATURE_KEYS": keys["signer"].public, **opening(keys["operator"])}
    for words in (
        ("verify", forged),
        ("show", forged),
        ("restore", forged, "--into", into),
        ("restore", "latest", "--into", into),
        ("fetch", forged, "--to", str(tmp_path / "fetched")),
    ):
        check_told(site.run("dump", *words, **trusting), 13, forged, hint=None)
    listed = {entry["id"]: entry for entry in site.run("dump", "list", "--json", **trusting).document["items"]}
    assert listed[forged]["state"] == ("damaged" if way == "renamed" else "untrusted")
    if way in {"unsigned", "signed_by_himself", "without_signature"}:
        assert site.run("dump", "verify", forged, "--unsigned", **trusting).code == 0


def test_nothing_of_a_swapped_archive_is_run_where_a_key_is_trusted(
    site: Site, keys: dict[str, Key], sealing: dict[str, str], into: str, tmp_path: Path
) -> None:
    """Its SHA-256 is known only after its last byte: by then a stream of it would have been executed."""
    real = dumped(site, SIGNING_KEY_FILE=str(keys["signer"].path), **sealing)
    other = dumped(site, SIGNING_KEY_FILE="none", **sealing)
    for path in (site.folder / "database").glob(f"{other}.*.dump.zst.age"):
        shutil.copy(path, path.with_name(path.name.replace(other, real)))
    ran, programs = tmp_path / "ran", tmp_path / "bin"
    programs.mkdir()
    for program in ("pg_dump", "pg_dumpall", "psql"):
        (programs / program).symlink_to(server_binaries(15).program(program))
    wrapper = programs / "pg_restore"
    wrapper.write_text(f'#!/bin/sh\necho "$*" >> {ran}\nexec {server_binaries(15).program("pg_restore")} "$@"\n')
    wrapper.chmod(0o755)
    trusting = {"SIGNATURE_KEYS": keys["signer"].public, "PG_BINDIR": str(programs), **opening(keys["operator"])}
    check_told(site.run("dump", "restore", real, "--into", into, **trusting), 13, real, "committed")
    assert "--dbname" not in ran.read_text()
    assert site.run("dump", "restore", other, "--into", into, "--unsigned", **trusting).code == 0
    assert "--dbname" in ran.read_text()


def test_a_dump_of_another_repository_is_not_taken(site: Site, keys: dict[str, Key], into: str, tmp_path: Path) -> None:
    signing = {"SIGNING_KEY_FILE": str(keys["signer"].path)}
    elsewhere = tmp_path / "elsewhere"
    copied = dumped(site, BACKUP_URL=f"file://{elsewhere}", **signing)
    for path in (elsewhere / "database").glob(f"{copied}.*"):
        shutil.copy(path, site.folder / "database")
    check_told(site.run("dump", "restore", copied, "--into", into, **signing), 13, "for another repository")
    # The name of a repository is not signed: what tells two apart when that is copied too is a key for each.
    shutil.copy(elsewhere / "repository.json", site.folder / "repository.json")
    assert site.run("dump", "verify", copied, **signing).code == 0
    own = {"SIGNATURE_KEYS": keys["forger"].public}
    check_told(site.run("dump", "restore", copied, "--into", into, **own), 13, "no key that is trusted")


def test_what_happens_while_a_signing_key_is_changed(site: Site, keys: dict[str, Key]) -> None:
    old, new = keys["signer"], keys["forger"]
    before = dumped(site, SIGNING_KEY_FILE=str(old.path))
    too_early = site.run("dump", "create", SIGNING_KEY_FILE=str(new.path), SIGNATURE_KEYS=old.public)
    check_told(too_early, 2, new.public, hint="SIGNATURE_KEYS")

    new_alone = {"SIGNING_KEY_FILE": str(new.path)}
    check_told(site.run("dump", "verify", before, **new_alone), 13, before, hint="the old public key")
    check_told(site.run("status", **new_alone), 13, "not trusted")
    after = dumped(site, **new_alone)
    check_told(site.run("status", **new_alone), 3, "not trusted")
    assert site.run("prune", "--yes", RETENTION_DAYS="1", RETENTION_MIN_DUMPS="2", **new_alone).code == 0

    both = {"SIGNING_KEY_FILE": str(new.path), "SIGNATURE_KEYS": f"{new.public},{old.public}"}
    for dump_id in (before, after):
        assert site.run("dump", "verify", dump_id, **both).code == 0


def test_unsigned_wants_a_dump_by_its_name(site: Site, keys: dict[str, Key], into: str) -> None:
    trusting = {"SIGNATURE_KEYS": keys["signer"].public}
    check_told(site.run("dump", "restore", "latest", "--into", into, "--unsigned", **trusting), 2, "latest", hint="dump list")
    assert site.run("dump", "restore", site.recent, "--into", into, "--unsigned", **trusting).code == 0
    held = site.run("hold", site.recent, **trusting)
    assert held.code == 0
    assert "is not signed" in held.stderr


def test_who_only_reads_needs_no_signing_key(site: Site, keys: dict[str, Key]) -> None:
    dump_id = dumped(site, SIGNING_KEY_FILE=str(keys["signer"].path))
    gone = {"SIGNING_KEY_FILE": str(keys["signer"].path.with_name("gone"))}
    check_told(site.run("dump", "verify", dump_id, **gone), 15, "there is no key file", hint="SIGNATURE_KEYS")
    assert site.run("dump", "verify", dump_id, SIGNATURE_KEYS=keys["signer"].public, **gone).code == 0
    assert site.run("dump", "verify", dump_id, "--unsigned", **gone).code == 0


def test_key_public_prints_what_the_settings_take(site: Site, keys: dict[str, Key], tmp_path: Path) -> None:
    for key in keys.values():
        assert site.run("key", "public", str(key.path)).stdout == f"{key.public}\n"
    pem = site.run("key", "public", "--pem", str(keys["signer"].path)).stdout
    dump_id = dumped(site, SIGNING_KEY_FILE=str(keys["signer"].path))
    (tmp_path / "public.pem").write_text(pem)
    summary = site.folder / "database" / f"{dump_id}.backup.json"
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(tmp_path / "public.pem"), "-rawin", "-in", str(summary)]
    subprocess.run([*command, "-sigfile", f"{summary}.sig"], check=True, capture_output=True)
    check_told(site.run("key", "public", "--pem", str(keys["operator"].path)), 2, "holds no signing key", hint=None)


def test_a_flipped_key_in_the_head_is_damage_and_no_wrong_key(site: Site, keys: dict[str, Key], sealing: dict[str, str]) -> None:
    dump_id = dumped(site, **sealing)
    for path in (site.folder / "database").glob(f"{dump_id}.*.age"):
        data = path.read_bytes()
        at = data.index(b"-> X25519") + 70
        path.write_bytes(data[:at] + (b"B" if data[at : at + 1] == b"A" else b"A") + data[at + 1 :])
    for name in ("operator", "recovery"):
        check_told(site.run("dump", "verify", dump_id, **opening(keys[name])), 13, "SHA-256")


@pytest.mark.parametrize("harm", ["another letter", "no letter of age"])
def test_key_check_calls_damage_damage(site: Site, keys: dict[str, Key], sealing: dict[str, str], harm: str) -> None:
    dump_id = dumped(site, **sealing)
    (path,) = (site.folder / "database").glob(f"{dump_id}.globals.*.age")
    data = path.read_bytes()
    at = data.index(b"-> X25519") + 70
    harmed = {
        "another letter": data[:at] + (b"B" if data[at : at + 1] == b"A" else b"A") + data[at + 1 :],
        "no letter of age": data[:at] + b"(" + data[at + 1 :],  # then it is no age file at all
    }
    path.write_bytes(harmed[harm])
    check_told(site.run("key", "check", "--identity", str(keys["operator"].path)), 13, path.name, "damaged")


def test_a_dump_that_nobody_trusts_does_not_let_a_good_one_go(site: Site, keys: dict[str, Key], sealing: dict[str, str]) -> None:
    real = dumped(site, SIGNING_KEY_FILE=str(keys["signer"].path), **sealing)
    for _ in range(3):
        dumped(site, SIGNING_KEY_FILE="none", **sealing)
    trusting = {"SIGNATURE_KEYS": keys["signer"].public}
    check_told(site.run("dump", "delete", real, "--yes", **trusting), 2, real, "newest good dump")


@pytest.mark.rule(87)
def test_rule_87_old_keys_are_listed_while_a_dump_needs_them_and_key_check_shows_what_a_key_opens_and_records_it(
    site: Site, keys: dict[str, Key], sealing: dict[str, str], tmp_path: Path
) -> None:
    check_told(site.run("key", "check", "--identity", str(keys["operator"].path)), 2, "is not sealed", hint=None)
    dump_id = dumped(site, **sealing)
    blind = dict.fromkeys(("PGHOST", "PGPORT", "PGPASSWORD"), "")  # no database is asked
    checked = site.run("key", "check", "--identity", str(keys["recovery"].path), "--json", **blind)
    assert checked.code == 0, checked
    opened = [{"id": keys["recovery"].public}]
    document = dict(checked.document)
    newest = document.pop("newest")
    assert [(each["kind"], each["name"], each["keys"]) for each in newest] == [("dump", dump_id, [keys["recovery"].public])]
    assert document == {"schema": 1, "items": opened, "dump": dump_id, "objects": 3, "recorded": True}
    refused = site.run("key", "check", "--identity", str(keys["stranger"].path))
    check_told(refused, 12, "sealed to other keys", keys["stranger"].public, hint=keys["operator"].public)
    both = tmp_path / "both.key"
    both.write_text(keys["stranger"].path.read_text() + keys["operator"].path.read_text())
    assert site.run("key", "check", "--identity", str(both), "--json").document["items"] == [{"id": keys["operator"].public}]

    # Where the store may only be read the mark is told, and recorded by somebody who has no key.
    (site.folder / f"key-checks/{keys['operator'].public}").unlink()
    told = site.run("key", "check", "--identity", str(keys["operator"].path), "--json", **{FAULTS: "put:1+:denied"})
    assert (told.code, told.document["recorded"]) == (0, False)
    where, mark = json.loads(told.stderr)["hints"][0].split(": ", 1)
    (site.folder / where.rsplit(" ", 1)[1]).write_text(mark)
    recorded = {key["id"]: key["checked_dump"] for key in site.run("status", "--json").document["keys"]}
    assert recorded == {keys["operator"].public: dump_id, keys["recovery"].public: dump_id}

    rotated = {"ENCRYPTION_RECIPIENTS": f"{keys['stranger'].public},{keys['recovery'].public}"}
    newer = dumped(site, **rotated)
    items = {item["id"]: item for item in site.run("key", "rotate", "--json", **rotated).document["items"]}
    assert [items[keys[name].public]["configured"] for name in ("operator", "recovery", "stranger")] == [False, True, True]
    assert items[keys["operator"].public]["dumps"] == [dump_id]
    assert items[keys["recovery"].public]["dumps"] == [dump_id, newer]
    assert items[keys["recovery"].public]["checked_at"] is not None
    assert items[keys["stranger"].public]["dumps"] == [newer]
    assert items[keys["stranger"].public]["checked_at"] is None
    text = site.run("key", "rotate", **rotated).stdout
    assert f"as long as any of its backups is kept, the newest: {dump_id}" in text
    assert "Nothing is revoked" in text


@pytest.mark.parametrize("options", [(), ("--signing",)])
def test_key_generate_never_overwrites_and_lets_nobody_else_read(site: Site, tmp_path: Path, options: tuple[str, ...]) -> None:
    path = tmp_path / "made.key"
    made = site.run("key", "generate", "--output", str(path), "--json", *options)
    assert site.run("key", "public", str(path)).stdout == f"{made.document['id']}\n"
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    check_told(site.run("key", "generate", "--output", str(path), *options), 2, str(path), "exists already")
    assert path.read_bytes() == before


def test_no_secret_is_said_or_stored(site: Site, keys: dict[str, Key], sealing: dict[str, str], into: str) -> None:
    signing = {"SIGNING_KEY_FILE": str(keys["signer"].path)}
    outcomes: list[Outcome] = []
    everything = {**sealing, **signing, **opening(keys["operator"])}
    outcomes += [site.run("dump", "create", *words, **everything) for words in ((), ("--json",), ("--events",))]
    for words in (
        ("dump", "list"),
        ("dump", "show", "latest"),
        ("dump", "verify", "latest"),
        ("dump", "restore", "latest", "--into", into),
        ("settings",),
        ("key", "rotate"),
        ("key", "check", "--identity", str(keys["operator"].path)),
        ("key", "check", "--identity", str(keys["signer"].path)),
        ("key", "check", "--identity", str(keys["stranger"].path)),
    ):
        outcomes += [site.run(*words, *json_, **everything) for json_ in ((), ("--json",))]
    outcomes.append(ended(site.start("dump", "create", **everything, SIGNATURE_KEYS=keys["signer"].public)))
    secrets = [
        line for key in keys.values() for line in key.path.read_text().splitlines() if "PRIVATE" not in line and line[:1] != "#"
    ]
    assert len(secrets) == len(keys)
    for secret in [*secrets, "AGE-SECRET-KEY-1", "BEGIN PRIVATE"]:
        for outcome in outcomes:
            assert secret not in outcome.stdout + outcome.stderr.replace("looks like AGE-SECRET-KEY-1…", "")
        for key, data in site.objects.items():
            assert secret.encode() not in data, key


def test_stock_tools_open_a_sealed_dump(site: Site, keys: dict[str, Key], sealing: dict[str, str], into: str) -> None:
    dump_id = dumped(site, **sealing)
    (path,) = (site.folder / "database").glob(f"{dump_id}.*.dump.zst.age")
    sql(site.server, "postgres", f'CREATE DATABASE "{into}" TEMPLATE template0')
    where = site.server.connection(into)
    login = f"-h {where['host']} -p {where['port']} -U {where['user']}"
    command = f"age -d -i {keys['recovery'].path} {path} | zstd -d | pg_restore -e {login} -d {into}"
    subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True, capture_output=True)
    check_same(site.server, site.database, into)
