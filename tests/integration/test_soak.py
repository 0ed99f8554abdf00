"""A day of traffic in a minute: whatever clients, workers and administrators do, the gateway's figures stay flat.

A cycle is a fixed mix of requests, cancellations, bad input, keys that come and go, and one each of: an endpoint that
comes and goes, a worker that is replaced, a worker that is killed. At the end of each cycle everything rests, and
descriptors, tasks and memory are read. HOSTLER_SOAK_CYCLES makes it last longer, and HOSTLER_SOAK_RATE makes requests
come at so many a second instead of as fast as they are answered: at 20 a second 175 cycles take two hours.
"""

import asyncio
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from statistics import linear_regression
from typing import NamedTuple

import pytest

from tests.engine_simulator.configuration import Faults, Simulation
from tests.support.battery import Tell, size
from tests.support.crowd import SECONDS, Caller, calling, contents
from tests.support.memory import resident_mib
from tests.support.stack import Stack, chat, running_stack
from tests.support.waiting import wait_until_async

CHAT = "/v1/chat/completions"
WARM_UP = size(4, 20)
"""A long run fills what is kept in bounds first: the ring of events, the pages of the database."""
CYCLES = max(WARM_UP + 4, int(os.environ.get("HOSTLER_SOAK_CYCLES", size(12, 120))))
CLIENTS = 16
REQUESTS = 75
"""Of each client in a cycle, but for those that it leaves out by going away."""
RATE = float(os.environ.get("HOSTLER_SOAK_RATE", "inf"))
"""Requests a second at most."""
SECONDS_A_CYCLE = 30 + CLIENTS * REQUESTS / RATE
GROWTH_MIB = 3.0
"""Between the first cycle after the warm-up and the last; a leak of 1 KiB a request would be over it."""
PROMPTS = [f"{word} {'x' * 20 * length}" for word in ("one", "two", "three") for length in range(10)]
MANAGER_CONNECTIONS = 1
"""The client of the manager keeps one connection or two."""
TOKENS = 8
BROKEN = ("whole 502", "whole 503", "stream broken")
"""What requests may come to when their worker is killed under them."""
LOGGER = logging.getLogger(__name__)
STEADY = Simulation(answer_tokens=TOKENS, tokens_per_second=1000)
FLAKY = Simulation(answer_tokens=TOKENS, faults=Faults(cut_stream_after=3))


class Figures(NamedTuple):
    """What a gateway at rest holds."""

    descriptors: int
    """But for connections to engines that are kept for the next request, and that of whoever asks."""
    tasks: int
    resident_mib: float


def kills(cycle: int) -> bool:
    """Whether a worker is killed in this cycle."""
    return cycle % 2 == 1


class Pace:
    """One request after the other, so many a second."""

    def __init__(self, rate: float) -> None:
        self._interval = 1 / rate
        self._next = time.monotonic()

    async def turn(self) -> None:
        """Return when it is the caller's turn; whoever came late makes up for nothing."""
        now = time.monotonic()
        begin = max(now, self._next)
        self._next = begin + self._interval
        if begin > now:
            await asyncio.sleep(begin - now)


class House:
    """The stack, its endpoints, and what has been answered."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.pace = Pace(RATE)
        self.outcomes: Counter[str] = Counter()
        self.unexplained = 0
        """Requests that broke while no worker was killed."""
        self.args: dict[str, int] = {}
        """The flags that the steady endpoint was last given."""
        stack.endpoint("steady", STEADY, per_worker=64, min_workers=1)
        stack.endpoint("flaky", FLAKY, per_worker=64, min_workers=1)
        for name in ("steady", "flaky"):
            stack.ask(name).raise_for_status()

    # what a client does

    async def visit(self, seed: int) -> None:
        """One client's requests of a cycle, each of a kind that chance chooses."""
        chance = random.Random(seed)  # noqa: S311 - the same mix in every run
        kinds = [self._whole, self._stream, self._leave_early, self._leave_in_the_middle, self._broken, self._bad]
        for _ in range(REQUESTS // 5):
            async with calling(self.stack.port) as caller:
                for _ in range(5):
                    await self.pace.turn()
                    [kind] = chance.choices(kinds, [8, 6, 2, 2, 1, 2])
                    if not await kind(caller, chance):
                        break

    async def _whole(self, caller: Caller, chance: random.Random) -> bool:
        caller.post(CHAT, chat("steady", chance.choice(PROMPTS)))
        self.outcomes[f"whole {(await caller.answer()).status}"] += 1
        return True

    async def _stream(self, caller: Caller, chance: random.Random) -> bool:
        caller.post(CHAT, chat("steady", chance.choice(PROMPTS), stream=True))
        answer = await caller.answer()
        whole = answer.status == 200 and b'"error"' not in answer.body
        if whole:
            assert len(contents(answer.body)) == TOKENS
        self.outcomes["stream whole" if whole else "stream broken"] += 1
        return True

    async def _leave_early(self, caller: Caller, chance: random.Random) -> bool:
        caller.post(CHAT, chat("steady", chance.choice(PROMPTS), stream=chance.random() < 0.5))
        await asyncio.sleep(chance.random() * 0.01)
        self.outcomes["left"] += 1
        return False

    async def _leave_in_the_middle(self, caller: Caller, chance: random.Random) -> bool:
        caller.post(CHAT, chat("steady", chance.choice(PROMPTS), stream=True, max_tokens=500, ignore_eos=True))
        await caller.read_some()
        self.outcomes["left"] += 1
        return False

    async def _broken(self, caller: Caller, chance: random.Random) -> bool:
        caller.post(CHAT, chat("flaky", chance.choice(PROMPTS), stream=True))
        answer = await caller.answer()
        assert b'"error"' in answer.body
        self.outcomes["broken as ordered"] += 1
        return True

    async def _bad(self, caller: Caller, chance: random.Random) -> bool:
        status, body, key = chance.choice(
            [
                (400, ["not an object"], None),
                (400, chat("steady", "x" * 100_000), None),
                (404, chat("nobody"), None),
                (401, chat("steady"), "hst_of-nobody-at-all"),
            ]
        )
        caller.post(CHAT, body, **({"key": key} if key else {}))
        assert (await caller.answer()).status in {status, 502, 503}
        self.outcomes["refused"] += 1
        return True

    def broken(self) -> int:
        """Requests that came to what they may come to only where their worker is killed under them."""
        return sum(count for what, count in self.outcomes.items() if what in BROKEN)

    # what administrators and accidents do

    async def disturb(self, cycle: int) -> None:
        """An endpoint and a key that come and go, a replaced worker, a killed worker."""
        [worker] = [each["id"] for each in self.stack.status("steady")["workers"]]
        if kills(cycle):
            self.stack.kill_engine(worker)
        await asyncio.to_thread(self._passing_endpoint)
        for _ in range(10):
            await asyncio.to_thread(self._passing_key)
        self.args = {"max-num-seqs": 100 + cycle % 2}
        self.stack.client.patch("/api/endpoints/steady", json={"engine_args": self.args}).raise_for_status()

    def _passing_endpoint(self) -> None:
        self.stack.endpoint("passing", STEADY)
        self.stack.ask("passing").raise_for_status()
        self.stack.client.delete("/api/endpoints/passing").raise_for_status()

    def _passing_key(self) -> None:
        made = self.stack.client.post("/api/keys", json={"name": "passing"}).json()
        headers = {"authorization": f"Bearer {made['key']}"}
        assert self.stack.client.get("/v1/models", headers=headers).status_code == 200
        self.stack.client.delete(f"/api/keys/{made['id']}").raise_for_status()

    # what is left

    async def rest(self) -> None:
        """Wait until nothing is on its way, and one worker of each endpoint, as last changed, is all there is."""

        def at_rest() -> bool:
            metrics = self.stack.metrics()
            busy = sum(
                value for name, value in metrics.items() if name.startswith(("hostler_in_flight", "hostler_wai"))
            )
            workers = self.stack.workers()
            changed = [worker["spec"]["args"] for worker in workers if worker["spec"]["endpoint"] == "steady"]
            return not busy and changed == [self.args] and [worker["state"] for worker in workers] == ["ready"] * 2

        await wait_until_async(at_rest, "all is at rest", seconds=SECONDS, interval=0.1)

    def figures(self) -> Figures:
        """As they are now."""
        metrics = self.stack.metrics()
        descriptors = metrics["process_open_fds"] - metrics["hostler_idle_connections"]
        assert self.stack.gateway is not None
        return Figures(int(descriptors), int(metrics["hostler_tasks"]), resident_mib(self.stack.gateway.pid))


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    # the crowd sends made-up keys, all from one address, and test_sign_ins shows what that comes to
    with running_stack({"HOSTLER_SIGN_INS_PER_MINUTE": "100000"}) as stack:
        yield House(stack)


async def cycle_of(house: House, number: int) -> Figures:
    """All that happens in one cycle; what the gateway holds after it."""
    visits = [house.visit(number * CLIENTS + each) for each in range(CLIENTS)]
    before = house.broken()
    await asyncio.gather(house.disturb(number), *visits)
    await house.rest()
    if not kills(number):
        house.unexplained += house.broken() - before
    assert [house.stack.ask("steady").status_code for _ in range(10)] == [200] * 10
    figures = house.figures()
    LOGGER.info("cycle %d: %s", number, figures)  # for who watches a run of hours: pytest --log-file
    return figures


def slope(readings: list[Figures], seconds_a_cycle: float) -> float:
    """Growth of the memory over the second half of the readings, in MiB an hour, by least squares."""
    half = readings[len(readings) // 2 :]
    hours = [each * seconds_a_cycle / 3600 for each in range(len(half))]
    return linear_regression(hours, [each.resident_mib for each in half]).slope


@pytest.mark.timeout(SECONDS_A_CYCLE * CYCLES)
async def test_over_a_day_of_traffic_descriptors_tasks_and_memory_stay_flat(
    house: House, record_property: Tell
) -> None:
    begun = time.monotonic()
    warm = [await cycle_of(house, number) for number in range(WARM_UP)]
    descriptors, tasks = (max(each[field] for each in warm) for field in (0, 1))
    readings = [await cycle_of(house, number) for number in range(WARM_UP, CYCLES)]
    seconds = time.monotonic() - begun
    told = "\n".join(map(str, [*warm, *readings, house.outcomes]))
    assert max(each.descriptors for each in readings) <= descriptors + MANAGER_CONNECTIONS, told
    assert max(each.tasks for each in readings) <= tasks, told
    assert readings[-1].resident_mib - readings[0].resident_mib <= GROWTH_MIB, told
    assert house.broken() <= house.outcomes["whole 200"] / 10, told
    assert house.unexplained == 0, told
    record_property("requests", f"{house.outcomes.total():,} in {CYCLES} cycles and {seconds / 60:.0f} min")
    whole = house.outcomes["whole 200"] + house.outcomes["stream whole"]
    record_property("whole", f"{whole:,}, broken by {CYCLES // 2} kills {house.broken()}, otherwise 0")
    memory = f"{readings[0].resident_mib:.1f} MiB after the warm-up and {readings[-1].resident_mib:.1f} MiB at the end"
    record_property("resident memory", f"{memory}; {slope(readings, seconds / CYCLES):.2f} MiB an hour at the end")
    record_property(
        "descriptors and tasks", f"{readings[-1].descriptors} and {readings[-1].tasks}, no more than before"
    )
