"""What users are told of an endpoint whose workers are not all what it asks for: a real database and registry."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.catalogue import Catalogue, EndpointStatuses
from gateway.database.connection import Database
from gateway.endpoints.models import ModelsFolder
from gateway.endpoints.registry import Registry
from gateway.endpoints.status import EndpointStatus, Statuses
from gateway.endpoints.store import EndpointStore
from gateway.endpoints.types import EndpointSpec
from gateway.learned import Learned
from gateway.manager import ManagerClient
from gateway.scheduling.demand import Demand
from gateway.scheduling.loop import Limits, Scheduler
from gateway.scheduling.sleep_failures import SleepFailures
from gateway.sizes import Sizes
from gateway.trials import Trials
from worker_manager.contract import (
    Failure,
    FailureKind,
    HostFacts,
    MeasuredMemory,
    ObservedSet,
    ObservedWorker,
    Residency,
    WorkerState,
)

HOST = HostFacts(launcher="process", device="cpu", memory_total_mib=64_000)
FAILURE = Failure(kind=FailureKind.KILLED, message="it was killed", hint="see who did")


class Scene:
    """The endpoint `a`, whose context was 4,096 tokens when it last worked and is to be 8,192."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.registry = Registry(EndpointStore(database), ModelsFolder(folder), 512)
        self.catalogue = Catalogue(self.registry, Sizes(512, Learned(database)))
        self.demand = Demand(folder, 10)
        self.demand.set_endpoints({"a": 32})

        async def answers(_socket: Path, _name: str) -> str:
            return ""

        self.manager = ManagerClient(folder / "nobody.sock")
        trials = Trials(self.registry, self.catalogue, folder, answers)
        failures = SleepFailures(database)
        self.scheduler = Scheduler(
            self.manager, self.demand, self.catalogue, failures, trials, Limits(gpu_margin_mib=512)
        )
        self.statuses = EndpointStatuses(self.catalogue, self.scheduler, self.demand)

    async def begin(self) -> None:
        await self.registry.load()
        spec = msgspec.convert({"name": "a", "model": "local/tiny", "max_model_len": 4096}, EndpointSpec)
        added = await self.registry.add(await self.registry.checked(spec, HOST))
        await self.catalogue.look()
        assert await self.registry.prove(added.spec, "local/tiny")
        self.old = self.template()
        await self.registry.replace(await self.registry.merged("a", {"max_model_len": 8192}, HOST))
        self.catalogue.forget()

    def template(self) -> Any:
        (one,) = self.catalogue.wanted(HOST)
        return one.template

    def see(self, *workers: tuple[str, Any, WorkerState], **shown: Any) -> None:
        """The manager shows these workers: id, template and state of each."""
        fields: dict[str, Any] = {"residency": Residency.HOT, "since": 5.0, "socket": "x/engine.sock", **shown}
        seen = tuple(
            ObservedWorker(spec=msgspec.structs.replace(made, id=one), spec_hash="x", state=state, **fields)
            for one, made, state in workers
        )
        self.scheduler.observed = ObservedSet(manager="m", version=1, generation=1, workers=seen, host=HOST)
        self.demand.set_workers(seen)

    @property
    def status(self) -> EndpointStatus:
        return self.statuses(self.registry.get("a"))

    def listed_length(self) -> int | None:
        return Statuses(self.statuses).models(self.registry.get("a"))[0].hostler.max_model_len


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    folder = tmp_path / "models" / "local" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    database = await Database.open(tmp_path / "data")
    made = Scene(database, tmp_path / "models")
    await made.begin()
    yield made
    await made.manager.close()
    await database.close()


async def test_while_a_change_is_rolled_back_the_list_of_models_shows_the_context_that_is_served(scene: Scene) -> None:
    scene.see()
    assert scene.listed_length() == 8192, "on trial: the next worker gets it"
    await scene.registry.roll_back(scene.registry.get("a").spec, FAILURE, same_files=True)
    scene.catalogue.forget()
    assert scene.listed_length() == 4096
    scene.see(("a-1", scene.old, WorkerState.READY))
    assert scene.listed_length() == 4096
    assert scene.status.workers[0].outdated is False


async def test_the_context_that_an_engine_says_it_took_counts_most(scene: Scene) -> None:
    measured = MeasuredMemory(engine="vllm", max_model_len=3000)
    scene.see(("a-1", scene.old, WorkerState.READY), measured=measured)
    assert scene.listed_length() == 3000


async def test_while_old_workers_serve_beside_those_of_a_change_that_works_the_endpoint_says_so(scene: Scene) -> None:
    assert await scene.registry.prove(scene.registry.get("a").spec, "local/tiny")
    scene.catalogue.forget()
    new = scene.template()
    scene.see(("a-1", scene.old, WorkerState.READY), ("a-2", new, WorkerState.READY))
    status = scene.status
    assert [worker.outdated for worker in status.workers] == [True, False]
    assert status.change is not None
    assert (status.change.state, status.change.reason) == (
        "rolling",
        "a-1 serves as before the change until a successor does",
    )
    assert status.max_model_len == 4096, "whatever worker gets a request can take so much"
    scene.see(("a-1", scene.old, WorkerState.READY), ("a-2", new, WorkerState.READY), ("a-3", new, WorkerState.FAILED))
    assert scene.status.change is not None
    scene.see(("a-2", new, WorkerState.READY))
    assert scene.status.change is None


async def test_a_successor_that_fails_is_named_with_what_ails_it(scene: Scene) -> None:
    assert await scene.registry.prove(scene.registry.get("a").spec, "local/tiny")
    scene.catalogue.forget()
    scene.see(("a-1", scene.old, WorkerState.READY), ("a-3", scene.template(), WorkerState.FAILED), failure=FAILURE)
    change = scene.status.change
    assert change is not None
    assert change.failure == FAILURE
    assert "It was killed. See who did." in change.reason
    assert scene.status.reason == change.reason
