"""The planner's input and output: plain structs, MiB and Unix seconds throughout."""

from enum import StrEnum

import msgspec

from worker_manager.contract import Adapter, Residency, SleepFacts, WorkerSpec, WorkerState

HOST_MEMORY = "host"
"""The name under which the machine's own memory is a card, for workers that run on the CPUs."""

RETRY_FAILED_SECONDS = 30.0
"""For so long after a failure requests are refused with the reason; the next one after that starts a new try."""


class WantedEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint and what is asked of it this instant."""

    name: str
    template: WorkerSpec | None
    """What each of its workers looks like, without id and GPUs; None while its model is not here (see `blocked`)."""
    pending: str = ""
    """Why the template is still an earlier one: what the endpoint was changed to can't start yet."""
    blocked: str = ""
    unfit: str = ""
    """Why no worker of it can ever start on this machine: requests are refused with it instead of waiting."""
    rejected: WorkerSpec | None = None
    """The template of a change that was rolled back: a worker of it gets no request and goes at once."""
    on_trial: bool = False
    """Whether no worker of this template has answered a request yet while one of an earlier template had."""
    asked_gpus: int | None = None
    """GPUs that each worker must have; None: as many as the memory plan found when it started."""
    gpus: int = 0
    promise_mib: int = 0
    """MiB promised to a worker on each card; with `whole_card` or `most_mib` the least it needs."""
    most_mib: int | None = None
    """Where a card has room, a worker gets up to so much; None: `promise_mib` and no more."""
    max_model_len: int | None = None
    """Given to a worker at its start where the template leaves it open: the longest context that fits."""
    whole_card: bool = False
    """Take all that is free of cards on which nothing else was promised."""
    min_workers: int = 0
    max_workers: int = 1
    per_worker: int = 32
    idle_seconds: float = 900
    priority: int = 0
    sleep: tuple[Residency, ...] = ()
    """The rungs its workers may rest on, the warmest first; empty: they are stopped."""
    sleep_after_seconds: float = 60
    """Idle for so long, a worker sleeps ahead of need where not all endpoints fit at once."""
    sleep_host_mib: int = 0
    """MiB of host memory that a sleeper of level 1 takes, as far as can be told before it was measured: its weights."""
    adapters: tuple[Adapter, ...] = ()
    """LoRA adapters that each of its workers should have, as far as their room goes."""
    adapter_problems: dict[str, str] = {}
    """Adapters that no worker can have, and why: requests are refused with it. Empty: still to come, they wait."""
    load_seconds: float | None = None
    """How long its last start took; None: not seen yet."""
    stopped: bool = False
    warm_until: float | None = None
    """Keep at least one worker until then (somebody asked for a start)."""
    ordered_at: float | None = None
    """When somebody last asked for a start: a worker that failed before gets out of the way of a new one."""
    in_flight: int = 0
    """Requests on workers that are not draining."""
    waiting: int = 0
    waiting_since: float | None = None
    """When the oldest of them came."""
    unserved_since: float | None = None
    """Since when requests wait and it has no worker that serves; None: it has one, or nobody waits."""


class KnownWorker(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that exists or was asked for, and what it is doing."""

    spec: WorkerSpec
    state: WorkerState
    since: float
    in_flight: int = 0
    last_used: float = 0.0
    """When its last request ended, or when it became ready."""
    draining: bool = False
    """It gets no further request, and when the last one has ended it goes or sleeps."""
    on_trial: bool = False
    """It is the first of a change and gets no request before it has answered one of the gateway's own."""
    asked: Residency = Residency.HOT
    """What it was last asked to be."""
    asked_at: float = 0.0
    """When it was asked that."""
    can_sleep: bool = False
    can_sleep_deep: bool = False
    """At level 2 as well."""
    memory_mib: int | None = None
    """GPU memory it holds now on each of its cards, measured; None: not known."""
    sleep: SleepFacts | None = None
    """What its last sleep was like; None: it has not slept yet."""

    def holds_memory(self) -> bool:
        """Whether its promise counts: every state but FAILED, in which nothing runs."""
        return self.state is not WorkerState.FAILED

    def is_leaving(self) -> bool:
        """Whether it is on its way off its cards: drained, falling asleep, or being stopped by the manager."""
        falls_asleep = self.asked is not Residency.HOT and self.state is not WorkerState.ASLEEP
        return self.draining or falls_asleep or self.state is WorkerState.STOPPING


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the planner may know."""

    now: float
    endpoints: tuple[WantedEndpoint, ...]
    workers: tuple[KnownWorker, ...]
    cards: dict[str, int]
    """MiB that may be promised, by GPU UUID and for `HOST_MEMORY`: total less margin less what other programs hold."""
    host_promises: dict[str, int] = {}
    """MiB of host memory that a worker of this model path needs when it runs on the CPUs."""
    default_host_promise_mib: int = 4096
    sleep_memory_mib: int = 0
    """MiB of host memory that all sleepers together may take."""
    host_available_mib: int | None = None
    """MiB of host memory that nothing uses now, less a margin; None: not known."""
    starvation_seconds: float = 60
    minimum_residency_seconds: float = 10


class Verb(StrEnum):
    """What was decided."""

    START = "start"
    WAKE = "wake"
    SLEEP = "sleep"
    DRAIN = "drain"
    WAIT = "wait"


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One decision, its reason, and the numbers of that instant."""

    verb: Verb
    endpoint: str
    worker: str | None
    reason: str
    numbers: dict[str, float] = {}
    """Of the endpoint, the worker and its cards (`Board.numbers`); MiB, seconds and counts."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The planner's whole output."""

    desired: tuple[WorkerSpec, ...]
    """Every worker that should exist, by id."""
    draining: frozenset[str]
    """Those of them that get no further request."""
    decisions: tuple[Decision, ...]
    wake_at: float | None
    """When to plan again even if nothing happens; Unix seconds."""
    residencies: dict[str, Residency] = {}
    """Which of `desired` should sleep, and how deep; all others are HOT."""
    soon: tuple[str, ...] = ()
    """Paths of models whose workers wait for others to make room, the most urgent first."""
