"""Settings: one declaration each, read from flags, environment, files and folders, refused before any work when wrong."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipper_backup.config import CLIPPER_QUERIES, DECLARED, Settings, load, repository_url
from clipper_backup.errors import MissingError, UsageError
from clipper_backup.kinds import ValidationQuery, show_url
from clipper_backup.values import Secret

BY_NAME = {declared.name: declared for declared in DECLARED}


def settings(**texts: str) -> Settings:
    return load({}, texts).settings


def refusal(**texts: str) -> str:
    with pytest.raises(UsageError) as caught:
        load({}, texts)
    return str(caught.value)


def test_every_setting_says_what_it_means_in_a_section() -> None:
    for declared in DECLARED:
        assert declared.section
        assert declared.name == declared.field.upper()
        assert declared.meaning
        assert not declared.meaning.endswith(".")


def test_every_default_that_has_a_text_is_read_back_from_it() -> None:
    """What `settings` shows can be set again, and means the same."""
    for declared in DECLARED:
        if text := declared.show(declared.default):
            again = declared.kind.parse(text)
            if declared.name == "VALIDATION_QUERIES":
                tables = [query.table for query in declared.default]  # which a text cannot say
                again = tuple(
                    ValidationQuery(each.name, each.sql, each.database, table) for each, table in zip(again, tables, strict=True)
                )
            assert again == declared.default, declared.name


@pytest.mark.parametrize(("text", "names"), [
    ("a,b", ("a", "b")),
    (" a ,\n b,,\n", ("a", "b")),
    ('"a,b", c', ("a,b", "c")),
    ('we"ird, """x", " y ", "line\nbreak"', ('we"ird', '"x', " y ", "line\nbreak")),
    ("", ()),
])  # fmt: skip
def test_names_may_hold_what_separates_them(text: str, names: tuple[str, ...]) -> None:
    kind = next(declared.kind for declared in DECLARED if declared.name == "BACKUP_DATABASES")
    assert kind.parse(text) == names
    assert kind.parse(kind.show(names)) == names


def test_names_of_the_source_document_exist() -> None:
    asked = {"CLOUD_PROVIDER", "BACKUP_BUCKET", "RETENTION_DAYS", "VOLUME_SNAPSHOT_CLASS", "AZURE_STORAGE_ACCOUNT"}
    assert asked <= set(BY_NAME)


def test_precedence(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    environment = {"RETENTION_DAYS_DEFAULT": "1"}

    def loaded(flags: dict[str, str]) -> tuple[int, str | None]:
        found = load(flags, environment, config if config.exists() else None)
        return found.settings.retention_days, found.origins.get("RETENTION_DAYS")

    assert loaded({}) == (1, "RETENTION_DAYS_DEFAULT")
    config.write_text("RETENTION_DAYS = 2\n")
    assert loaded({}) == (2, str(config))
    environment["RETENTION_DAYS"] = "3"
    assert loaded({}) == (3, "environment")
    assert loaded({"RETENTION_DAYS": "4"}) == (4, "flag")
    assert loaded({"RETENTION_DAYS": ""}) == (30, None)
    environment["RETENTION_DAYS"] = ""
    assert loaded({}) == (2, str(config))


def test_the_variable_names_the_file_unless_the_caller_does(tmp_path: Path) -> None:
    named, given = tmp_path / "named.toml", tmp_path / "given.toml"
    named.write_text("RETENTION_DAYS = 2\n")
    given.write_text("RETENTION_DAYS = 3\n")
    environment = {"CLIPPER_BACKUP_CONFIG": str(named)}
    assert load({}, environment).settings.retention_days == 2
    assert load({}, environment, given).settings.retention_days == 3


@pytest.mark.parametrize(("text", "value"), [("true", True), ('"yes"', True), ('"NO"', False), ("false", False)])
def test_a_switch_is_yes_or_no(tmp_path: Path, text: str, *, value: bool) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f"UNSAFE_HTTP = {text}\n")
    assert load({}, {}, config).settings.unsafe_http is value
    assert settings(UNSAFE_HTTP=text.strip('"')).unsafe_http is value if text.startswith('"') else True


def test_names_that_kubernetes_injects_are_no_errors() -> None:
    assert settings(POSTGRES_PORT="tcp://10.0.0.1:5432", RETENTION="x") == Settings()


def test_a_mounted_folder_is_read_like_a_file(tmp_path: Path) -> None:
    """As the kubelet mounts a ConfigMap: `..data` points to a folder, and each key is a link through it."""
    data = tmp_path / "..2026_11_22"
    data.mkdir()
    (data / "RETENTION_DAYS").write_text("9\n")
    (data / "PGPASSWORD").write_text(" spaces stay \n")
    (tmp_path / "..data").symlink_to(data.name)
    for name in ("RETENTION_DAYS", "PGPASSWORD"):
        (tmp_path / name).symlink_to(Path("..data") / name)
    found = load({}, {}, tmp_path)
    assert found.settings.retention_days == 9
    assert found.settings.pgpassword == Secret(" spaces stay ")
    assert found.origins == {"RETENTION_DAYS": str(tmp_path), "PGPASSWORD": str(tmp_path)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("RETENTION_DAY = 3\nNO_SUCH = 1\n", "unknown setting NO_SUCH, RETENTION_DAY in "),
        ("RETENTION_DAYS = \n", "is not TOML: "),
        ("RETENTION_DAYS = true\n", "bad value for RETENTION_DAYS (from "),
        ("UNSAFE_HTTP = 1\n", "bad value for UNSAFE_HTTP (from "),
        ("STORE_MAX_BYTES_PER_SECOND = 0\n", "bad value for STORE_MAX_BYTES_PER_SECOND (from "),
        ("RETENTION_DAYS = 1.5\n", "bad value for RETENTION_DAYS in "),
        ("BACKUP_DATABASES = [1]\n", "bad value for BACKUP_DATABASES in "),
        ("RETENTION_DAYS = 0\n", "bad value for RETENTION_DAYS (from "),
    ],
)
def test_a_settings_file_that_cannot_be_meant(tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "config.toml"
    config.write_text(text)
    with pytest.raises(UsageError) as caught:
        load({}, {}, config)
    assert message in str(caught.value)
    assert str(config) in str(caught.value)
    if "NO_SUCH" in text:
        assert caught.value.hints[0] == "did you mean RETENTION_DAYS?"


def test_a_list_in_a_settings_file_keeps_its_names_apart(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("BACKUP_DATABASES = ['a,b', ' c ', '\"d']\n")
    assert load({}, {}, config).settings.backup_databases == ("a,b", " c ", '"d')


def test_a_folder_with_an_unknown_name(tmp_path: Path) -> None:
    (tmp_path / "RETENTION").write_text("3")
    with pytest.raises(UsageError, match="unknown setting RETENTION in "):
        load({}, {}, tmp_path)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"cannot read settings from .*/none: No such file"):
        load({}, {}, tmp_path / "none")
    (tmp_path / "RETENTION_DAYS").mkdir()
    with pytest.raises(MissingError, match=r"cannot read settings from .*/RETENTION_DAYS: Is a directory"):
        load({}, {}, tmp_path)
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'PGUSER = "caf\xe9"\n')
    with pytest.raises(UsageError, match=r"settings file .*/latin.toml is not UTF-8 text"):
        load({}, {}, latin)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("RETENTION_DAYS", " 7 ", 7),
        ("CLOUD_PROVIDER", "AWS", "aws"),
        ("BACKUP_DATABASES", "a, b c,\n'd'", ("a", "b c", "'d'")),
        ("SCRATCH_DIR", "/var/tmp", Path("/var/tmp")),
        ("BACKUP_URL", "s3://bucket/prefix", "s3://bucket/prefix"),
        ("VALIDATION_QUERIES", "# none\n\n", ()),
        ("VALIDATION_QUERIES", "n: SELECT 1;", (ValidationQuery("n", "SELECT 1"),)),
        (
            "VALIDATION_QUERIES",
            "clips/recent: SELECT count(*) FROM c WHERE t > '10:00'\n n : SELECT 2",
            (ValidationQuery("recent", "SELECT count(*) FROM c WHERE t > '10:00'", "clips"), ValidationQuery("n", "SELECT 2")),
        ),
    ],
)
def test_texts_become_values(name: str, text: str, expected: Any) -> None:
    assert getattr(settings(**{name: text}), BY_NAME[name].field) == expected


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("RETENTION_DAYS", "a week", "a whole number is needed, not 'a week'"),
        ("RETENTION_DAYS", "0", "0 is outside 1 … 36500"),
        ("RETENTION_DAYS", "36501", "36501 is outside 1 … 36500"),
        ("CLOUD_PROVIDER", "ibm", "'ibm' is none of gcp, aws, azure, local"),
        ("BACKUP_DATABASES", "a,b,a", "a name stands there twice"),
        ("BACKUP_DATABASES", 'a, ""', "a name is empty"),
        ("BACKUP_DATABASES", ",", "a name is empty"),
        ("BACKUP_DATABASES", 'a, "b', "begins with a double quote"),
        ("BACKUP_DATABASES", '"a" "b"', "begins with a double quote"),
        ("BACKUP_DATABASES", '"a"b', "begins with a double quote"),
        ("VALIDATION_QUERIES", "SELECT 1", "'SELECT 1' is not `name: SELECT …`"),
        ("VALIDATION_QUERIES", "n:", "'n:' is not `name: SELECT …`"),
        ("VALIDATION_QUERIES", ": SELECT 1", "is not `name: SELECT …`"),
        ("VALIDATION_QUERIES", "n: SELECT 1\nn: SELECT 2", "a query name stands there twice"),
        ("BACKUP_URL", "/var/backups", "a URL is needed, like scheme://place"),
        ("PROMETHEUS_PUSHGATEWAY", "gateway:9091", "a URL is needed, like scheme://place"),
    ],
)
def test_bad_values_name_the_setting_its_origin_and_what_was_expected(name: str, text: str, reason: str) -> None:
    message = refusal(**{name: text})
    assert message.startswith(f"bad value for {name} (from environment): ")
    assert reason in message


def test_a_bad_url_is_not_repeated() -> None:
    assert "hush" not in refusal(BACKUP_URL="key:hush@bucket")


def test_the_default_queries_are_told_apart_from_those_a_user_wrote() -> None:
    assert Settings().validation_queries == CLIPPER_QUERIES
    assert all(query.table for query in CLIPPER_QUERIES)
    assert settings(VALIDATION_QUERIES="clip count: SELECT count(*) FROM clips").validation_queries[0].table is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/prefix", "s3://bucket/prefix"),
        ("http://user:pass@host:9091/x", "http://***@host:9091/x"),
        ("https://token@host", "https://***@host"),
        ("az://c/p?sv=1&sig=abc%3D&se=2", "az://c/p?sv=1&sig=***&se=2"),
        ("s3://b?AWS_SECRET_ACCESS_KEY=x", "s3://b?AWS_SECRET_ACCESS_KEY=***"),
        ("s3://b/a@b", "s3://b/a@b"),
        ("file:///backups/user@host", "file:///backups/user@host"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert show_url(url) == shown
    assert BY_NAME["BACKUP_URL"].public(url) == shown


@given(st.text(min_size=1))
def test_a_secret_is_never_shown(password: str) -> None:
    declared = BY_NAME["PGPASSWORD"]
    secret = Secret(password)
    assert declared.show(secret) == declared.public(secret) == "***"


def test_values_for_json_keep_numbers_and_lists() -> None:
    assert BY_NAME["RETENTION_DAYS"].public(30) == 30
    assert BY_NAME["BACKUP_DATABASES"].public(("a", "b")) == ["a", "b"]
    assert BY_NAME["SCRATCH_DIR"].public(Path("/tmp")) == "/tmp"
    assert BY_NAME["BACKUP_URL"].public(None) is None
    assert BY_NAME["BACKUP_URL"].show(None) == ""


@pytest.mark.parametrize(
    ("texts", "url"),
    [
        ({"BACKUP_URL": "file:///backups"}, "file:///backups"),
        ({"BACKUP_URL": "s3://a/b", "CLOUD_PROVIDER": "gcp", "BACKUP_BUCKET": "c"}, "s3://a/b"),
        ({"CLOUD_PROVIDER": "gcp", "BACKUP_BUCKET": "clipper"}, "gs://clipper"),
        ({"CLOUD_PROVIDER": "aws", "BACKUP_BUCKET": "clipper"}, "s3://clipper"),
        ({"CLOUD_PROVIDER": "azure", "BACKUP_BUCKET": "clipper"}, "az://clipper"),
        ({"CLOUD_PROVIDER": "local", "BACKUP_BUCKET": "/backups"}, "file:///backups"),
    ],
)
def test_the_repository_has_one_url(texts: dict[str, str], url: str) -> None:
    assert repository_url(settings(**texts)) == url


@pytest.mark.parametrize("texts", [{}, {"CLOUD_PROVIDER": "aws"}, {"BACKUP_BUCKET": "clipper"}])
def test_without_a_repository_the_hints_say_what_to_set(texts: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="no repository is configured") as caught:
        repository_url(settings(**texts))
    assert "BACKUP_URL" in caught.value.hints[0]
