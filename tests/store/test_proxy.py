"""The proxy that other tests rely on does to connections what it says."""

import socket
import threading
from collections.abc import Iterator

import pytest

from fixtures.proxy import Direction, How, TcpProxy


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends back what it receives, until the client says no more."""

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(4096):
                    connection.sendall(data)
            except OSError:
                pass

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def talk(port: int, data: bytes, timeout: float = 10) -> bytes:
    """What comes back for *data*, up to the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while piece := connection.recv(4096):
            received += piece
        return received


def test_it_forwards_both_ways(echo: tuple[str, int]) -> None:
    data = bytes(range(256)) * 4000
    with TcpProxy(echo) as proxy, socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:

        def send() -> None:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = b""
        while piece := connection.recv(65536):
            received += piece
        sender.join()
        assert received == data
        assert (proxy.connections, proxy.struck) == (1, 0)


@pytest.mark.parametrize("times", [1, 2])
def test_close_cuts_the_answer_short(echo: tuple[str, int], times: int) -> None:
    with TcpProxy(echo) as proxy:
        proxy.break_after(3, how="close", direction="answers", times=times)
        for _ in range(times):
            assert talk(proxy.port, b"123456") == b"123"
        assert talk(proxy.port, b"123456") == b"123456"
        assert proxy.struck == times


@pytest.mark.parametrize("direction", ["requests", "answers"])
def test_reset_is_a_reset(echo: tuple[str, int], direction: Direction) -> None:
    with TcpProxy(echo) as proxy:
        proxy.break_after(0, how="reset", direction=direction)
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
            connection.sendall(b"123456")
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        assert proxy.struck == 1


def test_bytes_are_counted_over_all_connections(echo: tuple[str, int]) -> None:
    with TcpProxy(echo) as proxy:
        proxy.break_after(8, how="close", direction="answers")
        assert talk(proxy.port, b"12345") == b"12345"
        assert talk(proxy.port, b"12345") == b"123"


def test_only_the_answer_to_one_request_is_lost(echo: tuple[str, int]) -> None:
    with TcpProxy(echo) as proxy:
        proxy.break_at(b"POST", how="close", direction="answers")
        assert talk(proxy.port, b"GET 1") == b"GET 1"
        assert talk(proxy.port, b"POST 1") == b""
        assert talk(proxy.port, b"POST 1") == b"POST 1"
        proxy.break_at(b"POST", how="close", direction="requests")
        assert talk(proxy.port, b"GET 2") == b"GET 2"
        assert talk(proxy.port, b"POST 2") == b""
        assert proxy.struck == 2


def test_stall_keeps_the_connection_and_forwards_nothing(echo: tuple[str, int]) -> None:
    with TcpProxy(echo) as proxy:
        proxy.break_after(0, how="stall", direction="answers")
        with pytest.raises(TimeoutError):
            talk(proxy.port, b"123456", timeout=0.3)
        proxy.heal()
        assert talk(proxy.port, b"123456") == b"123456"


def test_refuse_resets_what_is_open_and_refuses_what_comes(echo: tuple[str, int]) -> None:
    with TcpProxy(echo) as proxy, socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        connection.sendall(b"1")
        assert connection.recv(1) == b"1"
        proxy.refuse()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        with pytest.raises(ConnectionRefusedError):
            talk(proxy.port, b"1")
        proxy.accept()
        assert talk(proxy.port, b"1") == b"1"


@pytest.mark.parametrize("how", ["reset", "close", "stall"])
def test_closing_the_proxy_ends_everything(echo: tuple[str, int], how: How) -> None:
    with TcpProxy(echo) as proxy:
        connection = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
        proxy.break_after(0, how=how, direction="answers")
        connection.sendall(b"1")
        if how != "stall":
            with connection:
                try:
                    assert connection.recv(1) == b""
                except ConnectionResetError:
                    assert how == "reset"
            return
    with connection, pytest.raises(ConnectionResetError):
        connection.recv(1)
