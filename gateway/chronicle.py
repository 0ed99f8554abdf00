"""What becomes an event: differences between what was seen last and what is seen now, in words that users know."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from gateway.endpoints.types import Endpoint, RolledBack
from gateway.events import Events, Kind
from gateway.scheduling.types import Decision, Plan
from worker_manager.contract import Download, Failure, ObservedSet, ObservedWorker

NUMBERS = re.compile(r"\d+")
GONE = "gone"
"""The last state of a worker or a download: it is not there any more."""

States = Callable[[], Iterable[tuple[str, str, str]]]
"""Name, state and reason of every endpoint."""


class Chronicle:
    """Tells the ring what has changed. Every method may be called as often as one likes."""

    def __init__(self, events: Events, states: States) -> None:
        self._events = events
        self._states = states
        self._workers: dict[str, tuple[Any, ...]] = {}
        self._downloads: dict[str, tuple[Any, ...]] = {}
        self._endpoints: dict[str, tuple[str, str]] = {}
        self._decisions: frozenset[tuple[str, ...]] = frozenset()
        self._connected: bool | None = None

    def seen(self, observed: ObservedSet) -> None:
        """Take note of a look of the manager's."""
        before, self._workers = self._workers, {worker.spec.id: _worker(worker) for worker in observed.workers}
        for worker in observed.workers:
            if before.get(worker.spec.id) != self._workers[worker.spec.id]:
                self._tell_of(worker)
        for one in before.keys() - self._workers.keys():
            self._events.publish(Kind.WORKER, before[one][0], id=one, state=GONE)
        self._see_downloads(observed)
        self._tell_of_endpoints()

    def _see_downloads(self, observed: ObservedSet) -> None:
        known, self._downloads = self._downloads, {one.id: _download(one) for one in observed.downloads}
        for download in observed.downloads:
            if known.get(download.id) != self._downloads[download.id]:
                what = msgspec.to_builtins(download) | {"failure": _short(download.failure)}
                self._events.publish(Kind.DOWNLOAD, None, **what)
        for one in known.keys() - self._downloads.keys():
            self._events.publish(Kind.DOWNLOAD, None, id=one, state=GONE)

    def _tell_of(self, worker: ObservedWorker) -> None:
        self._events.publish(
            Kind.WORKER,
            worker.spec.endpoint,
            id=worker.spec.id,
            state=worker.state.value,
            residency=worker.residency.value,
            gpus=worker.spec.gpus,
            memory_mib=worker.spec.gpu_memory_mib,
            reason=worker.reason,
            failure=_short(worker.failure),
            adapters={one.name: one.state.value for one in worker.adapters},
        )

    def planned(self, plan: Plan, *, connected: bool) -> None:
        """Take note of a plan, and of what has become of the endpoints until now."""
        if connected is not self._connected:
            self._connected = connected
            self._events.publish(Kind.MANAGER, None, connected=connected)
        self._tell_of_endpoints()
        before, self._decisions = self._decisions, frozenset(sameness(one) for one in plan.decisions)
        for decision in plan.decisions:
            if sameness(decision) not in before:
                self._events.publish(
                    Kind.DECISION,
                    decision.endpoint,
                    verb=decision.verb.value,
                    worker=decision.worker,
                    reason=decision.reason,
                    numbers=decision.numbers,
                )

    def _tell_of_endpoints(self) -> None:
        before, self._endpoints = self._endpoints, {}
        for name, state, reason in self._states():
            # what else stands in a reason is told by workers, downloads and decisions; why it failed is news itself
            self._endpoints[name] = news = (state, NUMBERS.sub("", reason) if state == "failed" else "")
            if before.get(name) != news:
                self._events.publish(Kind.ENDPOINT, name, change="state", state=state, reason=reason)

    def noted(self, what: str, endpoint: Endpoint, fields: Iterable[str]) -> None:
        """An endpoint was created, changed in these fields, or deleted."""
        self._events.publish(Kind.ENDPOINT, endpoint.spec.name, change=what, fields=list(fields))

    def tried(self, name: str, rolled_back: RolledBack | None) -> None:
        """A change of how it is served was proven, or rolled back."""
        if rolled_back is None:
            self._events.publish(Kind.ENDPOINT, name, change="proven")
            return
        failure = _short(rolled_back.failure)
        self._events.publish(Kind.ENDPOINT, name, change="rolled_back", changed=rolled_back.changed, failure=failure)


def sameness(decision: Decision) -> tuple[str, ...]:
    """What makes a decision the same as one before: its numbers change from second to second."""
    return (decision.verb, decision.endpoint, decision.worker or "", NUMBERS.sub("", decision.reason))


def _worker(worker: ObservedWorker) -> tuple[Any, ...]:
    failed_at = worker.failure.at if worker.failure is not None else None
    reason = NUMBERS.sub("", worker.reason)
    adapters = tuple((one.name, one.state) for one in worker.adapters)
    # `since`: one that went and came back between two looks is in the state it was in
    return (worker.spec.endpoint, worker.state, worker.residency, worker.since, reason, failed_at, adapters)


def _download(download: Download) -> tuple[Any, ...]:
    """State and percent: every byte would be an event otherwise."""
    total = download.bytes_total
    return (download.state, 100 * download.bytes_done // total if total else None)


def _short(failure: Failure | None) -> dict[str, str] | None:
    """A failure without its log: thousands of events are kept."""
    if failure is None:
        return None
    return {"kind": failure.kind.value, "message": failure.message, "hint": failure.hint}
