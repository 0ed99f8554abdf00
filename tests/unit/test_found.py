"""An engine that was found running and does not answer in time: busy if it works, else as good as silent."""

import asyncio
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.processes import short_folder
from tests.support.raw_server import raw_server, read_request
from tests.support.waiting import wait_until_async
from tests.unit.test_reconcile import NOW, spec, unit
from worker_manager import tracked as life
from worker_manager.board import Board
from worker_manager.contract import WorkerState
from worker_manager.engines import found
from worker_manager.engines.canary import Rhythm
from worker_manager.engines.found import probe_found
from worker_manager.keeper import Keeper
from worker_manager.proofs import Proofs
from worker_manager.sleeper import Sleeper

MOMENT = 0.05
LONG = 30.0
MODELS = b'{"data": [{"id": "tiny"}]}'


class Engine:
    """Answers all but the question for a token; `tokens` gives the count that it tells next."""

    def __init__(self, tokens: Callable[[], int], token: bytes = b"") -> None:
        self._tokens = tokens
        self.token = token

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            asked = await read_request(reader)
            body = MODELS if b"/v1/models" in asked else b""
            if b"/metrics" in asked:
                body = b'vllm:generation_tokens_total{model="tiny"} %d\n' % self._tokens()
            if b"/v1/completions" in asked:
                if not self.token:
                    await asyncio.Event().wait()
                body = self.token
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


def keeper_of(board: Board, folder: Path) -> Keeper:
    """One that hears of no units but a running `w1`, and of no log."""

    async def nothing(_worker: str) -> dict[str, int]:
        return {}

    async def no_cards() -> dict[str, int]:
        return {}

    async def silent(_worker: str) -> tuple[str, ...]:
        return ()

    async def learned(_worker: str) -> None:
        return

    sleeper = Sleeper(
        engines=folder,
        proofs=Proofs(folder / "proofs"),
        enabled=True,
        env={},
        sleep_seconds=LONG,
        wake_seconds=LONG,
        image="",
        held=nothing,
        used=no_cards,
        host_free_mib=lambda: 0,
    )
    return Keeper(
        board,
        engines=folder,
        sleeper=sleeper,
        canary=Rhythm(interval=0, timeout=LONG, tries=1),
        unit=lambda _worker: unit(spec()),
        log=silent,
        log_seconds=LONG,
        on_ready=learned,
        look_again=lambda: None,
    )


async def test_a_busy_one_is_still_not_asked_and_its_time_to_answer_begins_anew_until_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(found, "probe_found", partial(probe_found, seconds=MOMENT))
    engine, board = Engine(itertools.count(1).__next__), Board()
    with short_folder() as folder:
        (folder / "w1").mkdir()
        keeper = keeper_of(board, folder)
        async with raw_server(engine, folder / "w1" / "engine.sock"):
            board.set("w1", life.adopted(spec(), None, NOW, running=True))
            await wait_until_async(lambda: board.workers["w1"].since > NOW, "it was seen to work")
            assert life.observed(board.workers["w1"], None, None).is_unasked
            engine.token = b"{}"
            monkeypatch.setattr(found, "probe_found", partial(probe_found, seconds=LONG))
            await wait_until_async(lambda: board.workers["w1"].state is WorkerState.READY, "it answers")
        await keeper.close()
