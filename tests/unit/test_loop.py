"""The scheduler's watch on a manager that is a script: bugs in one look, and a manager that comes and goes."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import msgspec
import pytest

from gateway.database.connection import Database
from gateway.manager import ManagerClient
from gateway.scheduling import loop
from gateway.scheduling.demand import Demand
from gateway.scheduling.loop import Limits, Scheduler
from gateway.scheduling.sleep_failures import SleepFailures
from gateway.scheduling.types import Plan, Situation, WantedEndpoint
from tests.support.raw_server import raw_server, read_request
from tests.support.waiting import wait_until_async
from worker_manager.contract import Accepted, HostFacts, ObservedSet

HOST = HostFacts(launcher="process", device="cpu", memory_total_mib=64_000)


class NoEndpoints:
    """The catalogue of a Hostler without endpoints."""

    async def look(self) -> None:
        """There is nothing to look at."""

    def wanted(self, _host: HostFacts) -> tuple[WantedEndpoint, ...]:
        return ()

    def host_promises(self, _host: HostFacts) -> dict[str, int]:
        return {}


class NoTrials:
    """Nothing is on trial."""

    def look(self, _observed: ObservedSet, _wanted: Iterable[WantedEndpoint]) -> frozenset[str]:
        return frozenset()


class Manager:
    """What the script on the socket answers: one version more each time it is asked, or nothing at all."""

    def __init__(self) -> None:
        self.version = 0
        self.silent = False

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            asked = await read_request(reader)
            if self.silent:
                return
            self.version += 1
            shown = ObservedSet(manager="m", version=self.version, generation=0, host=HOST)
            answer = msgspec.json.encode(Accepted(manager="m", generation=1) if asked.startswith(b"PUT") else shown)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer))
            await asyncio.sleep(0.01)  # a look takes its time


@pytest.fixture
async def manager() -> AsyncIterator[tuple[Manager, Path]]:
    script = Manager()
    async with raw_server(script) as socket:
        yield script, socket


@pytest.fixture
async def scheduler(
    manager: tuple[Manager, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Scheduler]:
    monkeypatch.setattr(loop, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(loop, "RETRY_SECONDS", 0.01)
    database = await Database.open(tmp_path)
    client, failures = ManagerClient(manager[1]), SleepFailures(database)
    limits = Limits(gpu_margin_mib=0)
    made = Scheduler(client, Demand(tmp_path, 10), NoEndpoints(), failures, NoTrials(), limits)
    yield made
    await made.stop()
    await client.close()
    await database.close()


async def test_a_bug_in_one_look_ends_neither_the_watch_nor_the_plans(scheduler: Scheduler) -> None:
    looks: list[int] = []

    def noticed(observed: ObservedSet) -> None:
        looks.append(observed.version)
        if len(looks) == 1:
            raise ZeroDivisionError

    scheduler.noticed = noticed
    scheduler.start()
    await wait_until_async(lambda: len(looks) > 3, "the watch goes on")
    assert scheduler.connected


async def test_that_the_manager_is_away_is_planned_with_at_once(
    scheduler: Scheduler, manager: tuple[Manager, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def planned(_situation: Situation, _plan: Plan) -> None:
        if scheduler.connected not in seen[-1:]:
            seen.append(scheduler.connected)

    scheduler.planned = planned
    scheduler.start()
    await wait_until_async(lambda: seen == [True], "it is planned")
    monkeypatch.setattr(loop, "TICK_SECONDS", 60)  # nothing but the loss itself wakes the planner from here on
    manager[0].silent = True
    await wait_until_async(lambda: seen[1:2] == [False], "the loss is seen")
    manager[0].silent = False
    await wait_until_async(lambda: seen[2:3] == [True], "its return is seen")
