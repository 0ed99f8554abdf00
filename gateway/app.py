"""The composition root: the only module that knows every room."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import msgspec
import structlog
from litestar import Litestar
from litestar.datastructures import State
from litestar.di import Provide

from gateway.access.accounts import Accounts
from gateway.access.issuers import people_of
from gateway.access.keyring import ADMIN_ID, Keyring
from gateway.access.routes import KeyRoutes
from gateway.access.sign_ins import sign_ins_of
from gateway.access.store import BudgetStore, KeyStore
from gateway.access.types import AccessEvent
from gateway.audit.refusals import Refusals
from gateway.audit.routes import AuditRoutes
from gateway.audit.starts import started
from gateway.audit.store import AuditStore
from gateway.capture.recorder import Captures
from gateway.capture.routes import CaptureRoutes
from gateway.capture.store import CaptureStore
from gateway.catalogue import Catalogue, EndpointStatuses
from gateway.certificate import Certificate
from gateway.chronicle import Chronicle
from gateway.database.claim import claimed
from gateway.database.connection import Database
from gateway.database.watch import Watch
from gateway.decisions import DecisionLog
from gateway.endpoints.models import ModelsFolder
from gateway.endpoints.registry import Registry
from gateway.endpoints.routes import EndpointRoutes, ModelRoutes
from gateway.endpoints.status import Statuses
from gateway.endpoints.store import EndpointStore
from gateway.endpoints.types import EndpointSpec
from gateway.errors import Conflict
from gateway.events import Events
from gateway.http import HANDLERS, LARGEST_BODY_MIB, name_all_methods
from gateway.learned import Learned
from gateway.load_times import LoadTimes
from gateway.logs import RequestLog
from gateway.machine.backups import BackupRoutes, Backups
from gateway.machine.event_routes import EventRoutes
from gateway.machine.health import HealthRoutes, Readiness
from gateway.machine.routes import MachineRoutes
from gateway.manager import ManagerClient, ManagerRefused
from gateway.metrics import Metrics
from gateway.openapi.routes import DocumentRoutes
from gateway.proxy import canary
from gateway.proxy.endings import Endings
from gateway.proxy.hygiene import Hygiene, limits_of
from gateway.proxy.pool import Pool
from gateway.proxy.probe import Prober
from gateway.proxy.relay import Relay
from gateway.proxy.route import InferenceEntry
from gateway.scheduling.demand import Demand
from gateway.scheduling.loop import Limits, Scheduler
from gateway.scheduling.sleep_failures import SleepFailures
from gateway.scheduling.types import Plan, Situation
from gateway.settings import Settings
from gateway.sizes import Sizes
from gateway.trials import Trials
from gateway.usage.gpu_recorder import GpuRecorder
from gateway.usage.gpu_store import GpuStore
from gateway.usage.recorder import Recorder, prune_daily
from gateway.usage.request_routes import RequestRoutes
from gateway.usage.request_store import RequestStore
from gateway.usage.routes import UsageRoutes
from gateway.usage.store import UsageStore
from worker_manager.contract import DownloadSpec, ObservedSet

log = structlog.get_logger(__name__)

CONTROLLERS = (
    HealthRoutes,
    EndpointRoutes,
    ModelRoutes,
    KeyRoutes,
    MachineRoutes,
    EventRoutes,
    UsageRoutes,
    RequestRoutes,
    AuditRoutes,
    BackupRoutes,
    CaptureRoutes,
    DocumentRoutes,
)
"""Everything but inference; `openapi/` describes it."""
SWEEP_SECONDS = 10.0
MIB = 1024 * 1024


class Gateway:
    """Everything that lives as long as the process, wired together."""

    def __init__(self, settings: Settings, database: Database, certificate: Certificate | None) -> None:
        self.settings = settings
        self.database = database
        self.certificate = certificate
        self.metrics = Metrics()
        if certificate is not None:
            self.metrics.tell_of_certificate(certificate.ends)
        self.audit = AuditStore(database)
        self.refusals = Refusals(self.audit)
        self.keyring = Keyring(KeyStore(database), settings.admin_key)
        self.keyring.noticed = self.notice_access
        self.sign_ins = sign_ins_of(self.audit.add, settings, ADMIN_ID)
        self.accounts = Accounts(self.keyring, BudgetStore(database), settings.data, people_of(settings))
        self.learned = Learned(database)
        self.registry = Registry(
            EndpointStore(database), ModelsFolder(settings.models), settings.gpu_margin_mib, measured=self.learned.find
        )
        self.demand = Demand(settings.engines_folder().absolute(), settings.max_waiting)
        self.catalogue = Catalogue(self.registry, Sizes(settings.gpu_margin_mib, self.learned))
        self.manager = ManagerClient(settings.manager_socket())
        self.sleep_failures = SleepFailures(database)
        self.load_times = LoadTimes(database)
        limits = Limits(gpu_margin_mib=settings.gpu_margin_mib, sleep_memory_mib=settings.sleep_memory_mib)
        self.pool = Pool(settings.connect_seconds)
        engines = settings.engines_folder().absolute()
        self.trials = Trials(self.registry, self.catalogue, engines, functools.partial(canary.ask, self.pool))
        self.scheduler = Scheduler(self.manager, self.demand, self.catalogue, self.sleep_failures, self.trials, limits)
        self.trials.changed = self.scheduler.look_again
        self.prober = Prober(self.demand)
        self.demand.unreachable = self.prober.watch
        self.demand.loaded = self.load_times.note
        self.endpoint_statuses = EndpointStatuses(self.catalogue, self.scheduler, self.demand)
        self.statuses = Statuses(self.endpoint_statuses)
        self.events = Events()
        self.chronicle = Chronicle(self.events, self.states)
        self.decisions = DecisionLog(settings.data)
        self._tell()
        self.usage = UsageStore(database)
        self.recorder = Recorder(self.usage, on_drop=self.metrics.usage_dropped.inc)
        self.gpu_usage = GpuStore(database)
        self.gpu_recorder = GpuRecorder(self.gpu_usage, self.registry.price, settings.kwh_price)
        self.watch = Watch(database, well=self.recorder.try_now)
        self.backups = Backups(database, settings.backups, settings.backups_kept)
        self.captures = Captures(CaptureStore(database), settings)
        self.entry = InferenceEntry(
            self.keyring,
            self.sign_ins,
            self.accounts.gate,
            self.registry.resolve,
            Relay(self.demand, self.pool, settings, self.keyring.opens),
            Endings(self.metrics.requests, RequestLog(settings.log_level, settings.log_format), self.recorder.record),
            captured=self.captures.keys,
            capture=self.captures.take,
            hygiene=Hygiene(limits_of(settings)),
            max_body_bytes=settings.max_body_mib * MIB,
            body_seconds=settings.body_seconds,
            queue_seconds=settings.queue_seconds,
            stream_grace_seconds=settings.stream_grace_seconds,
            heartbeat_seconds=settings.heartbeat_seconds,
        )

    def _tell(self) -> None:
        """Let those hear of things who keep record of them."""
        self.scheduler.noticed = self._noticed
        self.scheduler.planned = self._planned
        self.scheduler.overruled = self.refusals.overruled
        self.registry.noted = self.chronicle.noted
        self.trials.told = self.chronicle.tried

    def _noticed(self, observed: ObservedSet) -> None:
        self.learned.notice(observed, self.catalogue.model_at)
        self.chronicle.seen(observed)
        self.refusals.notice(observed)
        self.gpu_recorder.notice(observed)

    def _planned(self, situation: Situation, plan: Plan) -> None:
        self.chronicle.planned(plan, connected=self.scheduler.connected)
        self.decisions.note(situation, plan)

    def states(self) -> Iterator[tuple[str, str, str]]:
        """Name, state and reason of every endpoint."""
        for endpoint in self.registry.all():
            yield endpoint.spec.name, *self.endpoint_statuses.state(endpoint)

    async def load(self) -> None:
        """Read what the database holds."""
        await self.accounts.load()
        await self.registry.load()
        await self.captures.load()
        await self.learned.load()
        await self.sleep_failures.load()
        self.endpoints_changed()
        await self.accounts.recall()
        for name, seconds in (await self.load_times.load(self.demand.queues)).items():
            self.demand.learn_load(name, seconds)

    def endpoints_changed(self) -> None:
        """Let everybody who depends on the endpoints look again."""
        self.catalogue.forget()
        self.demand.set_endpoints(self.catalogue.ceilings())
        self.accounts.gate.set_endpoints({endpoint.spec.name: endpoint.spec.limits for endpoint in self.registry.all()})
        self.scheduler.look_again()
        self.gpu_recorder.look()

    async def changed(self) -> None:
        """The same, until what is shown of them is what they are now; a disk that hangs is not waited for for long."""
        self.endpoints_changed()
        await self.catalogue.look()

    async def prepare(self, spec: EndpointSpec) -> None:
        """Start the downloads of a model and adapters that are not here.

        Raises Conflict if the manager refuses one; BadRequest; DiskUnavailable.
        """
        files = await self.registry.files(spec)
        if not spec.is_local() and files.model() is None:
            await self._download(spec.name, spec.model, spec.revision, "model")
        for source in spec.adapters.values():
            if not source.is_local() and files.adapter(source) is None:
                await self._download(spec.name, source.model, source.revision, "adapters")

    async def _download(self, endpoint: str, model: str, revision: str | None, param: str) -> None:
        wanted = DownloadSpec(model=model, revision=revision or "main")
        asked = msgspec.to_builtins(wanted) | {"for": endpoint}
        await self.audit.note("download.start", model, after=asked)
        try:
            await self.manager.download(wanted)
        except ManagerRefused as refused:
            await self.audit.note("download.refused", model, after=asked | {"message": refused.sentences()})
            raise Conflict(refused.sentences(), param=param) from refused

    async def touch(self, spec: EndpointSpec, order: str) -> None:
        """Start or stop an endpoint's workers."""
        await self.audit.note(f"endpoint.{order}", spec.name)
        if order == "start":
            self.demand.poke(spec.name, spec.idle_seconds)
        else:
            self.demand.rest(spec.name)

    def renew(self, spec: EndpointSpec) -> None:
        """Have a worker of the changed endpoint awake where one was before, though nobody asks for it now."""
        if self.demand.is_warm(spec.name):
            self.demand.poke(spec.name, spec.idle_seconds)

    def readiness(self) -> Readiness:
        """The state of each part; inference needs nothing but the manager's word of the workers, once."""
        trouble, seen = self.watch.trouble, self.scheduler.observed is not None
        database = trouble.sentence() if trouble else "ok"
        if trouble is None and self.recorder.failing:
            database = f"usage of {self.recorder.unwritten} requests waits to be written"
        if database == "ok" and (rows := len(self.database.unreadable)):
            database = (
                f"{rows} rows can't be read and are left out; the log names them: delete those endpoints and keys"
            )
        manager = "it has not answered yet" if not seen else "it does not answer; ready workers serve on"
        parts = {"database": database, "worker_manager": "ok" if self.scheduler.connected else manager}
        if self.certificate is not None:
            parts["certificate"] = self.certificate.state()
        return Readiness(parts, inference=seen)

    def notice_access(self, event: AccessEvent) -> None:
        """Count sign-ins that failed."""
        if event.what == "sign_in_failed":
            self.metrics.sign_ins_failed.labels(event.reason).inc()

    def render_metrics(self) -> bytes:
        """The page for Prometheus, with the gauges as they stand now."""
        self.metrics.waiting.clear()
        self.metrics.in_flight.clear()
        self.metrics.workers.clear()
        for name, queue in self.demand.queues.items():
            self.metrics.waiting.labels(name).set(len(queue.waiters))
            self.metrics.in_flight.labels(name).set(self.demand.in_flight(name))
        for slot in self.demand.slots.values():
            self.metrics.workers.labels(slot.endpoint, slot.state.value).inc()
        self.metrics.manager_up.set(1 if self.scheduler.connected else 0)
        self.metrics.database_ok.set(0 if self.watch.trouble or self.recorder.failing else 1)
        self.metrics.usage_unwritten.set(self.recorder.unwritten)
        self.metrics.tasks.set(len(asyncio.all_tasks()))
        self.metrics.idle_connections.set(self.pool.idle)
        return self.metrics.render()

    async def housekeeping(self) -> None:
        """What has to be done now and then: stale connections, and the times at which keys were used."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.pool.sweep()
            await self.accounts.note_used()

    async def close(self) -> None:
        """Let go of everything; engines live on."""
        await self.scheduler.stop()
        await self.trials.close()
        await self.prober.close()
        self.pool.close()
        await self.manager.close()
        await self.decisions.close()
        await self.recorder.stop()
        await self.gpu_recorder.close()
        await self.accounts.close()
        await self.database.close()


@contextlib.asynccontextmanager
async def running(settings: Settings, certificate: Certificate | None = None) -> AsyncIterator[Gateway]:
    """A whole gateway, from its database to its last connection."""
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(claimed(settings.data))
        gateway = Gateway(settings, await Database.open(settings.data), certificate)
        stack.push_async_callback(gateway.close)
        await gateway.load()
        await started(gateway.audit, settings)
        gateway.scheduler.start()
        gateway.recorder.start()
        keepers = [
            asyncio.create_task(gateway.housekeeping(), name="housekeeping"),
            asyncio.create_task(gateway.learned.run(), name="learned"),
            asyncio.create_task(gateway.load_times.run(), name="load times"),
            asyncio.create_task(gateway.decisions.run(), name="decisions"),
            asyncio.create_task(gateway.sign_ins.run(), name="sign-ins"),
            asyncio.create_task(gateway.refusals.run(), name="refusals"),
            asyncio.create_task(gateway.accounts.run(), name="budgets"),
            asyncio.create_task(gateway.captures.run(), name="captures"),
            asyncio.create_task(gateway.watch.run(), name="database watch"),
            asyncio.create_task(gateway.gpu_recorder.run(), name="GPU usage"),
            asyncio.create_task(prune_daily(gateway.usage, settings.usage_days), name="usage retention"),
        ]
        if certificate is not None:
            keepers.append(asyncio.create_task(certificate.watch(), name="certificate"))
        try:
            yield gateway
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)


def litestar(gateway: Gateway) -> Litestar:
    """Everything but inference: the routes with typed bodies, where a microsecond does not matter."""
    things: dict[str, Any] = {
        "registry": gateway.registry,
        "statuses": gateway.statuses,
        "keyring": gateway.keyring,
        "gate": gateway.accounts.gate,
        "accounts": gateway.accounts,
        "scheduler": gateway.scheduler,
        "manager": gateway.manager,
        "host": gateway.scheduler.host,
        "prepare": gateway.prepare,
        "touch": gateway.touch,
        "renew": gateway.renew,
        "changed": gateway.changed,
        "readiness": gateway.readiness,
        "render": gateway.render_metrics,
        "events": gateway.events,
        "decisions": gateway.decisions.read,
        "usage": gateway.usage,
        "requests": RequestStore(gateway.database),
        "audit": gateway.audit,
        "captures": gateway.captures,
        "settle": gateway.sign_ins.write,
        "recorder": gateway.recorder,
        "gpu_usage": gateway.gpu_usage,
        "gpu_recorder": gateway.gpu_recorder,
        "cost_unit": gateway.settings.cost_unit,
        "backups": gateway.backups,
    }
    return Litestar(
        CONTROLLERS,
        dependencies={name: Provide(_giver(thing), sync_to_thread=False) for name, thing in things.items()},
        exception_handlers=HANDLERS,
        before_send=[name_all_methods],
        state=State({"keyring": gateway.keyring, "sign_ins": gateway.sign_ins}),
        openapi_config=None,
        logging_config=None,
        request_max_body_size=LARGEST_BODY_MIB * MIB,
    )


def _giver(thing: Any) -> Callable[[], Any]:
    return lambda: thing
