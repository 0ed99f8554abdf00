"""The server given the same bytes in pieces as whole: whatever is cut where, the answers are the same."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from hypothesis import example, given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from gateway.errors import RequestTimeout
from gateway.proxy.watch import impatient
from gateway.server import guarded
from gateway.settings import Settings
from tests.support.cuts import cut
from tests.support.processes import short_folder

HEADER_KIB = 1
PATIENT_SECONDS = 60.0
HASTY_SECONDS = 0.05
CLOSE = b"connection: close\r\n"
Exchange = Callable[..., Awaitable[bytes]]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answer with everything that arrived."""
    receive = impatient(receive, HASTY_SECONDS if scope["path"] == "/hasty" else PATIENT_SECONDS)
    body, more = b"", True
    while more:
        try:
            message = await receive()
        except RequestTimeout:
            await send({"type": "http.response.start", "status": 408, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        more = message.get("more_body", False)
    if scope["path"] == "/slow":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]})
        for left in range(9, -1, -1):
            await asyncio.sleep(HASTY_SECONDS / 5)
            await send({"type": "http.response.body", "body": b".", "more_body": left > 0})
        return
    told = {name: scope[name] for name in ("method", "path", "http_version")}
    told["query"], told["body"] = scope["query_string"].decode("latin-1"), body.decode("latin-1")
    told["headers"] = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    answer = json.dumps(told).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(answer))]})
    for start in range(0, len(answer), 50):
        await send({"type": "http.response.body", "body": answer[start : start + 50], "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


@contextlib.asynccontextmanager
async def serving(header_seconds: float) -> AsyncIterator[Exchange]:
    """A server; yields a function that sends pieces on a connection of their own and gives back all that came."""
    limits = Settings(admin_key="unused-by-the-server", max_header_kib=HEADER_KIB, header_seconds=header_seconds)
    config = uvicorn.Config(echo, http=guarded(limits), log_config=None, server_header=False, date_header=False)
    state, loop = ServerState(), asyncio.get_running_loop()
    with short_folder() as folder:
        server = await loop.create_unix_server(
            lambda: guarded(limits)(config=config, server_state=state, app_state={}, _loop=loop), folder / "s"
        )

        async def exchange(*pieces: bytes) -> bytes:
            reader, writer = await asyncio.open_unix_connection(str(folder / "s"))
            try:
                for piece in pieces:
                    writer.write(piece)
                    for _ in range(3):  # the server reads it before the next one is sent
                        await asyncio.sleep(0)
                async with asyncio.timeout(PATIENT_SECONDS):
                    return without_ids(await reader.read())
            finally:
                writer.transport.abort()

        yield exchange
        server.close()
        await asyncio.sleep(0.01)  # both ends of each connection are told of its end


def without_ids(answers: bytes) -> bytes:
    """Without what differs from one refusal to the next, and the word to send a body that may be there by then."""
    return re.sub(rb"x-request-id: [0-9a-f]{32}\r\n|HTTP/1.1 100 Continue\r\n\r\n", b"", answers)


def in_chunks(body: bytes, size: int) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x;x=y\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\nx-trailer: 1\r\n\r\n"


@st.composite
def request(draw: Callable[[Any], Any]) -> bytes:
    """A good request, but for its last empty line: more headers may follow."""
    target = draw(st.sampled_from([b"/", b"/a%20b?x=1&y", b"/v1/chat/completions", b"//x/../y?" + b"q" * 50]))
    lines = [draw(st.sampled_from([b"GET", b"POST", b"PATCH", b"DELETE"])) + b" " + target + b" HTTP/1.1", b"host: x"]
    lines += [
        b"x-%d: %s" % (n, b"v" * length) for n, length in enumerate(draw(st.lists(st.integers(0, 150), max_size=4)))
    ]
    lines += draw(st.sampled_from([[], [b"expect: 100-continue"]]))
    body = draw(st.sampled_from([b"", b"{}", b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", bytes(3000)]))
    if body and draw(st.booleans()):
        return b"\r\n".join([*lines, b"transfer-encoding: chunked", b"", in_chunks(body, 999)])
    return b"\r\n".join([*lines, b"content-length: %d" % len(body), b"", body])


LAST = b"GET /last HTTP/1.1\r\nhost: x\r\n" + CLOSE + b"\r\n"
LONG = b"GET / HTTP/1.1\r\nhost: x\r\nx-long: %s\r\n\r\n"


@settings(max_examples=80, deadline=None)
@given(st.lists(request(), max_size=3), st.lists(st.integers(0, 5000), max_size=12))
@example([b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3000\r\n\r\n" + bytes(3000)], [48])
def test_requests_are_answered_the_same_however_they_are_cut(requests: list[bytes], places: list[int]) -> None:
    async def both() -> None:
        raw = b"".join([*requests, LAST])
        async with serving(PATIENT_SECONDS) as exchange:
            assert await exchange(*cut(raw, places)) == await exchange(raw)

    asyncio.run(both())


@settings(max_examples=60, deadline=None)
@given(st.integers(900, 1100), st.lists(st.integers(0, 1200), max_size=5))
def test_a_header_is_too_large_or_not_however_it_is_cut(length: int, places: list[int]) -> None:
    async def once() -> None:
        raw = LONG % (b"y" * length)
        async with serving(PATIENT_SECONDS) as exchange:
            status = 200 if len(raw) <= HEADER_KIB * 1024 else 431
            assert (await exchange(*cut(raw, places), LAST)).startswith(b"HTTP/1.1 %d " % status)

    asyncio.run(once())


HASTY = b"GET /hasty HTTP/1.1\r\nhost: x\r\n" + CLOSE
"""A header that noise may go on with, also with the promise of a body that never comes."""
ANSWERS = re.compile(
    rb"(HTTP/1\.1 (100 Continue\r\n|[2-5]\d\d [ \w]+\r\n([-\w]+: [^\r\n]*\r\n)+)\r\n(\{.*?\})?)*", re.DOTALL
)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([b"", HASTY, b"POST /hasty HTTP/1.1\r\n" + CLOSE + b"content-length: 5\r\n\r\n"]),
    st.binary(max_size=100),
    st.sampled_from([b"", b"\r\n\r\n"]),
)
@example(HASTY, b"transfer-encoding: chunked", b"\r\n\r\n")
def test_whatever_a_client_says_it_gets_answers_and_an_end(before: bytes, noise: bytes, after: bytes) -> None:
    async def once() -> None:
        async with serving(HASTY_SECONDS) as exchange:
            assert ANSWERS.fullmatch(await exchange(before + noise + after))
            assert (await exchange(LAST)).startswith(b"HTTP/1.1 200 ")

    asyncio.run(once())


SLOW = b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize("rest", [b"\x00\x01 garbage\r\n\r\n", LONG % (b"y" * 5000), b"GET /half HTTP/1.1\r\nho"])
@pytest.mark.parametrize("ahead", [0, 1])
async def test_nothing_comes_into_the_middle_of_an_answer(rest: bytes, ahead: int) -> None:
    async with serving(HASTY_SECONDS) as exchange:
        answers = (await exchange(SLOW, *[SLOW] * ahead, rest)).replace(CLOSE, b"")
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n" + b"." * 10
    after = answers.removeprefix(whole * (1 + ahead))
    assert after == b"" or re.match(rb"HTTP/1\.1 (400|408|431) ", after)
