"""Looks at everything twice a second: who promises, who holds, who waits, what failed, what is left over."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

from tests.support.hostler import bearer
from tests.trial.cast import CARD_MIB
from tests.trial.machine import TrialMachine
from tests.trial.starvation import Spells

LOOK_SECONDS = 0.5
ORPHAN_SECONDS = 20.0
"""For so long containers and workers may differ: the manager lists them every ten seconds at the latest."""
RUNS = frozenset({"loading", "ready", "sleeping", "asleep", "waking"})
REQUEST_SECONDS = 20.0

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Death:
    """A failure as the manager has told it: the status of an endpoint shows it only while the worker exists."""

    worker: str
    endpoint: str
    kind: str
    message: str
    at: float


class Witness:
    """What was seen last, and what was seen that must not be."""

    def __init__(self, machine: TrialMachine) -> None:
        self.looks = 0
        self.endpoints: dict[str, Json] = {}
        self.workers: list[Json] = []
        self.gpus: list[Json] = []
        self.broken: list[str] = []
        self.deaths: dict[tuple[str, str], Death] = {}
        self.spells = Spells()
        self.peak_promised: Counter[str] = Counter()
        self.peak_used: Counter[str] = Counter()
        self.loads: list[tuple[str, float, float]] = []
        """Endpoint, first look at a worker being created, and when it was READY; Unix seconds."""
        self._machine = machine
        self._looked = asyncio.Condition()
        self._since: dict[str, tuple[str, float]] = {}
        self._strange: dict[str, float] = {}
        self._read_until = time.time()
        stack = machine.stack
        self._client = httpx.AsyncClient(base_url=stack.address, headers=bearer(stack.key), timeout=REQUEST_SECONDS)

    async def watch(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await self._look()
                self.looks += 1
                async with self._looked:
                    self._looked.notify_all()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            await self._client.aclose()

    async def next_look(self) -> None:
        """Wait for news."""
        async with self._looked:
            await self._looked.wait()

    async def _look(self) -> None:
        answers = [await self._client.get(path) for path in ("/api/endpoints", "/api/workers", "/api/host")]
        endpoints, self.workers, host = (answer.raise_for_status().json() for answer in answers)
        self.endpoints = {one["name"]: one["status"] for one in endpoints}
        self.gpus = host["gpus"]
        now = time.time()
        self._add_up()
        self.spells.look(now, {name: _is_unserved(status) for name, status in self.endpoints.items()})
        self._time_loads(now)
        self._compare(await asyncio.to_thread(self._machine.containers), now)
        self._read_on(await asyncio.to_thread(self._machine.journal, self._read_until), now)

    # memory

    def _add_up(self) -> None:
        promised: Counter[str] = Counter()
        for worker in self.workers:
            for card in worker["spec"]["gpus"]:
                promised[card] += _counts_for(worker)
        used: Counter[str] = Counter()
        for claim in self._machine.host.live_claims():
            used[claim.uuid] += round(claim.memory_mib)
        for what, sums, peaks in (
            ("promised", promised, self.peak_promised),
            ("used", used, self.peak_used),
        ):
            for card, mib in sums.items():
                peaks[card] = max(peaks[card], mib)
                if mib > CARD_MIB:
                    held = [(one["spec"]["id"], one["state"], _counts_for(one)) for one in self.workers]
                    self.broken.append(f"over-commit: {mib} of {CARD_MIB} MiB {what} on {card}: {held}")

    # failures and loads

    def _read_on(self, lines: list[Json], now: float) -> None:
        for line in lines:
            stamp = line["timestamp"]
            if line["event"] == "worker_died" and (line["worker"], stamp) not in self.deaths:
                self.deaths[line["worker"], stamp] = Death(
                    worker=line["worker"],
                    endpoint=line["worker"].rsplit("-", 2)[0],
                    kind=line["kind"],
                    message=line["cause"],
                    at=datetime.fromisoformat(stamp).timestamp(),
                )
        self._read_until = now

    def _time_loads(self, now: float) -> None:
        """From the first look at a worker being created until it is READY."""
        for worker in self.workers:
            one, state = worker["spec"]["id"], worker["state"]
            before, since = self._since.get(one, ("", now))
            loads = ("creating", "loading")
            if state == "ready" and before in loads:
                self.loads.append((worker["spec"]["endpoint"], since, worker["since"]))
            if not (before in loads and state in loads):
                since = worker["since"]
            self._since[one] = (state, since)

    # orphans

    def _compare(self, containers: dict[str, str], now: float) -> None:
        known = {worker["spec"]["id"]: worker["state"] for worker in self.workers}
        strange = {f"the container of {one} ({state}) belongs to no worker" for one, state in containers.items()
                   if one not in known}  # fmt: skip
        strange |= {f"{one} is {state} and has no container" for one, state in known.items()
                    if state in RUNS and one not in containers}  # fmt: skip
        self._strange = {what: self._strange.get(what, now) for what in strange}
        for what, since in self._strange.items():
            if now - since > ORPHAN_SECONDS:
                self.broken.append(f"orphan for {now - since:.0f} s: {what}")

    # what others ask

    def died(self, endpoint: str, since: float, worker: str | None = None) -> Death | None:
        """The first failure of an endpoint (or of one worker of it) since then."""
        found = [
            death
            for death in self.deaths.values()
            if death.endpoint == endpoint and death.at >= since and worker in (None, death.worker)
        ]
        return min(found, key=lambda death: death.at, default=None)

    def in_state(self, *states: str) -> list[Json]:
        """The workers in one of these states that are not on their way out."""
        views = {view["id"]: view for status in self.endpoints.values() for view in status["workers"]}
        return [
            {**worker, "in_flight": views[worker["spec"]["id"]]["in_flight"]}
            for worker in self.workers
            if worker["state"] in states
            and worker["spec"]["id"] in views
            and (worker["state"] != "ready" or not views[worker["spec"]["id"]]["draining"])
        ]

    def retry_at(self, endpoint: str) -> float:
        """When the last of an endpoint's workers that died may start again; Unix seconds, 0 if none waits."""
        return max((w["retry_at"] or 0.0 for w in self.workers if w["spec"]["endpoint"] == endpoint), default=0.0)


def _counts_for(worker: Json) -> int:
    """MiB that count for a worker on each of its cards: its promise, or asleep what it holds."""
    if worker["state"] == "failed":
        return 0
    promise: int = worker["spec"]["gpu_memory_mib"]
    held: int | None = worker["memory_mib"]
    if held is not None and worker["state"] in {"asleep", "stopping"}:
        return min(promise, held)
    return promise


def _is_unserved(status: Json) -> bool:
    serves = any(worker["state"] == "ready" and not worker["draining"] for worker in status["workers"])
    return status["waiting"] > 0 and not serves
