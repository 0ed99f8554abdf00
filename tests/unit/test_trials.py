"""Changes on trial: a real database, registry and catalogue; what the manager sees and how canaries go is said here."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway import trials as module
from gateway.catalogue import Catalogue
from gateway.database.connection import Database
from gateway.endpoints.models import ModelsFolder
from gateway.endpoints.registry import Registry
from gateway.endpoints.store import EndpointStore
from gateway.endpoints.types import Endpoint, EndpointSpec
from gateway.learned import Learned
from gateway.scheduling.types import WantedEndpoint
from gateway.sizes import Sizes
from gateway.trials import Trials
from tests.support.waiting import wait_until_async
from worker_manager.contract import (
    Failure,
    FailureKind,
    HostFacts,
    ObservedSet,
    ObservedWorker,
    Residency,
    WorkerSpec,
    WorkerState,
)

HOST = HostFacts(launcher="process", device="cpu", memory_total_mib=64_000)
FAILURE = Failure(kind=FailureKind.BAD_FLAG, message="no such flag", hint="take it away")
CHANGE = {"engine_args": {"max-num-seqs": 5}}


class Scene:
    """One endpoint `a` on a machine without GPUs."""

    def __init__(self, database: Database, models: Path) -> None:
        self.now = 1_000.0
        self.problem = ""
        self.asked: list[str] = []
        self.registry = Registry(EndpointStore(database), ModelsFolder(models), 512, lambda: self.now)
        self.catalogue = Catalogue(self.registry, Sizes(512, Learned(database)))
        self.trials = Trials(self.registry, self.catalogue, Path("/engines"), self._canary)
        self.workers: list[ObservedWorker] = []

    async def _canary(self, socket: Path, name: str) -> str:
        self.asked.append(f"{socket.parent.name} {name}")
        return self.problem

    async def begin(self) -> None:
        """The endpoint is registered, and a worker of it was found ready."""
        await self.registry.load()
        spec = msgspec.convert({"name": "a", "model": "local/tiny"}, EndpointSpec)
        await self.registry.add(await self.registry.checked(spec, HOST))
        await self.catalogue.look()
        self.see("old", WorkerState.READY)
        assert self.look() == frozenset()
        await wait_until_async(lambda: self.endpoint.good is not None)

    async def change(self, **fields: Any) -> None:
        self.now += 10
        await self.registry.replace(await self.registry.merged("a", fields, HOST), again=True)
        self.catalogue.forget()
        await self.catalogue.look()
        self.now += 10

    @property
    def endpoint(self) -> Endpoint:
        return self.registry.get("a")

    @property
    def wanted(self) -> WantedEndpoint:
        (one,) = self.catalogue.wanted(HOST)
        return one

    @property
    def template(self) -> WorkerSpec:
        assert self.wanted.template is not None
        return self.wanted.template

    def see(self, worker: str, state: WorkerState, template: WorkerSpec | None = None, **fields: Any) -> None:
        """The manager shows this worker now; made from the template that holds, if no other is said."""
        spec = msgspec.structs.replace(template or self.template, id=worker)
        self.workers = [one for one in self.workers if one.spec.id != worker]
        shown = {"residency": Residency.HOT, "since": self.now, "socket": f"{worker}/engine.sock", **fields}
        self.workers.append(ObservedWorker(spec=spec, spec_hash="x", state=state, **shown))

    def look(self) -> frozenset[str]:
        observed = ObservedSet(manager="m", version=1, generation=1, workers=tuple(self.workers), host=HOST)
        return self.trials.look(observed, self.catalogue.wanted(HOST))

    async def until_rolled_back(self) -> None:
        def is_rolled_back() -> bool:
            self.look()
            return self.endpoint.rolled_back is not None

        await wait_until_async(is_rolled_back)


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.001)
    folder = tmp_path / "models" / "local" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    database = await Database.open(tmp_path / "data")
    made = Scene(database, tmp_path / "models")
    await made.begin()
    yield made
    await made.trials.close()
    await database.close()


async def test_what_is_ready_first_is_what_a_change_falls_back_to_and_is_asked_nothing(scene: Scene) -> None:
    assert scene.endpoint.good == scene.endpoint.spec
    assert not scene.asked


async def test_the_first_worker_of_a_change_is_held_back_until_it_has_answered(scene: Scene) -> None:
    await scene.change(**CHANGE)
    assert scene.wanted.on_trial
    scene.see("new", WorkerState.LOADING)
    assert scene.look() == {"new"}
    assert not scene.asked
    scene.see("new", WorkerState.READY)
    assert scene.look() == {"new"}
    await wait_until_async(lambda: scene.endpoint.good == scene.endpoint.spec)
    assert scene.asked == ["new a"]
    assert scene.look() == frozenset()
    assert not scene.wanted.on_trial


async def test_a_failure_of_the_new_worker_rolls_the_change_back_and_its_workers_stay_held(scene: Scene) -> None:
    before = scene.template
    await scene.change(**CHANGE)
    scene.see("new", WorkerState.FAILED, failure=FAILURE)
    await scene.until_rolled_back()
    assert scene.endpoint.rolled_back is not None
    assert scene.endpoint.rolled_back.failure == FAILURE
    assert scene.endpoint.rolled_back.changed == {"engine_args": {"from": {}, "to": CHANGE["engine_args"]}}
    assert scene.template == before
    scene.see("new", WorkerState.READY, scene.wanted.rejected)
    assert scene.look() == {"new"}


async def test_one_death_is_forgiven_and_two_are_not(scene: Scene) -> None:
    await scene.change(**CHANGE)
    scene.see("new", WorkerState.BACKOFF, failure=FAILURE, restarts=1)
    scene.look()
    await asyncio.sleep(0)
    assert scene.endpoint.rolled_back is None
    scene.see("new", WorkerState.BACKOFF, failure=FAILURE, restarts=2)
    await scene.until_rolled_back()


async def test_a_worker_that_is_ready_and_does_not_answer_twice_is_a_failure(scene: Scene) -> None:
    scene.problem = "no answer within 60 s"
    await scene.change(**CHANGE)
    scene.see("new", WorkerState.READY)
    await scene.until_rolled_back()
    assert len(scene.asked) == 2
    assert scene.endpoint.rolled_back is not None
    assert "no answer within 60 s" in scene.endpoint.rolled_back.failure.message


async def test_what_failed_before_the_change_was_made_again_does_not_count(scene: Scene) -> None:
    await scene.change(**CHANGE)
    scene.see("new", WorkerState.FAILED, failure=FAILURE)
    await scene.until_rolled_back()
    await scene.change(**CHANGE)
    scene.look()
    await asyncio.sleep(0)
    assert scene.endpoint.rolled_back is None
    assert scene.wanted.on_trial


async def test_a_worker_that_serves_already_and_is_what_the_change_asks_for_goes_on_serving(scene: Scene) -> None:
    scene.see("fits", WorkerState.READY, msgspec.structs.replace(scene.template, args=CHANGE["engine_args"]))
    await scene.change(**CHANGE)
    assert scene.wanted.on_trial
    assert scene.look() == frozenset()
    await wait_until_async(lambda: scene.endpoint.good == scene.endpoint.spec)
    assert not scene.asked


async def test_a_change_to_a_model_that_is_not_here_leaves_the_last_good_one_served(scene: Scene) -> None:
    before = scene.template
    await scene.change(model="org/name")
    assert scene.template == before
    assert "not downloaded" in scene.wanted.pending
    assert scene.look() == frozenset()
    told = scene.catalogue.change(scene.endpoint, HOST)
    assert told is not None
    assert (told.state, told.changed) == ("pending", {"model": {"from": "local/tiny", "to": "org/name"}})


async def test_a_change_of_a_change_is_tried_in_its_place(scene: Scene) -> None:
    await scene.change(**CHANGE)
    scene.see("new", WorkerState.LOADING)
    scene.look()
    await scene.change(engine_args={"max-num-seqs": 6})
    assert scene.look() == frozenset(), "the first one is nobody's any more"
    scene.see("newer", WorkerState.READY)
    scene.look()
    await wait_until_async(lambda: scene.endpoint.good == scene.endpoint.spec)
