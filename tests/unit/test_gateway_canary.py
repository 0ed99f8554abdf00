"""The gateway's own first request to a worker, against engines of every sort."""

from collections.abc import Iterator

import pytest

from gateway.proxy import canary
from gateway.proxy.pool import Pool
from tests.support.raw_server import answering, raw_server


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(connect_seconds=1)
    yield made
    made.close()


def response(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
        status,
        len(body),
        body,
    )


@pytest.mark.parametrize("body", [b'{"choices": [{"text": "x"}]}', b'{"data": [1]}'])
async def test_an_answer_with_a_result_is_one(pool: Pool, body: bytes) -> None:
    async with raw_server(answering(response(200, body))) as socket:
        assert await canary.ask(pool, socket, "a") == ""


async def test_a_model_of_no_kind_that_generates_is_believed_as_the_manager_found_it(pool: Pool) -> None:
    async with raw_server(answering(response(404, b"{}"))) as socket:
        assert await canary.ask(pool, socket, "a") == ""


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (response(500, b"no memory"), "answers 500: no memory"),
        (response(200, b"<html>"), "no JSON"),
        (response(200, b"[]"), "without a result"),
        (response(200, b'{"choices": []}'), "without a result"),
        (b"nonsense\r\n\r\n", "the connection broke"),
    ],
)
async def test_everything_else_is_none_and_says_why(pool: Pool, answer: bytes, says: str) -> None:
    async with raw_server(answering(answer, close=True)) as socket:
        assert says in await canary.ask(pool, socket, "a")


async def test_an_engine_that_is_silent_or_not_there_does_not_answer(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary, "ANSWER_SECONDS", 0.05)
    async with raw_server(answering()) as socket:
        assert "0.05 s" in await canary.ask(pool, socket, "a")
    assert "the connection broke" in await canary.ask(pool, socket, "a")
