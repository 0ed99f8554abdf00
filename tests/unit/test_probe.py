"""A worker that took no connection, and the probes that bring it back: real sockets, a real rotation."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from gateway.proxy import probe
from gateway.proxy.probe import Prober
from gateway.scheduling.demand import Demand
from tests.support.planning import template
from tests.support.processes import short_folder
from tests.support.raw_server import answering, raw_server
from tests.support.waiting import wait_until_async
from worker_manager.contract import ObservedWorker, Residency, WorkerState

HEALTHY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
ILL = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"


class Scene:
    """One worker, out of rotation, and its prober."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "w1" / "engine.sock"
        self.socket.parent.mkdir()
        self.demand = Demand(folder, 10)
        self.demand.set_endpoints({"a": 1})
        self.observe()
        self.prober = Prober(self.demand)
        self.demand.unreachable = self.prober.watch

    def observe(self, since: float = 1.0) -> None:
        spec = msgspec.structs.replace(template("a"), id="w1")
        worker = ObservedWorker(
            spec=spec,
            spec_hash="x",
            state=WorkerState.READY,
            residency=Residency.HOT,
            since=since,
            socket="w1/engine.sock",
        )
        self.demand.set_workers([worker])

    def probes(self) -> int:
        return len(self.prober._tasks)


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(probe, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(probe, "LONGEST_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(probe, "PROBE_SECONDS", 0.2)
    with short_folder() as folder:
        made = Scene(folder)
        yield made
        await made.prober.close()
        assert made.probes() == 0


async def test_a_worker_that_answers_again_is_back_and_serves_who_waited(scene: Scene) -> None:
    scene.demand.mark_unreachable("w1")
    waiting = asyncio.create_task(scene.demand.acquire("a", 10))
    async with raw_server(answering(HEALTHY), scene.socket):
        lease = await waiting
    assert lease.slot.id == "w1"
    await wait_until_async(lambda: scene.probes() == 0)


@pytest.mark.parametrize("answer", [ILL, b"nonsense\r\n\r\n", b""], ids=["ill", "nonsense", "silent"])
async def test_a_worker_that_is_not_well_stays_out_and_is_asked_again(scene: Scene, answer: bytes) -> None:
    asked = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await answering(answer)(reader, writer)

    async with raw_server(script, scene.socket):
        scene.demand.mark_unreachable("w1")
        await wait_until_async(lambda: asked >= 3)
        assert scene.demand.try_acquire("a") is None


async def test_a_worker_that_fails_twice_is_probed_once(scene: Scene) -> None:
    scene.demand.mark_unreachable("w1")
    scene.prober.watch(scene.demand.slots["w1"])
    assert scene.probes() == 1


@pytest.mark.parametrize("gone", [True, False], ids=["gone", "started anew"])
async def test_probes_end_with_the_worker_and_with_its_restart(scene: Scene, *, gone: bool) -> None:
    scene.demand.mark_unreachable("w1")
    if gone:
        scene.demand.set_workers([])
    else:
        scene.observe(since=2.0)
    await wait_until_async(lambda: scene.probes() == 0)
    with contextlib.suppress(KeyError):
        assert scene.demand.slots["w1"].reachable
