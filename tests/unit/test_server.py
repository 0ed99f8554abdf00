"""The server in front of everything: bytes and seconds a header may take, and the one error shape, on a real socket."""

import json
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
import pytest

from tests.support.processes import free_port, python_module, running
from tests.support.waiting import wait_until

HEADER_KIB = 16
HEADER_SECONDS = 1.0
GET = b"GET /first HTTP/1.1\r\nhost: x\r\n\r\n"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: Any


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    number = free_port()
    arguments = (str(number), str(HEADER_KIB), str(HEADER_SECONDS))
    with running(python_module("tests.support.echo_server", *arguments)) as server:
        server.wait_for_port(number)
        yield number
        assert "Traceback" not in server.output


@pytest.fixture
def client(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connected:
        yield connected


def read_answer(client: socket.socket) -> Answer:
    """Read one answer with a length; what came of it if the connection ends."""
    head, body = b"", b""
    while not head.endswith(b"\r\n\r\n") and (piece := client.recv(1)):  # not a byte of the next answer
        head += piece
    first, *lines = head.decode().strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while (left := int(headers["content-length"]) - len(body)) and (piece := client.recv(left)):
        body += piece
    return Answer(int(first.split()[1]), headers, json.loads(body))


def assert_refused(client: socket.socket, status: int, code: str) -> str:
    """The next answer has the one error shape, and it is the last one."""
    answer = read_answer(client)
    assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
    assert answer.headers["connection"] == "close"
    assert answer.body["error"]["code"] == code
    assert answer.body["error"].keys() == {"message", "type", "param", "code"}
    assert client.recv(1) == b"", "nothing comes after a refusal"
    return str(answer.body["error"]["message"])


def push(client: socket.socket, data: bytes) -> None:
    """Send all of it, unless the server has had enough."""
    try:
        client.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        return


def header(kib: int) -> bytes:
    return b"GET / HTTP/1.1\r\nhost: x\r\nx-long: %s\r\n\r\n" % (b"y" * (kib * 1024))


def test_two_requests_on_one_connection_are_both_answered(client: socket.socket) -> None:
    for path in (b"first", b"second"):
        client.sendall(GET.replace(b"first", path))
        assert read_answer(client).body["path"] == f"/{path.decode()}"


def test_requests_sent_ahead_are_answered_in_order(client: socket.socket) -> None:
    client.sendall(GET + GET.replace(b"first", b"second"))
    assert [read_answer(client).body["path"] for _ in range(2)] == ["/first", "/second"]


def test_a_large_body_does_not_count_as_header(client: socket.socket) -> None:
    for _ in range(2):
        body = bytes(5 * 1024 * 1024)
        client.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        assert read_answer(client).body["body"] == len(body)


def test_a_header_within_the_limit_is_taken_however_it_is_cut(client: socket.socket) -> None:
    whole = header(HEADER_KIB - 1)
    for start in range(0, len(whole), 4_000):
        client.sendall(whole[start : start + 4_000])
    assert read_answer(client).status == 200


@pytest.mark.parametrize("kib", [HEADER_KIB + 1, 100, 1024])
def test_a_header_over_the_limit_is_refused_with_the_name_of_the_setting(client: socket.socket, kib: int) -> None:
    push(client, header(kib))
    assert "HOSTLER_MAX_HEADER_KIB" in assert_refused(client, 431, "header_too_large")


@pytest.mark.parametrize("kib", [HEADER_KIB + 1, 100, 1024])
def test_the_limit_holds_for_the_second_request_of_a_connection_too(client: socket.socket, kib: int) -> None:
    client.sendall(GET)
    assert read_answer(client).status == 200
    push(client, header(kib))
    assert_refused(client, 431, "header_too_large")


def test_a_half_sent_header_is_refused_within_its_time(client: socket.socket) -> None:
    began = time.monotonic()
    client.sendall(b"GET / HTTP/1.1\r\nhost:")
    assert "not complete within 1 s" in assert_refused(client, 408, "request_timeout")
    assert time.monotonic() - began < HEADER_SECONDS + 1


def test_a_half_sent_second_header_is_refused_within_its_time(client: socket.socket) -> None:
    client.sendall(GET)
    assert read_answer(client).status == 200
    client.sendall(b"GET / HTTP/1.1\r\nhost:")
    assert_refused(client, 408, "request_timeout")


def test_a_connection_that_says_nothing_is_closed_without_an_answer(client: socket.socket) -> None:
    assert client.recv(1) == b""


def test_a_drop_of_header_now_and_then_does_not_win_time(client: socket.socket) -> None:
    began = time.monotonic()
    client.settimeout(0.2)
    client.sendall(b"GET / HTTP/1.1\r\n")

    def answered() -> bool:
        client.sendall(b"x-y: z\r\n")
        try:
            return bool(client.recv(1, socket.MSG_PEEK))
        except TimeoutError:
            return False

    wait_until(answered, "the refusal", seconds=HEADER_SECONDS + 2)
    assert read_answer(client).status == 408
    assert time.monotonic() - began < HEADER_SECONDS + 1.5


@pytest.mark.parametrize("raw", [b"\x16\x03\x01\x02\x00\x01\x00\x01", b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
def test_what_is_not_http_is_refused_in_the_one_shape(client: socket.socket, raw: bytes) -> None:
    client.sendall(raw)
    assert "not an HTTP/1.1 request" in assert_refused(client, 400, "invalid_request")


def test_what_is_not_http_after_a_good_request_is_refused_too(client: socket.socket) -> None:
    client.sendall(GET)
    assert read_answer(client).status == 200
    client.sendall(b"\x00\x01\x02\r\n\r\n")
    assert_refused(client, 400, "invalid_request")


def test_a_refused_client_that_goes_on_sending_still_gets_its_answer(client: socket.socket) -> None:
    push(client, header(64))
    push(client, bytes(1024 * 1024))
    assert read_answer(client).status == 431


def test_other_clients_are_served_while_one_dawdles(client: socket.socket, port: int) -> None:
    client.sendall(b"GET / HTTP/1.1\r\nhost:")
    assert httpx.get(f"http://127.0.0.1:{port}/other", timeout=5).json()["path"] == "/other"


def test_a_client_that_begins_with_tls_is_told_in_http_and_gone_at_once(client: socket.socket) -> None:
    with pytest.raises(ssl.SSLError):
        ssl.create_default_context().wrap_socket(client, server_hostname="localhost")
