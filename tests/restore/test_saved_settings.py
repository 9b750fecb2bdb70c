"""What a former server was told since the base backup is not lost with its data folder."""

import os
from pathlib import Path

import pytest

from clipper_backup.cli.show_restore import restored_document, restored_text
from clipper_backup.errors import ClipperError
from clipper_backup.ops.restore.left_wal import make_plan
from clipper_backup.ops.restore.saved_settings import save_settings
from clipper_backup.ops.restore.targets import Target
from clipper_backup.postgres.account import Account
from fixtures.dead_primary import backed_up_cluster, buried, replacing, started
from fixtures.postgres import sql

US = Account("us", os.geteuid(), os.getegid())


@pytest.mark.parametrize("major", [15, 18])
def test_what_was_set_since_the_backup_is_kept(place: Path, major: int) -> None:
    with backed_up_cluster(place, major) as (cluster, work):
        sql(cluster.server, "postgres", "ALTER SYSTEM SET work_mem = '7MB'")
        with (cluster.server.data / "pg_hba.conf").open("a") as rules:
            rules.write("host clipper app 10.0.0.0/8 scram-sha-256\n")
        buried(cluster)
        request = replacing(cluster, place, Target("latest"))
        with started(work, request, make_plan(work, request)) as (result, connection):
            assert connection.execute("SHOW work_mem").fetchone() != ("7MB",)
            kept = result.settings_in
        assert kept is not None
        assert kept.parent == request.folder
        assert "work_mem = '7MB'" in (kept / "postgresql.auto.conf").read_text()
        assert "10.0.0.0/8" in (kept / "pg_hba.conf").read_text()
        assert {path.stat().st_mode & 0o777 for path in kept.rglob("*")} == {0o600}
        assert restored_document(result)["saved_settings"] == str(kept)
        assert f"what the former server had is in {kept}" in restored_text(request, result)


def test_what_is_configuration_is_told_from_the_rest(tmp_path: Path) -> None:
    data = tmp_path / "data"
    kept = ["conf.d/a/b.conf", "postgresql.conf", "server.key"]
    others = ["PG_VERSION", "backup_label.old", "base/5/1.conf", "conf.d/notes", "log/x.conf", "pg_wal/x.conf", "standby.signal"]
    for name in (*kept[:1], *kept[2:], *others):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(name)
    (tmp_path / "etc.conf").write_text("postgresql.conf")
    (data / "postgresql.conf").symlink_to(tmp_path / "etc.conf")
    (data / "gone.conf").symlink_to(tmp_path / "nowhere")
    (data / "core.1").write_bytes(bytes((1 << 20) + 1))
    into = tmp_path / "saved"
    assert save_settings(data, into, US) == kept
    assert sorted(str(path.relative_to(into)) for path in into.rglob("*") if path.is_file()) == kept
    assert [(into / name).read_text() for name in kept] == kept
    assert not (into / "postgresql.conf").is_symlink()


def test_what_cannot_be_kept_ends_it_before_anything_is_removed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/postgresql.conf").touch()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/postgresql.conf").mkdir()
    with pytest.raises(ClipperError, match=r"nothing was removed: .* cannot be saved in .*: is a directory") as caught:
        save_settings(tmp_path / "data", tmp_path / "saved", US)
    assert "--work-dir" in caught.value.hints[0]


def test_what_cannot_be_read_is_told_as_that(tmp_path: Path) -> None:
    """As on a disk that fails: more room elsewhere does not help."""
    data, into = tmp_path / "data", tmp_path / "saved"
    data.mkdir()
    (data / "a.conf").touch()
    (data / "b.conf").symlink_to("/proc/self/mem")  # whoever reads its first page gets EIO
    with pytest.raises(ClipperError, match=f"nothing was removed: cannot read {data}/b.conf: input/output error") as caught:
        save_settings(data, into, US)
    assert not any("--work-dir" in hint for hint in caught.value.hints)
    assert not into.exists()
