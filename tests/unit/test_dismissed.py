"""What the loop does with a plan before the manager shows that it has heard: who is on the way out gets no request."""

import asyncio
from pathlib import Path
from typing import Any, cast

import msgspec

from gateway.scheduling.demand import Demand
from gateway.scheduling.loop import Limits, Scheduler
from gateway.scheduling.types import WantedEndpoint
from tests.support.planning import LONG_AGO, NOW, endpoint, template
from worker_manager.contract import (
    Accepted,
    DesiredSet,
    Gpu,
    HostFacts,
    ObservedSet,
    ObservedWorker,
    Residency,
    WorkerState,
)

CARD = Gpu(index=0, uuid="g0", name="card", memory_total_mib=24_576, memory_used_mib=0)
HOST = HostFacts(launcher="process", device="cuda", gpus=(CARD,), memory_total_mib=64_000, memory_available_mib=64_000)
A1 = msgspec.structs.replace(template("a", 20_000), id="a-1", gpus=("g0",))


class Manager:
    """Takes every set and shows nothing of it."""

    def __init__(self) -> None:
        self.taken: list[DesiredSet] = []

    async def set_desired(self, desired: DesiredSet) -> Accepted:
        self.taken.append(desired)
        return Accepted(manager="m", generation=desired.generation)


class Endpoints:
    """Two that do not fit beside each other."""

    async def look(self) -> None:
        return

    def wanted(self, _host: HostFacts) -> tuple[WantedEndpoint, ...]:
        sleep = (Residency.ASLEEP_1,)
        return tuple(endpoint(name, promise=20_000, idle_seconds=1e9, sleep=sleep) for name in ("a", "b"))

    def host_promises(self, _host: HostFacts) -> dict[str, int]:
        return {}


class Nothing:
    """No sleep that failed, and no change on trial."""

    def reason(self, *_which: object) -> str:
        return ""

    def look(self, *_what: object) -> frozenset[str]:
        return frozenset()


class Scene:
    """A scheduler, what it told the manager, and the demand behind it."""

    def __init__(self) -> None:
        self.manager, nothing = Manager(), cast("Any", Nothing())
        self.demand = Demand(Path("/nowhere"), 10, lambda: NOW)
        self.demand.set_endpoints({"a": 8, "b": 8})
        limits = Limits(gpu_margin_mib=512)
        manager = cast("Any", self.manager)
        self.scheduler = Scheduler(manager, self.demand, Endpoints(), nothing, nothing, limits, lambda: NOW)

    async def step(self, generation: int, *workers: ObservedWorker) -> tuple[str, ...]:
        """The manager shows these; the ids of the workers that it was last told to have."""
        shown = ObservedSet(manager="m", version=1, generation=generation, workers=workers, host=HOST)
        self.scheduler._take(shown)
        await self.scheduler._step()
        await asyncio.sleep(0)  # whoever was granted a worker is told
        return tuple(spec.id for spec in self.manager.taken[-1].workers)


def seen(state: WorkerState = WorkerState.READY, **fields: Any) -> ObservedWorker:
    return ObservedWorker(
        spec=A1, spec_hash="x", state=state, residency=Residency.HOT, since=LONG_AGO, socket="s", **fields
    )


async def test_a_worker_that_is_left_out_gets_no_request_and_is_not_taken_back() -> None:
    scene = Scene()
    assert await scene.step(0, seen()) == ("a-1",)
    other = asyncio.create_task(scene.demand.acquire("b", 60))
    await asyncio.sleep(0)
    assert await scene.step(1, seen()) == ()
    assert scene.demand.try_acquire("a") is None
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)
    late = asyncio.create_task(scene.demand.acquire("a", 60))
    await asyncio.sleep(0)
    assert "a-1" not in await scene.step(1, seen())
    assert not late.done()
    assert len(await scene.step(3)) == 1, "once it is gone another one starts"
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)


async def test_a_worker_that_was_told_to_sleep_gets_no_request_until_the_manager_has_heard_otherwise() -> None:
    scene = Scene()
    ready = seen(can_sleep=True)
    await scene.step(0, ready)
    scene.demand.slots["a-1"].last_used = LONG_AGO
    await scene.step(1, ready)
    assert scene.manager.taken[-1].residencies == {"a-1": Residency.ASLEEP_1}
    late = asyncio.create_task(scene.demand.acquire("a", 60))
    await asyncio.sleep(0)
    assert await scene.step(2, ready) == ("a-1",)
    assert scene.manager.taken[-1].residencies == {}
    assert not late.done(), "it may be falling asleep, though it is shown as ready"
    await scene.step(2, ready)
    assert not late.done()
    await scene.step(3, ready)
    assert late.done()
    scene.demand.release(late.result())
