"""Situations for tests of the planner, and what becomes of them when a plan is carried out."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from gateway.scheduling.types import HOST_MEMORY, KnownWorker, Plan, Situation, WantedEndpoint
from worker_manager.contract import Residency, SleepFacts, WorkerSpec, WorkerState

NOW = 1_000_000.0
LONG_AGO = NOW - 10_000
HOST_PROMISE = 4096
HOST_OF_SLEEPER = 3000
"""MiB of host memory that a sleeper of level 1 takes in these tests."""


def template(name: str, promise: int | None = None, *, max_model_len: int | None = None) -> WorkerSpec:
    """What each worker of an endpoint looks like, without id and GPUs."""
    return WorkerSpec(
        id="x",
        endpoint=name,
        model="local/tiny",
        served_names=(name,),
        gpu_memory_mib=promise,
        max_model_len=max_model_len,
    )


def endpoint(name: str, *, gpus: int = 1, promise: int = 10_000, whole: bool = False, **fields: Any) -> WantedEndpoint:
    """Make an endpoint; without `gpus` it is one for the CPUs."""
    needs_size = gpus > 0 and not whole
    return WantedEndpoint(
        name=name,
        template=fields.pop("template", template(name, promise if needs_size else None)),
        gpus=gpus,
        promise_mib=promise if gpus else HOST_PROMISE,
        whole_card=whole and gpus > 0,
        sleep_host_mib=HOST_OF_SLEEPER,
        **fields,
    )


def waiting(number: int = 1, since: float = NOW) -> dict[str, Any]:
    """Give the fields of an endpoint for which requests wait."""
    return {"waiting": number, "waiting_since": since}


def worker(name: str, number: int, *cards: str, promise: int = 10_000, **fields: Any) -> KnownWorker:
    """Make a worker that was made from `template(name, promise)`; READY, idle and old unless told otherwise."""
    fields = {"state": WorkerState.READY, "since": LONG_AGO, "last_used": NOW - 500, **fields}
    of = fields.pop("template", template(name, promise if cards else None))
    size = promise if cards else None
    return KnownWorker(
        spec=msgspec.structs.replace(of, id=f"{name}-{number}", gpus=cards, gpu_memory_mib=size), **fields
    )


def situation(
    endpoints: Iterable[WantedEndpoint], workers: Iterable[KnownWorker] = (), now: float = NOW, **cards: int
) -> Situation:
    """Everything the planner may know; `cards` by name in MiB, the host has 64 GiB unless told."""
    room = {HOST_MEMORY: 65_536, **cards}
    return Situation(now=now, endpoints=tuple(endpoints), workers=tuple(workers), cards=room)


def promises(specs: Iterable[WorkerSpec]) -> Counter[str]:
    """MiB promised on each card."""
    held: Counter[str] = Counter()
    for spec in specs:
        for card in spec.gpus or (HOST_MEMORY,):
            held[card] += (spec.gpu_memory_mib or 0) if spec.gpus else HOST_PROMISE
    return held


def started(before: Situation, plan: Plan) -> list[WorkerSpec]:
    """Give the workers of a plan that did not exist."""
    known = {one.spec.id for one in before.workers}
    return [spec for spec in plan.desired if spec.id not in known]


def drained(before: Situation, plan: Plan) -> set[str]:
    """Give the ids of workers that the plan newly drains, or lets go."""
    kept = {spec.id for spec in plan.desired} - plan.draining
    return {one.spec.id for one in before.workers if not one.is_leaving()} - kept


def in_memory(before: Situation, plan: Plan | None = None) -> Counter[str]:
    """MiB that are held on each card at most while the plan is carried out: by what exists, and by what is started."""
    held = promises(started(before, plan) if plan is not None else ())
    awake = {spec.id for spec in plan.desired} - plan.residencies.keys() if plan is not None else set[str]()
    for one in before.workers:
        rests = one.state is WorkerState.ASLEEP and one.asked is not Residency.HOT and one.spec.id not in awake
        if rests:
            held += Counter(dict.fromkeys(one.spec.gpus, one.memory_mib or 0))
            held[HOST_MEMORY] += HOST_OF_SLEEPER if one.asked is Residency.ASLEEP_1 else 0
        elif one.holds_memory():
            held += promises([one.spec])
    return held


def carried_out(before: Situation, plan: Plan, state: WorkerState = WorkerState.LOADING) -> Situation:
    """Give the situation after the plan: what it drops is gone, what it starts is there, demand is as it was."""
    desired = {spec.id for spec in plan.desired}
    kept = [_told(one, before.now, plan) for one in before.workers if one.spec.id in desired]
    fresh = [
        KnownWorker(spec=spec, state=state, since=before.now, last_used=before.now) for spec in started(before, plan)
    ]
    return msgspec.structs.replace(before, workers=(*kept, *fresh))


def _told(one: KnownWorker, now: float, plan: Plan) -> KnownWorker:
    """Give a kept worker after the plan: who should sleep and has no request does, who should wake is about to."""
    asked = plan.residencies.get(one.spec.id, Residency.HOT)
    told = msgspec.structs.replace(one, asked=asked, draining=one.spec.id in plan.draining)
    if asked is not Residency.HOT and one.state in (WorkerState.READY, WorkerState.SLEEPING) and not one.in_flight:
        facts = SleepFacts(freed_mib=1, sleep_seconds=1, wake_seconds=1, host_mib=HOST_OF_SLEEPER)
        return msgspec.structs.replace(
            told, state=WorkerState.ASLEEP, since=now, memory_mib=min(1_000, one.spec.gpu_memory_mib or 0), sleep=facts
        )
    if asked is Residency.HOT and one.state is WorkerState.ASLEEP:
        return msgspec.structs.replace(told, state=WorkerState.WAKING, since=now)
    return told
