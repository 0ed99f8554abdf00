"""An engine that was found running and does not answer in time: busy if it works, else as good as silent."""

import asyncio
import itertools
from collections.abc import Callable

import pytest

from tests.support.raw_server import raw_server, read_request
from worker_manager.engines.found import probe_found

MOMENT = 0.05
LONG = 30.0
MODELS = b'{"data": [{"id": "tiny"}]}'


class Engine:
    """Answers all but the question for a token; `tokens` gives the count that it tells next."""

    def __init__(self, tokens: Callable[[], int], token: bytes = b"") -> None:
        self._tokens = tokens
        self._token = token

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            asked = await read_request(reader)
            body = MODELS if b"/v1/models" in asked else b""
            if b"/metrics" in asked:
                body = b'vllm:generation_tokens_total{model="tiny"} %d\n' % self._tokens()
            if b"/v1/completions" in asked:
                if not self._token:
                    await asyncio.Event().wait()
                body = self._token
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))


@pytest.mark.parametrize(("tokens", "busy"), [(itertools.count(1).__next__, True), (lambda: 5, False)])
async def test_one_that_does_not_answer_in_time_is_busy_if_its_figures_move(
    tokens: Callable[[], int], *, busy: bool
) -> None:
    async with raw_server(Engine(tokens)) as socket:
        answer = await probe_found(socket, "tiny", may_sleep=False, seconds=MOMENT)
    assert (answer.ready, answer.busy, answer.reason) == (False, busy, f"no answer within {MOMENT:g} s")


async def test_one_that_answers_is_ready() -> None:
    async with raw_server(Engine(lambda: 5, b"{}")) as socket:
        answer = await probe_found(socket, "tiny", may_sleep=False, seconds=LONG)
    assert (answer.ready, answer.busy) == (True, False)


async def test_one_that_is_not_there_is_not_busy() -> None:
    async with raw_server(Engine(lambda: 5)) as socket:
        answer = await probe_found(socket.with_name("nobody.sock"), "tiny", may_sleep=False, seconds=LONG)
    assert (answer.ready, answer.busy) == (False, False)
