"""The directory store: durable, whole, and clear about what is wrong with the disk."""

import errno
import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from clipper_backup.errors import AccessError, ClipperError, ObjectExistsError, ObjectMissingError, StoreError, UsageError
from clipper_backup.linux import DIRECT_BYTES
from clipper_backup.store import local
from clipper_backup.store.local import LocalStore, _MountedReadOnlyError, _translated
from clipper_backup.store.protocol import STREAM_CHUNK_BYTES
from fixtures.page_cache import goes_past_it, is_cached


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "er" / "root"


@pytest.fixture
def store(root: Path) -> LocalStore:
    return LocalStore(root)


def drafts(root: Path) -> list[Path]:
    return list((root / ".tmp").iterdir())


def run_child(code: str, *arguments: object, wrapped: tuple[str, ...] = ()) -> str:
    """The output of a Python child that ended well."""
    command = [*wrapped, sys.executable, "-c", "from pathlib import Path\nimport os, sys\n" + code, *map(str, arguments)]
    child = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert child.returncode == 0, child.stderr
    return child.stdout


# -- durability, as the kernel saw it


def traced(tmp_path: Path, root: Path, code: str) -> list[str]:
    """The calls that change or sync files, with full paths, up to the moment at which *code* says `done`."""
    log = tmp_path / "trace"
    calls = "fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,write,pwrite64"
    strace = ("strace", "-f", "-y", "-qq", "-s", "8", "-e", f"trace={calls}", "-o", str(log))
    code = (
        f"from clipper_backup.store.local import LocalStore\nstore = LocalStore(Path(sys.argv[1]))\n{code}\nos.write(1, b'done')"
    )
    assert run_child(code, root, wrapped=strace) == "done"
    lines = [re.sub(r"^\d+ +", "", line).replace(str(tmp_path), "") for line in log.read_text().splitlines()]
    ended = next(number for number, line in enumerate(lines) if line.startswith("write(1<") and '"done"' in line)
    return [line for line in lines[:ended] if " = -1 " not in line]


def position(lines: list[str], pattern: str, after: int = -1) -> int:
    for number, line in enumerate(lines):
        if number > after and re.search(pattern, line):
            return number
    raise AssertionError(f"no {pattern!r} after line {after} of:\n" + "\n".join(lines))


@pytest.mark.parametrize(("write", "name_given"), [
    ("store.put('a/b/k', b'data')", r"^rename\w*\(.*/root/\.tmp/.*/root/a/b/k\""),
    ("store.put_stream('a/b/k', [b'da', b'ta'])", r"^rename\w*\(.*/root/\.tmp/.*/root/a/b/k\""),
    ("store.put('a/b/k', bytes(9 << 20))", r"^rename\w*\(.*/root/\.tmp/.*/root/a/b/k\""),
    ("store.put('a/b/k', b'data', create=True)", r"^link\w*\(.*/root/\.tmp/.*/root/a/b/k\""),
])  # fmt: skip
def test_bytes_then_name_then_folders_are_on_disk_before_the_call_returns(tmp_path: Path, write: str, name_given: str) -> None:
    (tmp_path / "here").mkdir()
    lines = traced(tmp_path, tmp_path / "here" / "new" / "root", write)
    written = position(lines, r"^pwrite64\(\d+</here/new/root/\.tmp/")
    synced = position(lines, r"^fsync\(\d+</here/new/root/\.tmp/[^>]+>\)", written)
    named = position(lines, name_given, synced)
    position(lines, r"^fsync\(\d+</here/new/root/a/b>\)", named)
    # Every new folder's own entry, up to the one that was there before.
    for folder, parent in (
        ("/here/new", "/here"),
        ("/here/new/root", "/here/new"),
        ("/here/new/root/a", "/here/new/root"),
        ("/here/new/root/a/b", "/here/new/root/a"),
    ):
        made = position(lines, rf"^mkdir\w*\(.*\"{folder}\"")
        position(lines, rf"^fsync\(\d+<{parent}>\)", made)


def test_a_folder_that_somebody_else_made_is_synced_too(tmp_path: Path) -> None:
    (tmp_path / "root" / "a").mkdir(parents=True)
    lines = traced(tmp_path, tmp_path / "root", "store.put('a/k', b'data')")
    position(lines, r"^fsync\(\d+</root>\)")


def test_a_removal_is_on_disk_before_the_call_returns(tmp_path: Path) -> None:
    root = tmp_path / "root"
    store = LocalStore(root)
    for key in ("a/b/1", "a/c", "d/1", "d/2", "e"):
        store.put(key, b"x")
    lines = traced(tmp_path, root, "store.delete(['a/b/1', 'd/1', 'e'])")
    for removed, folder in ((r"unlink\w*\(.*/root/d/1\"", "/root/d"), (r"unlink\w*\(.*/root/e\"", "/root")):
        position(lines, rf"^fsync\(\d+<{folder}>\)", position(lines, removed))
    position(
        lines,
        r"^fsync\(\d+</root/a>\)",
        position(lines, r"^rmdir\(\"/root/a/b\"", position(lines, r"unlink\w*\(.*/root/a/b/1\"")),
    )


def test_what_somebody_else_removed_is_synced_too(tmp_path: Path) -> None:
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "a" / "other").touch()
    for gone in ("a/gone", "a/gone/with/its/folders"):
        lines = traced(tmp_path, tmp_path / "root", f"store.delete(['{gone}'])")
        position(lines, r"^fsync\(\d+</root/a>\)")


# -- what is seen


def test_files_and_folders_are_for_their_owner_only(root: Path, store: LocalStore) -> None:
    store.put("a/k", b"x")
    store.put_stream("a/s", [b"x"])
    store.put("a/c", b"x", create=True)
    modes = {path.relative_to(root.parent).as_posix(): path.stat().st_mode & 0o777 for path in root.parent.rglob("*")}
    assert modes == {
        "root": 0o700, "root/.tmp": 0o700, "root/a": 0o700, "root/a/k": 0o600, "root/a/s": 0o600, "root/a/c": 0o600,
    }  # fmt: skip


def test_an_unfinished_stream_is_seen_nowhere(root: Path, store: LocalStore) -> None:
    store.put("k", b"old")

    def chunks() -> Iterator[bytes]:
        yield b"x" * STREAM_CHUNK_BYTES
        assert [info.size_bytes for info in store.list("")] == [3]
        assert store.get("k") == b"old"
        assert len(drafts(root)) == 1
        yield b"y"

    store.put_stream("k", chunks())
    assert store.head("k").size_bytes == STREAM_CHUNK_BYTES + 1
    assert drafts(root) == []


@pytest.mark.parametrize("failure", [OSError(28, "of the source"), KeyboardInterrupt(), StoreError("of the source")])
def test_the_failure_of_a_source_stays_what_it_was(root: Path, store: LocalStore, failure: BaseException) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"x"
        raise failure

    with pytest.raises(type(failure)) as caught:
        store.put_stream("k", chunks())
    assert caught.value is failure
    assert drafts(root) == []


def test_a_killed_process_leaves_a_draft_that_goes_after_a_day(root: Path) -> None:
    code = """
from clipper_backup.store.local import LocalStore
def chunks():
    yield b"x" * 1000
    print("half", flush=True)
    sys.stdin.read()
LocalStore(Path(sys.argv[1])).put_stream("k", chunks())
"""
    child = subprocess.Popen(
        [sys.executable, "-c", "from pathlib import Path\nimport sys\n" + code, str(root)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"half\n"
        child.send_signal(signal.SIGKILL)
    [left] = drafts(root)
    LocalStore(root).put("other", b"x")
    assert drafts(root) == [left], "a young draft may belong to a living process"
    assert [info.key for info in LocalStore(root).list("")] == ["other"]
    day_ago = time.time() - 86_400
    os.utime(left, (day_ago - 5, day_ago - 5))
    LocalStore(root).put("other", b"x")
    assert drafts(root) == []


def test_a_listing_shows_objects_only(root: Path, store: LocalStore) -> None:
    for key in ("b/k", "a", "c/not-lost+found"):
        store.put(key, b"x")
    (root / "lost+found").mkdir()
    (root / "lost+found" / "12345").touch()
    (root / ".hidden").touch()
    (root / "b" / "not a key").touch()
    (root / "b" / "empty folder").mkdir()
    (root / "clock").touch()
    os.mkfifo(root / "pipe")
    (root / "dangling").symlink_to("nowhere")
    assert [info.key for info in store.list("")] == ["a", "b/k", "c/not-lost+found"]
    assert store.folders("") == ["b", "c"]
    assert list(LocalStore(root / "absent").list("")) == []
    assert list(store.list("a/")) == []


def test_a_folder_is_no_object_and_an_object_no_folder(store: LocalStore) -> None:
    store.put("a/b", b"x")
    store.put("c", b"x")
    for call in (store.get, store.head, lambda key: list(store.get_stream(key))):
        with pytest.raises(ObjectMissingError):
            call("a")
        with pytest.raises(ObjectMissingError):
            call("c/below")
    for key in ("a", "c/below", "c/below/deep"):
        with pytest.raises(StoreError, match=f"cannot write .*/{key}: "):
            store.put(key, b"y")
    store.delete(["c/below"])
    assert store.get("c") == b"x"
    with pytest.raises(StoreError):
        store.delete(["a"])
    with pytest.raises(ObjectExistsError):
        store.put("a", b"y", create=True)


def test_emptied_folders_go_and_the_root_stays(root: Path, store: LocalStore) -> None:
    store.put("a/b/c/k", b"x")
    store.put("a/other", b"x")
    store.delete(["a/b/c/k"])
    assert [path.name for path in (root / "a").iterdir()] == ["other"]
    store.delete(["a/other"])
    assert [path.name for path in root.iterdir()] == [".tmp"]
    store.put("a/b/c/k", b"again")
    assert store.get("a/b/c/k") == b"again"


@pytest.mark.parametrize("key", [
    "", "/a", "a/", "a//b", "../a", "a/../b", ".tmp/x", "a/.b", "ä", "a b", "a\nb", "a\\b", "a:b", "a\0", "clock", "clock/x",
    "x" * 256, "/".join(["a"] * 401),
])  # fmt: skip
def test_what_is_no_key_is_refused_by_every_method(store: LocalStore, root: Path, key: str) -> None:
    calls = (
        lambda: store.put(key, b""),
        lambda: store.put_stream(key, []),
        lambda: store.get(key),
        lambda: list(store.get_stream(key)),
        lambda: store.get_ranges(key, []),
        lambda: store.head(key),
        lambda: store.delete(["fine", key]),
    )
    for call in calls:
        with pytest.raises(UsageError, match="not an object key"):
            call()
    assert not root.exists()


@pytest.mark.parametrize("prefix", ["a", "/", "../", "a//", ".tmp/"])
def test_what_is_no_folder_is_refused(store: LocalStore, prefix: str) -> None:
    with pytest.raises(UsageError, match="not "):
        store.list(prefix)


def test_the_url_can_be_opened_again(tmp_path: Path) -> None:
    assert LocalStore(tmp_path / "my backups%").url == f"file://{tmp_path}/my%20backups%25"


def test_the_clock_is_the_file_systems(store: LocalStore) -> None:
    before = datetime.now(UTC)
    moment = store.now()
    assert abs((moment - before).total_seconds()) < 60
    assert list(store.list("")) == []


# -- several at once


def test_writers_and_removers_of_one_folder_do_not_disturb_each_other(root: Path) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        # A store of its own, as another process would have.
        store = LocalStore(root)
        key = f"a/b/{number}"
        try:
            for _ in range(150):
                store.put(key, b"x", create=True)
                assert store.get(key) == b"x"
                store.delete([key])
        except BaseException as error:  # noqa: BLE001 # shown by the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list(LocalStore(root).list("")) == []


@pytest.mark.parametrize("size_bytes", [DIRECT_BYTES, 3 * DIRECT_BYTES + 4097])
def test_what_is_large_goes_past_the_page_cache(root: Path, store: LocalStore, size_bytes: int) -> None:
    data = os.urandom(size_bytes)
    store.put("large", data)
    assert is_cached(root / "large") != goes_past_it(root)
    assert store.get("large") == data
    store.put("small", data[: DIRECT_BYTES - 1])
    assert is_cached(root / "small")


def test_chunks_of_any_size_follow_each_other(store: LocalStore) -> None:
    chunks = [os.urandom(size) for size in (1, DIRECT_BYTES, 4095, DIRECT_BYTES + 1, 0, 2 * DIRECT_BYTES)]
    assert store.put_stream("mixed", chunks) == sum(map(len, chunks))
    assert store.get("mixed") == b"".join(chunks)


def test_a_reader_keeps_the_object_it_opened(store: LocalStore) -> None:
    old = os.urandom(2 * STREAM_CHUNK_BYTES)
    store.put("k", old)
    pieces = store.get_stream("k")
    first = next(pieces)
    store.put("k", b"new")
    store.delete(["k"])
    assert first + b"".join(pieces) == old


def test_a_file_cut_short_from_outside_is_an_error(root: Path, store: LocalStore) -> None:
    store.put("k", bytes(3 * STREAM_CHUNK_BYTES))
    pieces = store.get_stream("k")
    next(pieces)
    os.truncate(root / "k", STREAM_CHUNK_BYTES + 10)
    with pytest.raises(StoreError, match="shorter than what was asked"):
        list(pieces)


# -- what is wrong with the disk


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    code = """
from clipper_backup.errors import StoreError
from clipper_backup.store.local import LocalStore
import subprocess
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3M", "none", sys.argv[1]], check=True)
store = LocalStore(Path(sys.argv[1]))
store.put("small", b"x" * 1000)
for write in (lambda: store.put("k", bytes(4 << 20)), lambda: store.put_stream("k", (bytes(1 << 20) for _ in range(4)))):
    try:
        write()
    except StoreError as error:
        print(error.message, "|", error.hints[0])
print([info.key for info in store.list("")], os.listdir(sys.argv[1] + "/.tmp"))
store.put("k", bytes(2 << 20))
"""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    out = run_child(code, mounted, wrapped=("unshare", "--user", "--map-root-user", "--mount"))
    full = f"cannot write {mounted}/k: no space left | free space on that file system, or move the repository to a larger one\n"
    assert out == full + full + "['small'] []\n"


def test_a_read_only_disk_is_named(tmp_path: Path) -> None:
    code = """
from clipper_backup.errors import StoreError
from clipper_backup.store.local import LocalStore
import subprocess
root = Path(sys.argv[1])
LocalStore(root).put("k", b"x")
subprocess.run(["mount", "--bind", root, root], check=True)
subprocess.run(["mount", "-o", "remount,ro,bind", root], check=True)
store = LocalStore(root)
assert store.get("k") == b"x"
for write in (lambda: store.put("new", b""), lambda: store.delete(["k"]), store.now):
    try:
        write()
    except StoreError as error:
        print(error.message, "|", error.hints[0])
"""
    out = run_child(code, tmp_path / "root", wrapped=("unshare", "--user", "--map-root-user", "--mount"))
    said = [line.replace(str(tmp_path), "") for line in out.splitlines()]
    assert said == [
        "cannot write /root/.tmp: read-only file system | the file system is mounted read-only",
        "cannot write /root/k: read-only file system | the file system is mounted read-only",
        "cannot write /root/.tmp: read-only file system | the file system is mounted read-only",
    ]


def test_a_forbidden_folder_is_an_access_error() -> None:
    code = """
from clipper_backup.errors import AccessError
from clipper_backup.store.local import LocalStore
if os.geteuid() == 0:  # whom no folder is forbidden to
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
store = LocalStore(Path(sys.argv[1]))
calls = {"put": lambda: store.put("n", b""), "get": lambda: store.get("a/k"), "head": lambda: store.head("a/k"),
         "list": lambda: store.list(""), "delete": lambda: store.delete(["a/k"])}
for name, call in calls.items():
    try:
        call()
    except AccessError as error:
        print(name, error.message, "|", error.hints[0].removeprefix(f"user id {os.geteuid()} "))
"""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        LocalStore(root).put("a/k", b"x")
        for closed in (root / "a", root / ".tmp"):
            closed.chmod(0)
        for passed in (Path(folder), root):
            passed.chmod(0o755)
        out = run_child(code, root)
        (root / "a").chmod(0o700)
        (root / ".tmp").chmod(0o700)
    reads = "| must be able to read there"
    writes = "| must be able to read and write there, and the file system must allow hard links"
    assert [line.replace(folder, "") for line in out.splitlines()] == [
        f"put no access to /root/.tmp: permission denied {writes}",
        f"get no access to /root/a/k: permission denied {reads}",
        f"head no access to /root/a/k: permission denied {reads}",
        f"list no access to /root/a: permission denied {reads}",
        f"delete no access to /root/a/k: permission denied {writes}",
    ]


def test_a_file_in_the_way_of_the_root_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=f"cannot write {tmp_path}/file/root/.tmp: ") as caught:
        LocalStore(tmp_path / "file" / "root").put("k", b"")
    assert caught.value.hints == ("a file stands where a folder is needed, or a folder where a file is",)


def test_a_failing_read_names_the_object() -> None:
    # A file of the kernel's that has a size, can be opened, and refuses to be read: the loopback interface has no speed.
    with pytest.raises(StoreError, match="cannot use /sys/class/net/lo/speed: invalid argument"):
        LocalStore(Path("/sys/class/net/lo")).get("speed")


def test_a_draft_that_somebody_removes_is_an_error(root: Path, store: LocalStore) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"x"
        [draft] = drafts(root)
        draft.unlink()

    with pytest.raises(StoreError, match=f"cannot write {root}/k: its folder or its draft is removed again and again"):
        store.put_stream("k", chunks())


@pytest.mark.parametrize(("number", "kind", "said", "hinted"), [
    (errno.ENOSPC, StoreError, "cannot write /r/k: no space left", "free space"),
    (errno.EDQUOT, StoreError, "cannot write /r/k: the quota is used up", "free space"),
    (errno.EFBIG, StoreError, "cannot write /r/k: too large for this file system", "free space"),
    (errno.EACCES, AccessError, "no access to /r/k: permission denied", "user id"),
    (errno.EPERM, AccessError, "no access to /r/k: operation not permitted", "hard links"),
    (errno.EROFS, _MountedReadOnlyError, "cannot write /r/k: read-only file system", "read-only"),
    (errno.ENOTDIR, StoreError, "cannot write /r/k: not a directory", "stands where a folder"),
    (errno.EIO, StoreError, "cannot use /r/k: input/output error", ""),
])  # fmt: skip
def test_what_the_operating_system_says_becomes_ours(number: int, kind: type[ClipperError], said: str, hinted: str) -> None:
    error = _translated(OSError(number, os.strerror(number)), Path("/r/k"))
    assert (type(error), error.message, error.temporary) == (kind, said, False)
    assert isinstance(error, AccessError) is (number in {errno.EACCES, errno.EPERM, errno.EROFS}), "who would only note, may not"
    assert hinted in " ".join(error.hints)


def test_a_kernel_without_early_write_back_stores_the_same(tmp_path: Path) -> None:
    log, size_bytes = tmp_path / "trace", 3 * local._WRITE_BACK_BYTES + 1
    without = ("strace", "-f", "-qq", "-o", str(log), "-e", "trace=sync_file_range", "-e", "inject=sync_file_range:error=ENOSYS")
    code = """
import hashlib
from clipper_backup.store.local import LocalStore
data = os.urandom(int(sys.argv[2]))
assert LocalStore(Path(sys.argv[1])).put_stream("x", [data[:-5], data[-5:]]) == len(data)
print(hashlib.sha256(data).hexdigest(), end="")
"""
    written = run_child(code, tmp_path / "root", size_bytes, wrapped=without)
    stored = LocalStore(tmp_path / "root").get("x")
    assert (hashlib.sha256(stored).hexdigest(), len(stored)) == (written, size_bytes)
    assert "ENOSYS (Function not implemented) (INJECTED)" in log.read_text()
