"""An endpoint as users see it: what it is, and how its workers do."""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from gateway.endpoints.types import Endpoint, EndpointSpec
from gateway.errors import sentences
from worker_manager.contract import Failure, WorkerState


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """One worker in an endpoint's status."""

    id: str
    state: str
    residency: str
    gpus: tuple[str, ...]
    memory_mib: int | None
    in_flight: int
    since: float
    draining: bool = False
    outdated: bool = False
    """It is made as the endpoint was served before its last change, and serves until a successor does."""
    on_trial: bool = False
    """It is the first of a change and has not answered the gateway's own request yet: it gets no other."""
    max_model_len: int | None = None
    """The context length that its engine was started with; None: the model's own."""
    reason: str = ""
    failure: Failure | None = None


class ChangeView(msgspec.Struct, frozen=True, kw_only=True):
    """A change of how the endpoint is served that does not hold (yet), or not for all of its workers."""

    state: str
    """on_trial, pending (its model is not here), rolled_back, or rolling (it works, and older workers serve on)."""
    since: float
    changed: dict[str, Any] = {}
    """`{field: {"from", "to"}}`; empty while it is rolling."""
    reason: str = ""
    failure: Failure | None = None


class SleepView(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an endpoint's workers can sleep."""

    possible: bool | None
    """None: not known before one of them was ready."""
    reason: str = ""
    """Why not."""


DOWN = frozenset({WorkerState.BACKOFF.value, WorkerState.FAILED.value})


def rolling(endpoint: Endpoint, workers: Iterable[WorkerView], waits: str) -> ChangeView | None:
    """A change that works, while workers from before it serve beside those of it; None where none do.

    `waits`: what keeps their successors, if they are only waited for.
    """
    workers = tuple(workers)
    still = [one.id for one in workers if one.outdated and one.state == WorkerState.READY and not one.draining]
    if not still:
        return None
    failed = next((one.failure for one in workers if not one.outdated and one.state in DOWN and one.failure), None)
    why = sentences(failed.message, failed.hint) if failed is not None else waits
    reason = f"{', '.join(still)} serves as before the change until a successor does"
    return ChangeView(
        state="rolling", since=endpoint.changed_at, reason=f"{reason}: {why}" if why else reason, failure=failed
    )


def said(change: ChangeView | None) -> str:
    """What users should know of a change while the endpoint serves as before."""
    if change is None or change.state == "rolling":
        return change.reason if change is not None else ""
    what = f"the change of {', '.join(change.changed)}"
    if change.state == "rolled_back":
        return f"{what} was rolled back, it is served as before: {change.reason}"
    return f"{what} waits: {change.reason}" if change.reason else f"{what} is on trial"


class AdapterView(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA adapter in an endpoint's status."""

    state: str
    """ready, loading, cold (no worker is awake), downloading or failed."""
    reason: str = ""
    workers: tuple[str, ...] = ()
    """Those that have it."""
    rank: int | None = None
    size_mib: int | None = None


class EndpointStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How an endpoint does this instant."""

    state: str
    """hot, loading, asleep, cold, downloading or failed."""
    reason: str
    workers: tuple[WorkerView, ...]
    waiting: int
    eta_seconds: float | None
    max_model_len: int | None = None
    """Tokens of context that a request may have: as its workers were started, else as they are going to be."""
    learned: dict[str, Any] = {}
    memory: dict[str, Any] | None = None
    """How a worker is sized, part by part."""
    change: ChangeView | None = None
    sleep: SleepView | None = None
    adapters: dict[str, AdapterView] = {}


class EndpointView(EndpointSpec, frozen=True, kw_only=True):
    """An endpoint's fields and its status, in one object."""

    created_at: float
    updated_at: float
    status: EndpointStatus


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """What Hostler adds to a model in OpenAI's list."""

    state: str
    ready_workers: int
    eta_seconds: float | None
    max_model_len: int | None


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """A model in OpenAI's shape."""

    id: str
    created: int
    hostler: ModelState
    object: str = "model"
    owned_by: str = "hostler"
    root: str | None = None
    """Of a LoRA adapter, as vLLM has it: where it comes from."""
    parent: str | None = None
    """Of a LoRA adapter: the endpoint whose model it changes."""


class Statuses:
    """Makes views of endpoints."""

    def __init__(self, source: Callable[[Endpoint], EndpointStatus]) -> None:
        self._source = source

    def view(self, endpoint: Endpoint) -> EndpointView:
        """The endpoint with its status."""
        fields = {name: getattr(endpoint.spec, name) for name in EndpointSpec.__struct_fields__}
        return EndpointView(
            **fields,
            created_at=endpoint.created_at,
            updated_at=endpoint.updated_at,
            status=self._source(endpoint),
        )

    def models(self, endpoint: Endpoint) -> list[ModelView]:
        """The endpoint as a model under each of its names, then its adapters."""
        status = self._source(endpoint)
        names = [self._model(endpoint, name, status) for name in endpoint.spec.names()]
        return names + [self._adapter(endpoint, name, status) for name in endpoint.spec.adapters]

    def _adapter(self, endpoint: Endpoint, name: str, status: EndpointStatus) -> ModelView:
        base = self._model(endpoint, name, status)
        its = status.adapters[name]
        # where no worker is awake it does as its endpoint does
        state = {"ready": "hot", "cold": status.state}.get(its.state, its.state)
        return msgspec.structs.replace(
            base,
            root=endpoint.spec.adapters[name].model,
            parent=endpoint.spec.name,
            hostler=msgspec.structs.replace(base.hostler, state=state, ready_workers=len(its.workers)),
        )

    def _model(self, endpoint: Endpoint, name: str, status: EndpointStatus) -> ModelView:
        ready = sum(worker.state == "ready" and not worker.on_trial for worker in status.workers)
        return ModelView(
            id=name,
            created=int(endpoint.created_at),
            hostler=ModelState(
                state=status.state,
                ready_workers=ready,
                eta_seconds=status.eta_seconds,
                max_model_len=status.max_model_len,
            ),
        )
