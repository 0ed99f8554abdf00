"""A worker that is replaced under fifty streams, twenty times: not one of a thousand streams is broken."""

import asyncio
import contextlib
import re
from collections.abc import Iterator
from functools import partial

import pytest

from tests.engine_simulator.configuration import Simulation
from tests.support.battery import Tell
from tests.support.crowd import SECONDS, Caller, contents, crowd
from tests.support.stack import Stack, chat, running_stack
from tests.support.waiting import wait_until_async

CHAT = "/v1/chat/completions"
STREAMS = 50
SWAPS = 20
TOKENS = 20
FLAG = 500
"""A value of a flag that another worker is needed for."""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running_stack() as started:
        yield started


def holding(*rounds: int) -> Simulation:
    """The orders for it."""
    return Simulation(answer_tokens=TOKENS, hold=[f"round {number}." for number in rounds])


def hold(stack: Stack, *rounds: int) -> None:
    """Let the streams of these rounds stay without their last token; all others may end."""
    stack.order("first", holding(*rounds))


def is_draining(stack: Stack, worker: str) -> bool:
    """Whether this worker gets no further request."""
    return any(each["id"] == worker and each["draining"] for each in stack.status("first")["workers"])


async def begin(callers: list[Caller], number: int) -> str:
    """Begin a round's streams; the one worker that serves them all."""
    for caller in callers:
        caller.post(CHAT, chat("first", f"round {number}.", stream=True))
    await asyncio.gather(*(caller.read_until(b'"content":"') for caller in callers))
    workers = set(re.findall(rb"x-hostler-worker: (\S+)", b"".join(caller.received for caller in callers)))
    assert len(workers) == 1
    return str(workers.pop(), "ascii")


async def whole(callers: list[Caller]) -> int:
    """How many streams came to their end with every token."""
    answers = await asyncio.gather(*(caller.answer() for caller in callers))
    return sum(len(contents(answer.body)) == TOKENS for answer in answers)


async def test_of_a_thousand_streams_under_which_their_worker_is_replaced_none_is_broken(
    stack: Stack, record_property: Tell
) -> None:
    # an engine that runs looks at its orders now and then: those of the first round are there before it starts
    stack.endpoint("first", holding(0), per_worker=4 * STREAMS, max_workers=1)
    stack.ask("first").raise_for_status()
    workers, unbroken = [], 0
    async with contextlib.AsyncExitStack() as crowds:
        open_ones = await crowds.enter_async_context(crowd(stack.port, STREAMS))
        workers.append(await begin(open_ones, 0))
        for number in range(1, SWAPS + 1):
            hold(stack, number - 1, number)
            change = {"engine_args": {"max-num-seqs": FLAG + number}}
            stack.client.patch("/api/endpoints/first", json=change).raise_for_status()
            await wait_until_async(partial(is_draining, stack, workers[-1]), "the old worker drains")
            new_ones = await crowds.enter_async_context(crowd(stack.port, STREAMS))
            workers.append(await begin(new_ones, number))
            assert stack.engine_stats(workers[-2])["live"] == STREAMS, "all that were open are open still"
            hold(stack, number)
            unbroken += await whole(open_ones)
            open_ones = new_ones
        hold(stack)
        assert await whole(open_ones) == STREAMS
    assert len(set(workers)) == SWAPS + 1
    assert unbroken == SWAPS * STREAMS
    record_property("whole", f"{unbroken:,} of {SWAPS * STREAMS:,}, {SWAPS + 1} workers")

    def gone() -> bool:
        return [worker["id"] for worker in stack.status("first")["workers"]] == workers[-1:]

    await wait_until_async(gone, "every replaced worker is gone", seconds=SECONDS, interval=0.05)
