"""What a server says of its cluster, and its configuration outside PGDATA."""

import os
from pathlib import Path

import pytest

from clipper_backup.postgres.cluster_facts import NEEDED_AT_RECOVERY, cluster_facts, outside_files
from clipper_backup.postgres.server import PrivateServer
from fixtures.postgres import fresh_role, login_to, major_of, private_folder, server_binaries, sql


def test_what_the_server_says(postgres: PrivateServer, database: str) -> None:
    sql(postgres, database, "CREATE EXTENSION IF NOT EXISTS plpgsql")
    ((icu,),) = sql(postgres, database, "SELECT count(*) FROM pg_collation WHERE collname = 'en-x-icu'")  # 18's wheel has none
    if icu:
        sql(postgres, database, 'CREATE TABLE sorted (t text COLLATE "en-x-icu")')
    facts = cluster_facts(login_to(postgres))
    assert (facts.major, facts.in_recovery, facts.checksums) == (major_of(postgres), False, True)
    assert (facts.page_bytes, facts.wal_page_bytes, facts.segment_bytes) == (8192, 8192, 16 << 20)
    assert facts.relation_segment_pages == 131072
    assert facts.settings.keys() >= {*NEEDED_AT_RECOVERY, "wal_level", "shared_preload_libraries", "data_directory"}
    assert facts.version_text.startswith("PostgreSQL ")
    assert facts.libraries.keys() <= {"glibc", "icu"}
    assert ("icu" in facts.libraries) == bool(icu)
    assert facts.left_out == []
    assert not facts.archiving
    by_name = {each.name: each for each in facts.databases}
    ours = by_name[database]
    assert (ours.encoding, ours.locale_provider, ours.tablespace) == ("UTF8", "c", "pg_default")
    assert [extension[0] for extension in ours.extensions or ()] == ["plpgsql"]
    assert len([text for text in ours.collations or () if text.startswith("en-x-icu i ")]) == icu
    assert by_name["template0"].extensions is None


def test_a_role_that_may_not_see_all_is_told_what_is_missing(postgres: PrivateServer) -> None:
    with fresh_role(postgres, "LOGIN REPLICATION") as role:
        login = login_to(postgres, user=role)
        facts = cluster_facts(login)
        assert [text for text in facts.left_out if "pg_read_all_settings" in text]
        left_out: list[str] = []
        assert outside_files(login, left_out, ()) == []
        assert [text for text in left_out if "pg_read_all_settings" in text]
        sql(postgres, "postgres", f"GRANT pg_read_all_settings TO {role}")
        assert not [text for text in cluster_facts(login).left_out if "pg_read_all_settings" in text]


@pytest.mark.rule(17)
@pytest.mark.parametrize("major", [15, 18])
def test_configuration_outside_pgdata_is_read_with_what_it_includes(major: int) -> None:
    with private_folder() as folder:
        outside = folder / "etc"
        outside.mkdir()
        server = PrivateServer(
            folder / "server",
            server_binaries(major),
            environment=os.environ,
            settings={"config_file": str(outside / "postgresql.conf"), "hba_file": str(outside / "hba"), "fsync": "off"},
        )
        with server:
            server.initdb(sync=False)
            (outside / "postgresql.conf").write_text("include 'more.conf'\n")
            (outside / "more.conf").write_text("work_mem = '5MB'\n")
            (outside / "hba").write_text("local all all trust\nlocal replication all trust\n")
            server.start()
            left_out: list[str] = []
            held = {"pg_ident.conf", "postgresql.auto.conf"}
            files = outside_files(login_to(server), left_out, held)
            assert {Path(file.path): file.content for file in files} == {
                path: path.read_bytes() for path in (outside / "postgresql.conf", outside / "more.conf", outside / "hba")
            }
            assert all(abs(file.modified_at.timestamp() - Path(file.path).stat().st_mtime) < 1 for file in files)
            assert left_out == []
            behind_a_link = outside_files(login_to(server), left_out, held - {"pg_ident.conf"})
            assert {file.path for file in behind_a_link} - {file.path for file in files} == {str(server.data / "pg_ident.conf")}
