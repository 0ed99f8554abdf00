"""A gateway that speaks TLS itself: real certificates, the real openai client, and clients that behave badly."""

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import Iterator
from typing import NamedTuple

import openai
import pytest

from tests.engine_simulator.configuration import Faults, Simulation
from tests.support.certificates import Authority, Pair, write
from tests.support.crowd import contents, crowd
from tests.support.raw_http import RawConnection, dechunked
from tests.support.stack import ADMIN_KEY, Stack, chat, running_stack
from tests.support.waiting import wait_until

CHAT = "/v1/chat/completions"
SECONDS = 60.0
"""For any one wait."""
TOKENS = 20
SETTINGS = {"HOSTLER_HEADER_SECONDS": "5", "HOSTLER_MAX_BODY_MIB": "1", "HOSTLER_DRAIN_SECONDS": "600"}
FOREVER = Simulation(tokens_per_second=50, answer_tokens=1_000_000)


class Secure(NamedTuple):
    """A stack whose gateway speaks TLS, and its certificate."""

    stack: Stack
    authority: Authority
    pair: Pair

    def raw(self) -> RawConnection:
        """A connection through TLS."""
        return RawConnection(self.stack.port, SECONDS, self.authority.trust)

    def shown(self) -> bytes:
        """The certificate that a new connection is shown."""
        with (
            socket.create_connection(("127.0.0.1", self.stack.port), timeout=SECONDS) as plain,
            self.authority.trust.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            return connection.getpeercert(binary_form=True) or b""

    def live(self) -> int:
        """Requests that the engine of `talker` works on."""
        [worker] = self.stack.status("talker")["workers"]
        return int(self.stack.engine_stats(worker["id"])["live"])


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    authority = Authority()
    pair = authority.sign(tmp_path_factory.mktemp("tls"))
    with running_stack(SETTINGS | pair.settings, trust=authority.trust) as stack:
        stack.endpoint("talker", Simulation(answer_tokens=TOKENS), per_worker=64)
        stack.ask("talker").raise_for_status()
        yield Secure(stack, authority, pair)
        assert stack.gateway is not None
        assert "Traceback" not in stack.gateway.output


def test_the_openai_client_gets_a_stream_as_it_is_made_and_its_end_reaches_the_engine(secure: Secure) -> None:
    stack = secure.stack
    stack.behave("talker", Simulation(answer_tokens=TOKENS, faults=Faults(stall_stream_after=3)))
    with (
        openai.DefaultHttpxClient(verify=secure.authority.trust, timeout=SECONDS) as http,
        openai.OpenAI(base_url=f"{stack.address}/v1", api_key=ADMIN_KEY, http_client=http, max_retries=0) as client,
    ):
        with client.chat.completions.create(
            model="talker", messages=[{"role": "user", "content": "hello"}], stream=True
        ) as stream:
            said = [next(chunk for chunk in stream if chunk.choices[0].delta.content) for _ in range(3)]
            assert len(said) == 3, "they are here, and the engine has not said the rest"
            assert secure.live() == 1
        wait_until(lambda: secure.live() == 0, "the engine gave it up", seconds=SECONDS)
        stack.behave("talker", Simulation(answer_tokens=TOKENS))
        whole = client.chat.completions.create(model="talker", messages=[{"role": "user", "content": "hello"}])
        assert whole.usage is not None
        assert whole.usage.completion_tokens == TOKENS


@pytest.mark.parametrize("polite", [False, True], ids=["without a goodbye", "with a goodbye"])
def test_a_client_gone_ends_its_request(secure: Secure, *, polite: bool) -> None:
    secure.stack.behave("talker", FOREVER)
    with secure.raw() as raw:
        raw.post(CHAT, chat("talker", stream=True), ADMIN_KEY)
        raw.read_until(b'"content":"')
        wait_until(lambda: secure.live() == 1, "the engine serves it", seconds=SECONDS)
        if polite:
            raw.say_goodbye()
        raw.hang_up()
        wait_until(lambda: secure.live() == 0, "the engine gave it up", seconds=SECONDS)
    secure.stack.behave("talker", Simulation(answer_tokens=TOKENS))


def test_the_answer_to_a_body_that_is_too_large_survives_a_client_that_sends_on(secure: Secure) -> None:
    with secure.raw() as raw:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {ADMIN_KEY}\r\n"
        raw.send(f"{head}content-length: {8 << 20}\r\n\r\n".encode())
        for _ in range(8):
            raw.send(bytes(1 << 20))
        answer = raw.answer()
    assert (answer.status, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_handshakes_and_headers_have_their_limits_and_a_broken_handshake_ends_at_once(secure: Secure) -> None:
    hello = ssl.MemoryBIO()
    client = secure.authority.trust.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    beginnings = (b"", hello.read()[:100], b"\x16\x03\x01\x00\x05hello")
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(RawConnection(secure.stack.port, SECONDS)) for _ in beginnings]
        for connection, beginning in zip(connections, beginnings, strict=True):
            connection.send(beginning)
        large, slow = stack.enter_context(secure.raw()), stack.enter_context(secure.raw())
        slow.send(b"GET /livez HTTP/1.1\r\nhost:")
        large.send(b"GET /livez HTTP/1.1\r\nx: " + b"x" * (1 << 17))
        assert large.answer().status == 431
        for connection in connections:
            received = connection.read_to_end()
            assert len(received) < 100, "no more than an alert"
            assert not received.startswith(b"HTTP")
        assert slow.answer().status == 408
        assert slow.is_closed()
    assert secure.stack.is_ready()


def test_a_client_that_writes_http_instead_of_https_is_told_so(secure: Secure) -> None:
    with RawConnection(secure.stack.port, SECONDS) as connection:
        connection.post(CHAT, chat("talker"), ADMIN_KEY)
        answer = connection.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert "The plain HTTP request was sent to HTTPS port" in answer.json()["error"]["message"]
        assert connection.is_closed()


def test_http_1_1_is_agreed_on_and_old_tls_is_not(secure: Secure) -> None:
    trust = secure.authority.trust
    trust.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", secure.stack.port), timeout=SECONDS) as plain,
        trust.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        assert connection.selected_alpn_protocol() == "http/1.1"
        assert connection.version() == "TLSv1.3"


def test_a_renewed_certificate_is_shown_to_new_connections_and_a_broken_one_never(secure: Secure) -> None:
    stack, old = secure.stack, secure.shown()
    with secure.raw() as kept:
        secure.authority.sign(secure.pair.certificate.parent)
        wait_until(lambda: secure.shown() != old, "the new one is shown", seconds=SECONDS, interval=0.1)
        kept.send(b"GET /livez HTTP/1.1\r\nhost: h\r\n\r\n")
        assert kept.answer().status == 200, "connections that are there stay"
    new = secure.shown()
    whole = secure.pair.key.read_bytes()
    write(secure.pair.key, b"-----BEGIN PRIVATE KEY-----\nbroken\n")

    def told() -> str:
        return str(stack.client.get("/readyz").json()["parts"]["certificate"])

    wait_until(lambda: told() != "ok", "it is told", seconds=SECONDS, interval=0.1)
    assert "the old one is kept" in told()
    assert secure.shown() == new
    write(secure.pair.key, whole)
    wait_until(lambda: told() == "ok", "it is well again", seconds=SECONDS, interval=0.1)
    ends = stack.metrics()["hostler_certificate_ends"]
    assert ends == ssl.cert_time_to_seconds(_not_after(secure))


def _not_after(secure: Secure) -> str:
    with (
        socket.create_connection(("127.0.0.1", secure.stack.port), timeout=SECONDS) as plain,
        secure.authority.trust.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        return str((connection.getpeercert() or {})["notAfter"])


async def test_streams_that_are_open_at_a_stop_end_whole_and_idle_connections_hold_nothing_up(secure: Secure) -> None:
    stack, trust = secure.stack, secure.authority.trust
    assert stack.gateway is not None
    stack.behave("talker", Simulation(answer_tokens=TOKENS, hold=["wait for me"]))
    async with crowd(stack.port, 10, trust=trust) as callers, crowd(stack.port, 10, trust=trust):
        for caller in callers:
            caller.post(CHAT, chat("talker", "wait for me", stream=True))
        await asyncio.gather(*(caller.read_until(b'"content":"') for caller in callers))
        # one that reads nothing, and so says no goodbye, and one that has not begun its handshake
        with secure.raw(), RawConnection(stack.port):
            stack.gateway.signal(signal.SIGTERM)
            stack.order("talker", Simulation(answer_tokens=TOKENS))
            for answer in await asyncio.gather(*(caller.read_to_end() for caller in callers)):
                assert len(contents(dechunked(answer.partition(b"\r\n\r\n")[2]))) == TOKENS
            assert await asyncio.to_thread(stack.gateway.wait, SECONDS) == 0
    assert "Traceback" not in stack.gateway.output
    stack.gateway.stop()
    stack.start_gateway()
    wait_until(stack.is_ready, "the next one is ready", seconds=SECONDS)
