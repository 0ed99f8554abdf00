"""Ten thousand requests whose clients leave, a quarter in each phase; then everybody is served and nothing is left."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from tests.engine_simulator.configuration import Simulation
from tests.support.battery import Tell
from tests.support.crowd import SECONDS, Caller, calling, crowd
from tests.support.stack import CLIENT_SECONDS, Stack, chat, running_stack
from tests.support.waiting import wait_until_async

CHAT = "/v1/chat/completions"
AT_ONCE = 250
ROUNDS = 10
CANCELLED = 10_000
SERVED = 100
SERVED_AT_ONCE = 10
MANAGER_CONNECTIONS = 1
"""The client of the manager keeps one connection or two."""
SILENT = Simulation(ttft_seconds=600)
ENDLESS = Simulation(tokens_per_second=5, answer_tokens=1_000_000)
BRIEF = Simulation(ttft_seconds=0.3, answer_tokens=5)


class House:
    """A stack with an endpoint that serves and one whose worker loads for ever."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        stack.endpoint("busy", per_worker=AT_ONCE, engine_args={"max-num-seqs": AT_ONCE})
        stack.endpoint("never", Simulation(load_seconds=600), per_worker=AT_ONCE)
        stack.ask("busy").raise_for_status()
        [worker] = stack.status("busy")["workers"]
        transport = httpx.HTTPTransport(uds=str(stack.run / "engines" / worker["id"] / "engine.sock"))
        self._engine = httpx.Client(transport=transport, base_url="http://engine", timeout=CLIENT_SECONDS)

    def live(self) -> int:
        """Requests in the engine, by its own account."""
        return int(self._engine.get("/simulator/stats").json()["live"])

    def metric(self, name: str) -> int:
        """A figure of the gateway's; `name` as it stands on the page."""
        return int(self.stack.metrics()[name])

    def descriptors(self) -> int:
        """File descriptors of the gateway, but for connections that it keeps for the next request."""
        metrics = self.stack.metrics()
        return int(metrics["process_open_fds"] - metrics["hostler_idle_connections"])

    async def serve(self) -> list[int]:
        """A hundred requests, ten at a time; their statuses."""
        statuses = []

        async def client() -> None:
            async with calling(self.stack.port) as caller:
                for _ in range(SERVED // SERVED_AT_ONCE):
                    caller.post(CHAT, chat("busy"))
                    statuses.append((await caller.answer()).status)

        await asyncio.gather(*(client() for _ in range(SERVED_AT_ONCE)))
        return statuses

    async def settle(self) -> None:
        """Wait until nobody waits and nothing runs, in the gateway and in the engine."""

        def settled() -> bool:
            metrics = self.stack.metrics()
            counts = [metrics[f'hostler_{what}{{endpoint="{name}"}}'] for what, name in COUNTED]
            return not any(counts) and not self.live()

        await wait_until_async(settled, "all is at rest", seconds=SECONDS, interval=0.02)

    def close(self) -> None:
        """Let go of the engine."""
        self._engine.close()


COUNTED = [(what, name) for what in ("in_flight", "waiting") for name in ("busy", "never")]


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with running_stack() as stack:
        made = House(stack)
        yield made
        made.close()


async def leave_while_waiting(house: House, callers: list[Caller]) -> None:
    for number, caller in enumerate(callers):
        caller.post(CHAT, chat("never", stream=number % 2 == 0))
    waiting = 'hostler_waiting{endpoint="never"}'
    await wait_until_async(lambda: house.metric(waiting) == AT_ONCE, "all wait", seconds=SECONDS, interval=0.02)


async def leave_before_the_first_byte(house: House, callers: list[Caller], *, stream: bool) -> None:
    for caller in callers:
        caller.post(CHAT, chat("busy", stream=stream))
    await wait_until_async(lambda: house.live() == AT_ONCE, "all are being served", seconds=SECONDS, interval=0.02)


async def leave_in_the_middle(house: House, callers: list[Caller]) -> None:
    for caller in callers:
        caller.post(CHAT, chat("busy", stream=True))
    await asyncio.gather(*(caller.read_until(b'"content":"') for caller in callers))
    assert house.live() == AT_ONCE


async def test_after_ten_thousand_cancelled_requests_a_hundred_of_a_hundred_are_served_and_nothing_is_left(
    house: House, record_property: Tell
) -> None:
    stack = house.stack
    stack.behave("busy", BRIEF)
    await house.serve()
    await house.settle()
    before = house.descriptors(), house.metric("hostler_tasks")
    cancelled = 0
    for simulation, phase in (
        (BRIEF, leave_while_waiting),
        (SILENT, lambda house, callers: leave_before_the_first_byte(house, callers, stream=True)),
        (SILENT, lambda house, callers: leave_before_the_first_byte(house, callers, stream=False)),
        (ENDLESS, leave_in_the_middle),
    ):
        stack.behave("busy", simulation)
        for _ in range(ROUNDS):
            async with crowd(stack.port, AT_ONCE) as callers:
                await phase(house, callers)
            await house.settle()
            cancelled += AT_ONCE
    assert cancelled == CANCELLED
    gone = [
        value for name, value in stack.metrics().items() if name.startswith("hostler_requests_total") and "499" in name
    ]
    assert sum(gone) == CANCELLED
    stack.behave("busy", BRIEF)
    assert await house.serve() == [200] * SERVED
    await house.settle()
    assert all(worker["in_flight"] == 0 for name in ("busy", "never") for worker in stack.status(name)["workers"])
    assert house.descriptors() <= before[0] + MANAGER_CONNECTIONS
    assert house.metric("hostler_tasks") == before[1]
    record_property("cancelled", f"{cancelled:,}")
    record_property("served afterwards", f"{SERVED} of {SERVED}")
    record_property("more descriptors", max(0, house.descriptors() - before[0]))
