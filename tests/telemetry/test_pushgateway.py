import base64
import contextlib
import http.server
import math
import os
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from clipper_backup.errors import TelemetryError, UsageError
from clipper_backup.telemetry.metrics import DUMP_JOB, DatabaseFigures, Metric, Sample, dump_failed, dump_succeeded
from clipper_backup.telemetry.pushgateway import Pushgateway
from fixtures.monitoring import RunningPushgateway, running_pushgateway

MONDAY = datetime(2026, 11, 23, 2, 7, tzinfo=UTC)
TUESDAY = datetime(2026, 11, 24, 2, 7, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def good_dump(finished_at: datetime, *databases: str, rows: int | None = 10) -> list[Sample]:
    figures = [DatabaseFigures(name, 1000 + n, rows) for n, name in enumerate(databases)]
    return dump_succeeded(finished_at=finished_at, duration_seconds=60, stored_bytes=4000, databases=figures)


def test_it_is_asked_for_its_version_without_a_report(pushgateway: RunningPushgateway) -> None:
    assert Pushgateway.parse(pushgateway.url).version()[0].isdigit()
    assert pushgateway.metrics() == {}


def test_whatever_answers_with_other_words_is_no_pushgateway() -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"data": {"version": "2"}}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        with pytest.raises(TelemetryError, match="is no Pushgateway"):
            Pushgateway.parse(f"http://127.0.0.1:{server.server_port}").version()


def test_metrics_arrive_in_the_jobs_group(pushgateway: RunningPushgateway) -> None:
    Pushgateway.parse(pushgateway.url).push(DUMP_JOB, good_dump(MONDAY, "clipper", "two\nlines"))
    shown = pushgateway.metrics()
    assert shown["postgres_backup_success"] == {(): 1}
    assert shown["postgres_backup_timestamp"] == {(): MONDAY.timestamp()}
    assert shown["clipper_backup_dump_size_bytes"] == {(("database", "clipper"),): 1000, (("database", "two\nlines"),): 1001}


def test_a_failed_run_leaves_the_last_good_dumps_time_and_figures(pushgateway: RunningPushgateway) -> None:
    gateway = Pushgateway.parse(pushgateway.url)
    gateway.push(DUMP_JOB, good_dump(MONDAY, "clipper"))
    before = pushgateway.metrics()
    gateway.push(DUMP_JOB, dump_failed(duration_seconds=5))
    after = pushgateway.metrics()
    assert after["postgres_backup_success"] == {(): 0}
    assert after["clipper_backup_dump_duration_seconds"] == {(): 5}
    for kept in ("postgres_backup_timestamp", "clipper_backup_dump_size_bytes", "clipper_backup_dump_rows"):
        assert after[kept] == before[kept]


def test_a_database_that_is_dumped_no_longer_disappears(pushgateway: RunningPushgateway) -> None:
    gateway = Pushgateway.parse(pushgateway.url)
    gateway.push(DUMP_JOB, good_dump(MONDAY, "clipper", "given_up"))
    gateway.push(DUMP_JOB, good_dump(TUESDAY, "clipper"))
    shown = pushgateway.metrics()
    assert shown["clipper_backup_dump_size_bytes"] == {(("database", "clipper"),): 1000}
    assert shown["clipper_backup_dump_rows"] == {(("database", "clipper"),): 10}
    assert shown["postgres_backup_timestamp"] == {(): TUESDAY.timestamp()}


def test_counts_of_an_earlier_dump_do_not_pass_for_this_ones(pushgateway: RunningPushgateway) -> None:
    gateway = Pushgateway.parse(pushgateway.url)
    gateway.push(DUMP_JOB, good_dump(MONDAY, "clipper"))
    gateway.push(DUMP_JOB, good_dump(TUESDAY, "clipper", rows=None))
    assert math.isnan(pushgateway.metrics()["clipper_backup_dump_rows"][("database", "clipper"),])


def test_jobs_do_not_touch_each_others_groups(pushgateway: RunningPushgateway) -> None:
    gateway = Pushgateway.parse(pushgateway.url)
    gateway.push(DUMP_JOB, good_dump(MONDAY, "clipper"))
    gateway.push("another-job", [Sample(Metric("another_value", "Another.", "number"), 3)])
    shown = pushgateway.metrics()
    assert shown["another_value"] == {(): 3}
    assert shown["postgres_backup_success"] == {(): 1}


def test_a_path_before_the_pushgateway_is_kept() -> None:
    with running_pushgateway("--web.route-prefix=/monitoring/push") as running:
        below = RunningPushgateway(f"{running.url}/monitoring/push")
        Pushgateway.parse(f"{below.url}/").push(DUMP_JOB, dump_failed(duration_seconds=1))
        assert below.metrics()["postgres_backup_success"] == {(): 0}


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    """host:port of a Pushgateway that asks for the user `job` with the password `p#s:w/d`."""
    config = tmp_path / "web.yml"
    config.write_text("basic_auth_users:\n  job: $2b$04$2MUnSpj8yKiab/tlR1/kdeIDUZY6ff30tBtzZbWJRoXROC6tSIdri\n")
    with running_pushgateway(f"--web.config.file={config}") as running:
        yield running.url.removeprefix("http://")


def test_a_login_in_the_url_is_used(guarded: str) -> None:
    Pushgateway.parse(f"http://job:p%23s%3Aw%2Fd@{guarded}").push(DUMP_JOB, dump_failed(duration_seconds=1))
    login = base64.b64encode(b"job:p#s:w/d").decode()
    asked = urllib.request.Request(f"http://{guarded}/metrics", headers={"Authorization": f"Basic {login}"})
    with urllib.request.urlopen(asked, timeout=30) as answer:  # noqa: S310 - our own server
        assert re.search(rb"^postgres_backup_success\{.*\} 0$", answer.read(), re.MULTILINE)


def test_a_refused_login_is_said_without_showing_it(guarded: str) -> None:
    gateway = Pushgateway.parse(f"http://job:hunter2@{guarded}")
    with pytest.raises(TelemetryError, match=f"the Pushgateway http://{guarded} answered 401") as caught:
        gateway.push(DUMP_JOB, dump_failed(duration_seconds=1))
    shown = f"{caught.value} {caught.value.hints} {gateway!r} {caught.value.__cause__!r}"
    assert "hunter2" not in shown
    assert any("login" in hint for hint in caught.value.hints)


def test_what_the_pushgateway_says_about_bad_metrics_is_passed_on(pushgateway: RunningPushgateway) -> None:
    gateway = Pushgateway.parse(pushgateway.url)
    a_counter_of_its_own = Metric("go_memstats_frees_total", "Clashes in its type.", "number")
    with pytest.raises(TelemetryError, match=r"answered 400: .*go_memstats_frees_total"):
        gateway.push(DUMP_JOB, [Sample(a_counter_of_its_own, 1)])


def test_a_refused_connection_is_a_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(TelemetryError, match=rf"cannot reach the Pushgateway http://127\.0\.0\.1:{port}: .*refused") as caught:
        Pushgateway.parse(f"http://127.0.0.1:{port}").push(DUMP_JOB, dump_failed(duration_seconds=1))
    assert caught.value.hints


def test_an_unknown_host_is_a_clear_error() -> None:
    with pytest.raises(TelemetryError, match=r"cannot reach the Pushgateway http://pushgateway\.invalid:9091"):
        Pushgateway.parse("http://pushgateway.invalid:9091").push(DUMP_JOB, dump_failed(duration_seconds=1))


def test_a_pushgateway_that_never_answers_costs_no_more_than_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        gateway = Pushgateway.parse(f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(TelemetryError, match=r"no answer from the Pushgateway .*timed out"):
            gateway.push(DUMP_JOB, dump_failed(duration_seconds=1), timeout_seconds=0.2)
        assert time.monotonic() - began < 5


@contextlib.contextmanager
def answering(status: int, headers: dict[str, str]) -> Iterator[tuple[str, list[str]]]:
    """A server that answers every request with *status*; yields its URL and the request lines it got."""
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(self.requestline)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            for name, value in {"Content-Length": "0", **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_POST  # noqa: N815 - the name is http.server's

        def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - the name is http.server's
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", requests
        finally:
            server.shutdown()
            thread.join()


def test_a_redirect_is_an_error_and_not_a_push_that_went_nowhere(pushgateway: RunningPushgateway) -> None:
    with (
        answering(301, {"Location": f"{pushgateway.url}/metrics"}) as (url, _),
        pytest.raises(TelemetryError, match="answered 301") as caught,
    ):
        Pushgateway.parse(url).push(DUMP_JOB, dump_failed(duration_seconds=1))
    assert any("redirects are not followed" in hint for hint in caught.value.hints)
    assert "postgres_backup_success" not in pushgateway.metrics()


def test_something_that_is_no_pushgateway_is_named_as_such() -> None:
    with answering(405, {}) as (url, _), pytest.raises(TelemetryError, match="answered 405") as caught:
        Pushgateway.parse(url).push(DUMP_JOB, dump_failed(duration_seconds=1))
    assert any("not of Prometheus itself" in hint for hint in caught.value.hints)


def test_a_server_that_speaks_no_http_is_a_clear_error() -> None:
    def greet(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"220 mail.example ESMTP\r\n")
            while connection.recv(65536):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=greet, args=(listener,))
        thread.start()
        with pytest.raises(TelemetryError, match=r"no answer from the Pushgateway .*220 mail\.example"):
            Pushgateway.parse(f"http://127.0.0.1:{listener.getsockname()[1]}").push(DUMP_JOB, dump_failed(duration_seconds=1))
        thread.join()


def test_the_environments_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200, {}) as (proxy, requests):
        monkeypatch.setenv("http_proxy", proxy)
        Pushgateway.parse("http://job:secret@pushgateway.invalid:9091").push(DUMP_JOB, dump_failed(duration_seconds=1))
    assert requests == ["POST http://pushgateway.invalid:9091/metrics/job/postgres-backup HTTP/1.1"]


@pytest.mark.parametrize(
    "url",
    [
        "prometheus-pushgateway.clipper-monitoring:9091",
        "ftp://user:hunter2@host:9091",
        "http://",
        "http://user:hunter2@:9091",
        "http://user:hunt#er2@host:9091",
        "http://user:hunter2@host:port",
        "http://user:hunter2@host:99999",
        "http://user:hunter2@[::1:9091",
        "http://user:hunter2@ho st:9091",
        "http://user:hunter2@host:9091/?job=x",
        "",
    ],
)
def test_a_bad_url_is_refused_before_any_work_and_never_repeated(url: str) -> None:
    with pytest.raises(UsageError, match="the URL of the Pushgateway is bad: ") as caught:
        Pushgateway.parse(url)
    assert "hunt" not in str(caught.value)
    assert caught.value.hints


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://host:9091", "http://host:9091"),
        ("https://user:p%40ss@host/prefix/", "https://host/prefix"),
        ("http://user@[::1]:9091", "http://[::1]:9091"),
    ],
)
def test_what_people_read_has_no_login_in_it(url: str, shown: str) -> None:
    assert Pushgateway.parse(url).url == shown
