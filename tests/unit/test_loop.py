"""The scheduler's watch on a manager that is a script: bugs in one look, and a manager that comes and goes."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import msgspec
import pytest

from gateway.database.connection import Database
from gateway.errors import ManagerUnavailable
from gateway.manager import ManagerClient
from gateway.scheduling import loop
from gateway.scheduling.demand import Demand
from gateway.scheduling.loop import Limits, Scheduler
from gateway.scheduling.sleep_failures import SleepFailures
from gateway.scheduling.types import Plan, Situation, WantedEndpoint
from tests.support.planning import template
from tests.support.raw_server import raw_server, read_request
from tests.support.waiting import wait_until_async
from worker_manager.contract import Accepted, HostFacts, ObservedSet, ObservedWorker, Residency, WorkerState

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
        self.name = "m"
        self.workers: tuple[ObservedWorker, ...] = ()
        self.knows = True
        """Whether it could list already what there is."""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            asked = await read_request(reader)
            if self.silent:
                return
            self.version += 1
            shown = ObservedSet(manager=self.name, version=self.version, generation=0, workers=self.workers, host=HOST)
            is_order = asked.startswith(b"PUT")
            answer = msgspec.json.encode(Accepted(manager=self.name, generation=1) if is_order else shown)
            status = b"200 OK" if self.knows or is_order else b"503 Service Unavailable"
            if status != b"200 OK":
                answer = b'{"error": {"kind": "not_listed", "message": "what runs here is not known yet"}}'
            writer.write(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(answer), answer))
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


async def test_until_the_manager_knows_its_machine_who_asks_is_told_why(
    scheduler: Scheduler, manager: tuple[Manager, Path]
) -> None:
    def said() -> str:
        with pytest.raises(ManagerUnavailable) as problem:
            scheduler.host()
        return problem.value.message

    assert "has not answered since the gateway's start: is it running?" in said()
    manager[0].knows = False
    scheduler.start()
    told = "Nothing is known of this machine yet. What runs here is not known yet."
    await wait_until_async(lambda: said() == told, "it says so")


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


async def test_a_manager_that_restarts_takes_no_worker_out_of_service_before_it_has_asked_it(
    scheduler: Scheduler, manager: tuple[Manager, Path]
) -> None:
    script = manager[0]
    served = ObservedWorker(
        spec=msgspec.structs.replace(template("a"), id="a-1"),
        spec_hash="x",
        state=WorkerState.READY,
        residency=Residency.HOT,
        since=10.0,
        socket="a-1/engine.sock",
        made_at=1.0,
    )
    looks: list[tuple[str, WorkerState]] = []
    scheduler.noticed = lambda observed: looks.extend((observed.manager, one.state) for one in observed.workers)
    script.workers = (served,)
    scheduler.start()
    await wait_until_async(lambda: bool(looks), "it serves")
    script.knows = False
    await wait_until_async(lambda: not scheduler.connected, "the next manager knows nothing yet")
    assert scheduler.observed is not None
    assert scheduler.observed.workers == (served,)
    script.name = "next"
    script.workers = (msgspec.structs.replace(served, state=WorkerState.LOADING, since=100.0, is_unasked=True),)
    script.knows = True
    await wait_until_async(lambda: looks[-1][0] == "next", "it is heard")
    assert set(looks) == {("m", WorkerState.READY), ("next", WorkerState.READY)}
